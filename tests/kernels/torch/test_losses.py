"""Around the last layer: hashed embeddings, losses in chunks against the whole softmax, the sampler's candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from formulas import leaf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from walsh import reference
from walsh.kernels import torch as kernels


def test_hash_embedding_and_its_head() -> None:
    vocabulary = 3000
    for count in (2, 3):
        ids = torch.arange(vocabulary)
        indices = kernels.hash_indices(ids, count)
        primes = (1021, 1019, 1013)
        expected = [ids % 1021, ids // 1021] if count == 2 else [ids % p for p in primes]
        assert torch.equal(indices, torch.stack(expected, -1))
        assert len({tuple(row) for row in indices.tolist()}) == vocabulary
        tables = [torch.randn(1021, 3, dtype=torch.float64) for _ in range(count)]
        importance = torch.randn(vocabulary, count, dtype=torch.float64)
        rows = sum(importance[:, i, None] * tables[i][indices[:, i]] for i in range(count))
        some = torch.tensor([[5, 2999], [1021, 0]])
        torch.testing.assert_close(kernels.hash_embedding(some, tables, importance, scale=2.0), 2 * rows[some])
        x = torch.randn(2, 3, dtype=torch.float64)
        torch.testing.assert_close(kernels.hash_lm_head(x, tables, importance), x @ rows.T)


def test_losses_without_targets_are_zero() -> None:
    x, table, logits = leaf(3, 4), leaf(7, 4), leaf(3, 7)
    targets = torch.full((3,), -1)
    for loss, leaves in (
        (kernels.linear_cross_entropy(x, table, targets), (x, table)),
        (kernels.cross_entropy(logits, targets), (logits,)),
    ):
        assert float(loss.detach()) == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, leaves))


def test_linear_cross_entropy_is_cross_entropy_of_the_head() -> None:
    x, table = leaf(2, 5, 4), leaf(9, 4)
    targets = torch.tensor([[0, 8, -1, 3, 3], [-1, 2, 2, 1, 0]])
    logits = (x @ table.T).reshape(-1, 9)
    kept = targets.reshape(-1) >= 0
    picked = logits.log_softmax(-1)[kept, targets.reshape(-1)[kept]]
    expected = -picked.mean()
    for loss in (
        kernels.cross_entropy(kernels.lm_head(x, table), targets),
        kernels.linear_cross_entropy(x, table, targets, chunk_size=3),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(3 * loss, (x, table)),
            torch.autograd.grad(3 * expected, (x, table), retain_graph=True),
        )


class Largest(TorchDispatchMode):
    """Records the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf_ in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf_, Tensor):
                self.bytes = max(self.bytes, leaf_.untyped_storage().nbytes())
        return result


def test_linear_cross_entropy_never_holds_the_logits() -> None:
    tokens, vocabulary, c = 512, 1000, 8
    x, table = leaf(tokens, c, dtype=torch.float32), leaf(vocabulary, c, dtype=torch.float32)
    targets = torch.randint(0, vocabulary, (tokens,))
    logits = 4 * tokens * vocabulary
    with Largest() as chunked:
        kernels.linear_cross_entropy(x, table, targets, chunk_size=16).backward()
    assert chunked.bytes <= 4 * 16 * vocabulary
    with Largest() as whole:
        kernels.cross_entropy(kernels.lm_head(x, table), targets).backward()
    assert whole.bytes >= logits


def test_linear_cross_entropy_keeps_no_chunk_for_the_backward() -> None:
    saved: list[int] = []
    x, table = leaf(64, 8), leaf(1000, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        kernels.linear_cross_entropy(x, table, torch.zeros(64, dtype=torch.int64), chunk_size=8)
    assert sum(saved) == x.numel() + table.numel()


@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_candidates_of_the_sampler_are_all_that_the_definition_keeps(levels: int) -> None:
    """Ties at every edge of the candidates, prefixes that end early, late and never."""
    logits = np.random.default_rng(levels).integers(-levels, levels, (3, 6000)) / np.float32(levels / 6)
    logits = logits.astype(np.float32)
    logits[0, ::7] = -0.0
    for top_k, top_p in ((1, 1.0), (50, 0.9), (1499, 1.0), (1501, 0.3), (0, 0.2), (0, 0.9), (0, 1.0)):
        for seed in range(3):
            given = {"temperature": 0.7, "top_k": top_k, "top_p": top_p, "seed": seed, "position": 5}
            expected = reference.sample(logits, **given)
            assert kernels.sample(torch.from_numpy(logits), **given).tolist() == expected.tolist()
