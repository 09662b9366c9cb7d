"""Gradients of every differentiable kernel against slopes in float64, by PyTorch's own gradcheck."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch")
import torch
from formulas import DIMENSIONS, METHODS, leaf, plain_cayley_dickson
from torch.autograd import gradcheck

from walsh.kernels import torch as kernels


def test_gradients_of_cayley_dickson_linear() -> None:
    for d, method in itertools.product(DIMENSIONS, METHODS):
        x, w, beta = leaf(2, d * 2), leaf(d, 3, 2), leaf(3)
        assert gradcheck(lambda *a, m=method: kernels.cayley_dickson_linear(*a, method=m), (x, w, beta))
        assert gradcheck(lambda *a, m=method: kernels.cayley_dickson_linear(*a, method=m), (x, w))


def test_gradient_of_beta_at_zero() -> None:
    x, w = leaf(4, 16), leaf(8, 3, 2)
    beta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(kernels.cayley_dickson_linear, (x, w, beta))
    beta = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda b: kernels.hadamard_linear(x, w, None, b), (beta,))


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_gradients_of_hadamard(n: int) -> None:
    assert gradcheck(kernels.hadamard_linear, (leaf(2, 2 * n), leaf(n, 3, 2), leaf(n, 2), leaf(n, 3)))
    assert gradcheck(lambda x: kernels.hadamard_transform(x), (leaf(3, n),))
    assert gradcheck(lambda x: kernels.hadamard_transform(x, normalize=False), (leaf(3, n),))


@pytest.mark.parametrize(
    ("algebra", "n"), [("complex", 2), ("quaternion", 4), ("octonion", 8), ("sedenion", 16), ("hadamard", 4)]
)
def test_gradients_of_head_mixer(algebra: str, n: int) -> None:
    x, w, beta = leaf(2, 2 * n, 2), leaf(n, 2, 2), leaf(2)
    assert gradcheck(lambda *a: kernels.head_mixer(*a, algebra=algebra), (x, w, beta))
    assert gradcheck(lambda *a: kernels.head_mixer(*a, algebra=algebra), (x, w))


def test_gradients_of_pointwise_operations() -> None:
    assert gradcheck(kernels.rms_norm, (leaf(2, 3, 5), leaf(5)))
    assert gradcheck(kernels.rms_norm, (leaf(5), leaf(5)))
    assert gradcheck(kernels.rope, (leaf(2, 3, 2, 4),))
    assert gradcheck(lambda x: kernels.rope(x, torch.tensor([[5, 0, 9], [1, 1, 70000]])), (leaf(2, 3, 2, 4),))
    assert gradcheck(kernels.swiglu, (leaf(3, 4), leaf(3, 4)))


def test_gradients_of_attention() -> None:
    q, k, v = leaf(2, 4, 3, 2), leaf(2, 4, 3, 2), leaf(2, 4, 3, 2)
    assert gradcheck(kernels.attention, (q, k, v))
    longer = leaf(2, 6, 3, 2), leaf(2, 6, 3, 2)
    assert gradcheck(kernels.attention, (q, *longer))
    positions = torch.tensor([[0, -1, 5, 2], [-1, -1, 3, 3]])
    assert gradcheck(lambda *a: kernels.attention(*a, positions), (q, *longer))


def test_gradients_of_embeddings_and_heads() -> None:
    ids = torch.tensor([[0, 3, 3], [4, 1, 0]])
    assert gradcheck(lambda t: kernels.embedding(ids, t), (leaf(5, 3),))
    tables, importance = [leaf(4, 3), leaf(2, 3)], leaf(5, 2)
    indices = torch.tensor([[0, 1], [3, 0], [3, 1], [2, 0], [0, 0]])
    assert gradcheck(lambda a, b, i: kernels.hash_embedding(ids, [a, b], i, indices, 1.5), (*tables, importance))
    assert gradcheck(lambda x, a, b, i: kernels.hash_lm_head(x, [a, b], i, indices), (leaf(2, 3), *tables, importance))
    assert gradcheck(kernels.lm_head, (leaf(2, 3), leaf(5, 3)))


def test_gradients_of_cross_entropy() -> None:
    targets = torch.tensor([[0, -1, 6], [3, 3, -1]])
    assert gradcheck(lambda x: kernels.cross_entropy(x, targets), (leaf(2, 3, 7),))
    for chunk_size in (1, 3, 100):
        assert gradcheck(
            lambda x, t, c=chunk_size: kernels.linear_cross_entropy(x, t, targets, chunk_size=c),
            (leaf(2, 3, 4), leaf(7, 4)),
        )


def test_only_the_wanted_gradients_are_made() -> None:
    for wanted in range(3):
        leaves = [leaf(4, 16).detach(), leaf(8, 3, 2).detach(), leaf(3).detach()]
        leaves[wanted].requires_grad_()
        (gradient,) = torch.autograd.grad(kernels.cayley_dickson_linear(*leaves).sum(), leaves[wanted])
        whole = [x.detach().requires_grad_() for x in leaves]
        expected = torch.autograd.grad(plain_cayley_dickson(*whole).sum(), whole)[wanted]
        torch.testing.assert_close(gradient, expected)
