"""Layers: the same bits in both packages, and those of SPEC.md's formulas in int64 and float32, in their order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from both_packages import F32, assert_same_bits, both, halves, ternary_codes, to_torch, wild

from walsh import errors
from walsh.algebra import multiply, sylvester
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict
from walsh.reference.strict._arithmetic import quantise


@pytest.mark.parametrize("dimension", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (2, 0)])
def test_cayley_dickson_linear(rng: np.random.Generator, dimension: int, lead: tuple[int, ...]) -> None:
    k, n = 5, 3
    x = wild(rng, *lead, dimension * k)
    codes, beta = ternary_codes(rng, dimension, n, k), wild(rng, n)
    y = both("cayley_dickson_linear", x, codes, beta)
    a, r = quantise("x", x)
    for row, scale, out in zip(a.reshape(-1, dimension, k), r.reshape(-1), y.reshape(-1, dimension, n), strict=True):
        for o in range(n):
            number = multiply(row.T.astype(np.int64), codes[:, o].T.astype(np.int64)).sum(0)  # of [K, D] numbers
            np.testing.assert_array_equal(out[:, o], (number.astype(F32) * scale) * beta[o])


@pytest.mark.parametrize("size", [1, 2, 4, 32])
@pytest.mark.parametrize("lead", [(), (3,), (2, 0)])
def test_hadamard_linear(rng: np.random.Generator, size: int, lead: tuple[int, ...]) -> None:
    k, n = 3, 5
    x = wild(rng, *lead, size * k)
    codes, alpha, beta = ternary_codes(rng, size, n, k), wild(rng, size, k), wild(rng, size, n)
    y = both("hadamard_linear", x, codes, alpha, beta)
    u = alpha * x.reshape(*lead, size, k)
    v = np.swapaxes(strict.hadamard_transform(np.ascontiguousarray(np.swapaxes(u, -1, -2))), -1, -2)
    a, r = quantise("v", np.ascontiguousarray(v).reshape(*lead, size * k))
    z = np.einsum("...gk,gnk->...gn", a.reshape(*lead, size, k).astype(np.int64), codes.astype(np.int64))
    sums = np.einsum("gh,...hn->...gn", sylvester(size).astype(np.int64), z)
    expected = ((sums.astype(F32) * r[..., None]) * F32(1 / math.sqrt(size))) * beta
    np.testing.assert_array_equal(y, expected.reshape(y.shape))


def test_hadamard_transform_adds_in_the_written_order(rng: np.random.Generator) -> None:
    for n in (1, 2, 4, 8, 64):
        x = wild(rng, 7, n)
        expected = x.copy()
        stride = 1
        while stride < n:
            for i in range(n):
                if not i & stride:
                    a, b = expected[:, i].copy(), expected[:, i + stride].copy()
                    expected[:, i], expected[:, i + stride] = a + b, a - b
            stride *= 2
        np.testing.assert_array_equal(both("hadamard_transform", x), expected * F32(1 / math.sqrt(n)))


@pytest.mark.parametrize(
    ("algebra", "n"), [("complex", 2), ("quaternion", 4), ("octonion", 8), ("sedenion", 16), ("hadamard", 4)]
)
def test_head_mixer(rng: np.random.Generator, algebra: str, n: int) -> None:
    d = 6
    codes = rng.integers(-127, 128, (n, d, d)).astype(np.int8)
    scale, beta = wild(rng, d), wild(rng, d)
    for lead in ((), (2, 3), (0,)):
        both("head_mixer", wild(rng, *lead, 2 * n, d), codes, scale, beta, algebra=algebra)
    identity = np.zeros((n, d, d), dtype=np.int8)
    identity[slice(None) if algebra == "hadamard" else 0] = 127 * np.eye(d, dtype=np.int8)
    x = rng.integers(-127, 128, (n, d)).astype(F32)
    x[0, 0] = 127
    one = np.ones(d, dtype=F32)
    if algebra != "hadamard":  # integers up to 127 are their own codes
        np.testing.assert_array_equal(both("head_mixer", x, identity, one, one, algebra=algebra), x * F32(127))


def test_head_mixer_refuses_what_does_not_fit(rng: np.random.Generator) -> None:
    codes, one = np.zeros((8, 2, 2), dtype=np.int8), np.ones(2, dtype=F32)
    cases = [
        (np.ones((8, 2), dtype=F32), "dense", errors.ParameterError),
        (np.ones((8, 2), dtype=F32), "quaternion", errors.ShapeError),
        (np.ones((12, 2), dtype=F32), "octonion", errors.ShapeError),
    ]
    for x, algebra, error in cases:
        with pytest.raises(error):
            strict.head_mixer(x, codes, one, one, algebra)
        with pytest.raises(error):
            torch_strict.head_mixer(*map(torch.from_numpy, (x, codes, one, one)), algebra)


@pytest.mark.parametrize("c", [1, 3, 24, 64, 100])
def test_rms_norm(rng: np.random.Generator, c: int) -> None:
    x, weight = wild(rng, 50, c), wild(rng, c)
    y = both("rms_norm", x, weight)
    squares = np.array([halves(list(row * row)) for row in x])
    inverse = F32(1) / np.sqrt(squares / F32(c) + F32(1e-6))
    np.testing.assert_array_equal(y, (x * inverse[:, None]) * weight)


def test_functions_without_a_quantiser_let_nan_through() -> None:
    x = np.array([[1.0, np.nan], [1.0, 2.0], [np.inf, 1.0]], dtype=F32)
    assert np.isnan(both("rms_norm", x, np.ones(2, dtype=F32))[0]).all()
    assert np.isnan(both("swiglu", x, x)[0, 1])


def test_rope(rng: np.random.Generator) -> None:
    x, inv_freq = wild(rng, 2, 5, 3, 8), 10000.0 ** (-np.arange(4) / 4)
    for positions in (np.arange(5), rng.integers(0, 90000, (2, 5)), np.arange(5, dtype=np.int32)):
        y = both("rope", x, inv_freq, positions)
    assert_same_bits(x[:1, :1], torch.from_numpy(strict.rope(x[:1, :1], inv_freq, np.array([0]))))
    sin, cos = strict.sincos(np.float64(4) * inv_freq)
    expected = x[0, 4, 1, 0::2] * cos - x[0, 4, 1, 1::2] * sin
    np.testing.assert_array_equal(y[0, 4, 1, 0::2], expected)
    both("rope", x[:, :0], inv_freq, np.arange(0))
    for wrong, error in ((np.array([-1] * 5), errors.RangeError), (np.full(5, 200000), errors.RangeError)):
        with pytest.raises(error):
            strict.rope(x, inv_freq, wrong)
        with pytest.raises(error):
            torch_strict.rope(torch.from_numpy(x), torch.from_numpy(inv_freq), torch.from_numpy(wrong))


def test_swiglu(rng: np.random.Generator) -> None:
    gate, up = wild(rng, 40, 50), wild(rng, 40, 50)
    h = both("swiglu", gate, up)
    np.testing.assert_array_equal(h, (gate / (F32(1) + strict.exp(-gate))) * up)


def test_strided_inputs_give_the_same_bits(rng: np.random.Generator) -> None:
    wide = wild(rng, 6, 80)
    codes, beta = ternary_codes(rng, 8, 3, 5), wild(rng, 3)
    expected = strict.cayley_dickson_linear(wide[::2, ::2].copy(), codes, beta)
    assert_same_bits(expected, torch.from_numpy(strict.cayley_dickson_linear(wide[::2, ::2], codes, beta)))
    view = torch.from_numpy(wide)[::2, ::2]
    assert_same_bits(expected, torch_strict.cayley_dickson_linear(view, to_torch(codes), to_torch(beta)))
    q = wild(rng, 2, 2, 5, 6).transpose(0, 2, 1, 3)
    assert_same_bits(strict.attention(q, q, q), torch_strict.attention(*[torch.from_numpy(q)] * 3))
    x = torch.from_numpy(wide).t()
    assert_same_bits(strict.rms_norm(wide.T, wide[:, 0].copy()), torch_strict.rms_norm(x, torch.from_numpy(wide)[:, 0]))
