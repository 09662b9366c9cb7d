"""Exponential, sums, sine and quantiser: the same bits in both packages, and those of the written steps on scalars."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from both_packages import F32, both, halves, wild

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict


def test_both_packages_offer_the_same_names() -> None:
    assert strict.__all__ == torch_strict.__all__


def test_exp_is_within_one_ulp_of_the_correctly_rounded(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.uniform(-87, 88, 10**5), np.linspace(-1, 1, 10**4), [-87, 88, 0.0, -0.0]]).astype(F32)
    y = both("exp", x)
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(F32)).astype(np.float64)
    assert (np.abs(y.astype(np.float64) - exact) / ulp).max() <= 1.0


def test_exp_at_its_edges() -> None:
    below = np.nextafter(F32(-87), F32(-100))
    x = np.array([0.0, -0.0, below, -np.inf, -1e30, 88.5, 1e30, np.inf, 1e-45, np.nan], dtype=F32)
    y = both("exp", x)
    assert y[:5].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert not np.signbit(y[2:5]).any()
    assert (y[5:8] == strict.exp(np.array([88], dtype=F32))).all()
    assert y[8] == 1.0
    assert np.isnan(y[9])


def test_exp_follows_its_formula_step_by_step(rng: np.random.Generator) -> None:
    for x in rng.uniform(-80, 80, 50).astype(F32):
        n = F32(round(float(x * F32(1.44269504))))
        t = (x - n * F32(0.693359375)) - n * F32(-2.12194440e-4)
        p = F32(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = p * t + F32(c)
        y = math.ldexp(float((p * (t * t) + t) + F32(1)), int(n))
        assert float(strict.exp(np.array([x]))[0]) == y


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 7, 8, 9, 31, 33, 100, 257])
def test_hsum_and_psum_follow_their_definitions(rng: np.random.Generator, n: int) -> None:
    x = wild(rng, 3, n)
    for row, total in zip(x, both("hsum", x), strict=True):
        assert total.view(np.int32) == halves(list(row)).view(np.int32)
    for row, total in zip(x, both("psum", x), strict=True):
        expected = F32(0)
        for block in range(0, n, 32):
            expected = expected + halves(list(row[block : block + 32]))
        assert total == expected


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_sums_along_any_axis(rng: np.random.Generator, axis: int) -> None:
    x = wild(rng, 37, 5, 40)
    for name in ("hsum", "psum"):
        along_last = getattr(strict, name)(np.ascontiguousarray(np.moveaxis(x, axis, -1)))
        np.testing.assert_array_equal(along_last, both(name, x, axis=axis))


def test_a_sum_of_negative_zeros_is_positive_zero() -> None:
    for name in ("hsum", "psum"):
        for n in (1, 2, 40):
            assert not np.signbit(both(name, np.full((2, n), -0.0, dtype=F32))).any()


def test_a_sum_without_that_axis_is_refused() -> None:
    for package, make in ((strict, np.zeros), (torch_strict, torch.zeros)):
        with pytest.raises(errors.ShapeError):
            package.hsum(make((2, 3), dtype=F32 if make is np.zeros else torch.float32), axis=2)


def test_numpy_accumulates_strictly_left_to_right(rng: np.random.Generator) -> None:
    x = wild(rng, 3, 5000)
    total = np.zeros(3, dtype=F32)
    expected = np.empty_like(x)
    for i in range(x.shape[1]):
        total = total + x[:, i]
        expected[:, i] = total
    np.testing.assert_array_equal(np.add.accumulate(x, axis=1).view(np.int32), expected.view(np.int32))
    np.testing.assert_array_equal(np.cumsum(x[0], dtype=F32).view(np.int32), expected[0].view(np.int32))


def test_sincos_against_the_math_library(rng: np.random.Generator) -> None:
    angle = np.concatenate(
        [rng.uniform(0, 1e5, 10**5), rng.uniform(0, 8, 2000), np.arange(4000) * (np.pi / 4), [0, 1e5]]
    )
    angle = angle[angle <= 1e5]
    sin, cos = both("sincos", angle)
    for found, function in ((sin, math.sin), (cos, math.cos)):
        exact = np.array([function(a) for a in angle])
        error = np.abs(found.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(F32)).astype(np.float64)
        assert error.max() <= 0.51


@pytest.mark.parametrize("wrong", [-1e-3, 1.0001e5, np.inf, np.nan])
def test_sincos_refuses_other_angles(wrong: float) -> None:
    for package, make in ((strict, np.array), (torch_strict, torch.tensor)):
        with pytest.raises(errors.RangeError):
            package.sincos(make([0.0, wrong], dtype=np.float64 if make is np.array else torch.float64))


def test_quantise_follows_its_definition(rng: np.random.Generator) -> None:
    x = wild(rng, 4, 50, 33)
    x[0, 0] = 0.0
    x[0, 1] = 1e-42
    x[0, 2] = 3e38
    x[0, 3, :3] = [127.0, 2.5, -3.5]
    a, r = both("quantize_activations", x)
    m = np.maximum(np.abs(x).max(-1, keepdims=True), F32(1e-5))
    s = F32(127) / m
    np.testing.assert_array_equal(a, np.clip(np.rint(x * s), -128, 127))
    np.testing.assert_array_equal(r, F32(1) / s)
    assert not a[0, :2].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantise_refuses_rows_that_are_not_finite(bad: float) -> None:
    x = np.ones((2, 3), dtype=F32)
    x[1, 2] = bad
    for package, value in ((strict, x), (torch_strict, torch.from_numpy(x))):
        with pytest.raises(errors.NonFiniteError):
            package.quantize_activations(value)


def test_quantise_refuses_other_dtypes_and_no_features() -> None:
    with pytest.raises(errors.DTypeError):
        strict.quantize_activations(np.ones(3))
    with pytest.raises(errors.DTypeError):
        torch_strict.quantize_activations(torch.ones(3, dtype=torch.float64))
    with pytest.raises(errors.ShapeError):
        strict.quantize_activations(np.ones((2, 0), dtype=F32))
    with pytest.raises(errors.ShapeError):
        torch_strict.quantize_activations(torch.ones(2, 0))
