"""Layers: every method against the formula, integers exactly, rounding straight through, NaN in its own row."""

from __future__ import annotations

import itertools
import math

import pytest

pytest.importorskip("torch")
import torch
from formulas import DIMENSIONS, METHODS, leaf, plain_cayley_dickson

from walsh.algebra import sylvester
from walsh.kernels import torch as kernels
from walsh.kernels.torch import convolution


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_agree(d: int, method: str) -> None:
    for m, n, k in ((1, 1, 1), (5, 3, 2), (70, 65, 64)):
        x, w, beta = (
            leaf(m, d * k, dtype=torch.float32),
            leaf(d, n, k, dtype=torch.float32),
            leaf(n, dtype=torch.float32),
        )
        y = kernels.cayley_dickson_linear(x, w, beta, method=method)
        wide = [t.detach().double().requires_grad_() for t in (x, w, beta)]
        expected = plain_cayley_dickson(*wide)
        dy = torch.randn_like(y)
        found = (y, *torch.autograd.grad(y, (x, w, beta), dy))
        wanted = (expected, *torch.autograd.grad(expected, wide, dy.double()))
        for f, e in zip(found, wanted, strict=True):
            assert float((f - e).detach().abs().max()) <= 1e-5 * float(e.detach().abs().max())


def test_fast_method_is_exact_on_integers() -> None:
    for d in DIMENSIONS:
        x, w = torch.randint(-8, 9, (9, d, 7)).float(), torch.randint(-1, 2, (d, 6, 7)).float()
        found = convolution.product(x, w, "fast").reshape(9, -1)
        assert torch.equal(found, plain_cayley_dickson(x.reshape(9, -1), w))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_integer_cayley_dickson_is_exact(d: int) -> None:
    for rows in (1, 70):
        a = torch.randint(-128, 128, (rows, d * 6), dtype=torch.int8)
        a[0] = -128
        q = torch.randint(-1, 2, (d, 5, 6), dtype=torch.int8)
        total = kernels.cayley_dickson_linear(a, q)
        assert total.dtype == torch.int32
        assert (total == plain_cayley_dickson(a.long(), q.long())).all()
        assert torch.equal(kernels.cayley_dickson_linear(a, kernels.pack_ternary(q)), total)
        scale, beta = torch.rand(rows, 1) + 1, torch.randn(5)
        y = kernels.cayley_dickson_linear(a, q, beta, scale)
        assert y.dtype == torch.float32
        assert torch.equal(y, ((total.float() / scale).view(rows, d, 5) * beta).view(rows, -1))


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("ste_clip", [None, 0.7])
def test_bit_linear_is_the_straight_through_layer(bits: int | None, ste_clip: float | None) -> None:
    for hadamard, n in itertools.product((False, True), (2, 8)):
        x, w, beta = leaf(3, 2, n * 5), leaf(n, 4, 5), leaf(n, 4) if hadamard else leaf(4)
        alpha = leaf(n, 5) if hadamard else None
        v, q = x, kernels.ternary_ste(w, ste_clip=ste_clip)
        if hadamard:
            y = kernels.hadamard_bit_linear(x, w, alpha, beta, bits, ste_clip=ste_clip)
            h = torch.tensor(sylvester(n)).double() / math.sqrt(n)
            v = (h @ (x.view(3, 2, n, 5) * alpha)).flatten(-2)
            v = v if bits is None else kernels.fake_quantize_activations(v)
            z = torch.einsum("...gk,gnk->...gn", v.unflatten(-1, (n, 5)), q)
            expected = ((h @ z) * beta).flatten(-2)
        else:
            y = kernels.cayley_dickson_bit_linear(x, w, beta, bits, ste_clip=ste_clip)
            v = v if bits is None else kernels.fake_quantize_activations(v)
            expected = plain_cayley_dickson(v, q, beta)
        torch.testing.assert_close(y, expected)
        inputs = [t for t in (x, w, alpha, beta) if t is not None]
        dy = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy))


def test_bit_linear_takes_integer_weights_as_they_are() -> None:
    x, beta = leaf(3, 8 * 6), leaf(4)
    q = torch.randint(-1, 2, (8, 4, 6), dtype=torch.int8)
    for bits in (8, None):
        y = kernels.cayley_dickson_bit_linear(x, q, beta, bits)
        assert torch.equal(kernels.cayley_dickson_bit_linear(x, kernels.pack_ternary(q), beta, bits), y)
        v = x if bits is None else kernels.fake_quantize_activations(x)
        expected = plain_cayley_dickson(v, q.double(), beta)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), (x, beta)), torch.autograd.grad(expected.sum(), (x, beta))
        )
        y = kernels.hadamard_bit_linear(x, q, None, None, bits)
        assert torch.equal(kernels.hadamard_bit_linear(x, kernels.pack_ternary(q), None, None, bits), y)


@pytest.mark.parametrize("layer", ["cayley_dickson_bit_linear", "hadamard_bit_linear"])
def test_a_row_with_nan_stays_nan_through_integers_and_alone(layer: str) -> None:
    for value in (math.nan, math.inf, -math.inf):
        x, w = torch.randn(3, 16), torch.randn(8, 4, 2)
        clean = getattr(kernels, layer)(x, w)
        x[1, 7] = value
        y = getattr(kernels, layer)(x, w)
        assert torch.isnan(y[1]).all()
        assert torch.equal(y[[0, 2]], clean[[0, 2]])
