"""Embeddings, heads and losses: values and gradients against gathered rows and the logarithm of a sum."""

import importlib

import pytest
from interpreted import check, rand, torch

from walsh.kernels import triton as kernels


def test_embeddings_and_heads():
    ids = torch.tensor([[0, 6, 6, 2], [1, 1, 1, 5]])
    check(lambda t: kernels.embedding(ids, t), lambda t: t[ids], (rand(7, 5),))
    check(kernels.lm_head, lambda x, t: x @ t.T, (rand(2, 4, 5), rand(7, 5)))
    indices = torch.tensor([[i % 4, i % 6, i % 5] for i in range(7)])
    tables = [rand(p, 5, seed=p) for p in (4, 6, 5)]

    def mixed(a, b, c, importance):
        return 1.5 * sum(importance[ids, i, None] * t[indices[ids, i]] for i, t in enumerate((a, b, c)))

    def head(x, a, b, c, importance):
        return sum(importance[:, i] * (x @ t[indices[:, i]].T) for i, t in enumerate((a, b, c)))

    importance = rand(7, 3)
    check(lambda a, b, c, i: kernels.hash_embedding(ids, [a, b, c], i, indices, 1.5), mixed, (*tables, importance))
    check(lambda x, a, b, c, i: kernels.hash_lm_head(x, [a, b, c], i, indices), head, (rand(3, 5), *tables, importance))


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_cross_entropy(chunk):
    targets = torch.tensor([0, 8, -1, 3, 3, -1, 8])

    def formula(logits):
        kept = targets >= 0
        picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        return (logits.logsumexp(1) - picked)[kept].mean()

    check(lambda logits: kernels.cross_entropy(logits, targets), formula, (rand(7, 9),))
    check(
        lambda x, table: kernels.linear_cross_entropy(x, table, targets, chunk),
        lambda x, table: formula(x @ table.T),
        (rand(7, 5), rand(9, 5)),
    )


def test_cross_entropy_of_nothing():
    logits = rand(3, 4).requires_grad_()
    loss = kernels.cross_entropy(logits, torch.full((3,), -1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the most elements that a tensor made inside it had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


def test_chunked_loss_never_holds_all_logits():
    tokens, vocabulary, chunk = 40, 97, 4
    linear = importlib.import_module("walsh.kernels.triton.cross_entropy")._linear.implementation
    with Largest() as seen:
        linear(rand(tokens, 3), rand(vocabulary, 3), torch.arange(tokens), chunk, True)
    # The interpreter takes the bytes of a tensor, four times as many, for a tensor too.
    assert chunk * vocabulary <= seen.elements <= 4 * chunk * vocabulary < tokens * vocabulary
