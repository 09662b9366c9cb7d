"""Inputs of every kind: each dtype and stride against a formula in float64, empty axes, infinity."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

pytest.importorskip("torch")
import torch
from formulas import DTYPES, METHODS, leaf, plain_cayley_dickson, plain_hadamard, strided, unit
from torch import Tensor

from walsh.kernels import torch as kernels

CASES: dict[str, Callable[[torch.dtype], tuple[Callable[..., Tensor], list[Tensor], Callable[..., Tensor]]]] = {
    "cayley_dickson": lambda dt: (
        kernels.cayley_dickson_linear,
        [leaf(2, 3, 24, dtype=dt), leaf(8, 4, 3, dtype=dt), leaf(4, dtype=dt)],
        plain_cayley_dickson,
    ),
    "hadamard": lambda dt: (
        kernels.hadamard_linear,
        [leaf(2, 3, 24, dtype=dt), leaf(8, 4, 3, dtype=dt), leaf(8, 3, dtype=dt), leaf(8, 4, dtype=dt)],
        plain_hadamard,
    ),
    "head_mixer": lambda dt: (
        kernels.head_mixer,
        [leaf(2, 16, 3, dtype=dt), leaf(8, 3, 3, dtype=dt), leaf(3, dtype=dt)],
        lambda x, w, b: plain_cayley_dickson(x.reshape(2, 2, 24), w.transpose(1, 2), b).reshape(2, 16, 3),
    ),
    "rms_norm": lambda dt: (
        kernels.rms_norm,
        [leaf(2, 3, 24, dtype=dt), leaf(24, dtype=dt)],
        lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w,
    ),
    "attention": lambda dt: (
        kernels.attention,
        [leaf(2, 5, 3, 4, dtype=dt), leaf(2, 5, 3, 4, dtype=dt), leaf(2, 5, 3, 4, dtype=dt)],
        lambda q, k, v: torch.einsum(
            "bhts,bshd->bthd",
            (torch.einsum("bthd,bshd->bhts", q, k) / 2 + torch.full((5, 5), -math.inf).triu(1)).softmax(-1),
            v,
        ),
    ),
    "swiglu": lambda dt: (
        kernels.swiglu,
        [leaf(4, 5, dtype=dt), leaf(4, 5, dtype=dt)],
        lambda g, u: g / (1 + torch.exp(-g)) * u,
    ),
    "lm_head": lambda dt: (
        kernels.lm_head,
        [leaf(4, 5, dtype=dt), leaf(7, 5, dtype=dt)],
        lambda x, t: x @ t.T,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_dtype_and_stride(name: str, dtype: torch.dtype) -> None:
    function, leaves, formula = CASES[name](dtype)
    y = function(*leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = formula(*wide)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, leaves, dy))
    wanted = (expected, *torch.autograd.grad(expected, wide, dy.double()))
    for f, e in zip(found, wanted, strict=True):
        assert f.dtype == dtype
        # Half a unit for the one rounding; what is left is float32 error on sums of some dozen terms.
        least = 0.501 * unit(dtype) * e.abs() + 100 * max(unit(torch.float32), 0) * e.abs().max()
        if dtype in (torch.bfloat16, torch.float16):
            assert ((f.double() - e).abs() <= least).all()
        else:
            assert bool(((f - e).abs() <= 50 * unit(dtype) * e.abs().max()).all())
    views = [strided(t).requires_grad_() for t in leaves]
    again = function(*views)
    torch.testing.assert_close(again, y, rtol=2 * unit(dtype), atol=unit(torch.float32) * 32)
    for f, e in zip(torch.autograd.grad(again, views, dy), found[1:], strict=True):
        torch.testing.assert_close(f, e, rtol=2 * unit(dtype), atol=unit(torch.float32) * 256)


@pytest.mark.parametrize("method", METHODS)
def test_empty_leading_axes(method: str) -> None:
    for lead in ((0,), (2, 0), (0, 3)):
        x, w, beta = leaf(*lead, 16), leaf(8, 3, 2), leaf(3)
        for y in (
            kernels.cayley_dickson_linear(x, w, beta, method=method),
            kernels.cayley_dickson_bit_linear(x, w, beta, method=method),
            kernels.hadamard_bit_linear(x, w),
            kernels.hadamard_linear(x, w),
        ):
            assert y.shape == (*lead, 24)
            dx, dw = torch.autograd.grad(y.sum(), (x, w))
            assert dx.shape == x.shape
            assert (dw == 0).all()
    assert kernels.rms_norm(torch.ones(0, 4), torch.ones(4)).shape == (0, 4)
    assert kernels.rope(torch.ones(2, 0, 3, 4)).shape == (2, 0, 3, 4)
    assert kernels.swiglu(torch.ones(0), torch.ones(0)).shape == (0,)
    assert kernels.head_mixer(torch.ones(0, 8, 2), torch.ones(8, 2, 2)).shape == (0, 8, 2)
    assert kernels.embedding(torch.zeros(0, 3, dtype=torch.int64), torch.ones(4, 2)).shape == (0, 3, 2)
    q = torch.ones(2, 1, 3, 4)
    assert (kernels.attention(q, q[:, :0], q[:, :0]) == 0).all()


def test_swiglu_at_infinity() -> None:
    gate = torch.tensor([-math.inf, math.inf, -1e30, 1e30, 0.0], requires_grad=True)
    h = kernels.swiglu(gate, torch.ones(5))
    assert h.tolist() == [0, math.inf, 0, pytest.approx(1e30), 0]
    (dgate,) = torch.autograd.grad(h.sum(), gate)
    assert dgate.tolist() == [0, 1, 0, 1, 0.5]
    assert kernels.swiglu_hidden(512, 8) == 1368
