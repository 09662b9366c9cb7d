"""Strict arithmetic: NumPy and PyTorch equal to the bit, and both equal to the written definition."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from walsh import errors
from walsh.algebra import multiply, sylvester
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict
from walsh.reference.config import weight_shapes
from walsh.reference.strict._arithmetic import quantise
from walsh.reference.strict.sampling import mix

F32 = np.float32


def to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, list):
        return [to_torch(member) for member in value]
    if isinstance(value, dict):
        return {name: to_torch(member) for name, member in value.items()}
    return value


def bits(value: Any) -> np.ndarray:
    array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array.view(np.int32) if array.dtype == F32 else array


def assert_same_bits(expected: Any, found: Any) -> None:
    if isinstance(expected, tuple):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_same_bits(one, other)
        return
    assert str(np.asarray(expected).dtype) == str(found.dtype).removeprefix("torch.")
    assert np.shape(expected) == tuple(found.shape)
    np.testing.assert_array_equal(bits(expected), bits(found))


def both(name: str, *args: Any, **params: Any) -> Any:
    """The reference's result, once PyTorch has given the same bits and neither has touched its inputs."""
    copies = [np.copy(a) if isinstance(a, np.ndarray) else a for a in args]
    expected = getattr(strict, name)(*args, **params)
    found = getattr(torch_strict, name)(*[to_torch(a) for a in args], **to_torch(params))
    assert_same_bits(expected, found)
    for copy, arg in zip(copies, args, strict=True):
        if isinstance(arg, np.ndarray):
            np.testing.assert_array_equal(copy, arg)
    return expected


def wild(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Reals of unlike magnitudes, with zeros of both signs and subnormals among them."""
    x = rng.standard_normal(shape) * np.exp(4 * rng.standard_normal(shape))
    x = np.where(rng.random(shape) < 0.02, 0.0, x)
    x = np.where(rng.random(shape) < 0.02, -0.0, x)
    return np.where(rng.random(shape) < 0.02, 1e-40 * x, x).astype(F32)


def ternary_codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-1, 2, shape).astype(np.int8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250101)


def test_both_packages_offer_the_same_names() -> None:
    assert strict.__all__ == torch_strict.__all__


# exp


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


# sums


def halves(values: list[np.float32]) -> np.float32:
    """hsum by its definition, on scalars."""
    size = 1
    while size < len(values):
        size *= 2
    values = values + [F32(0)] * (size - len(values))
    while len(values) > 1:
        middle = len(values) // 2
        values = [a + b for a, b in zip(values[:middle], values[middle:], strict=True)]
    return values[0] + F32(0)


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


# sincos


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


# quantiser


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


# layers


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


# attention and cache


def attention_by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One query and head at a time, over its visible keys only."""
    batch, queries, heads, d = q.shape
    o = np.zeros(q.shape, dtype=F32)
    for b, t, h in np.ndindex(batch, queries, heads):
        visible = int(positions[b, t]) + 1
        if visible == 0:
            continue
        (qa, qr), (ka, kr), (va, vr) = (quantise("", x) for x in (q[b, t, h], k[b, :visible, h], v[b, :visible, h]))
        sums = ka.astype(np.int64) @ qa.astype(np.int64)
        score = ((sums.astype(F32) * qr) * kr[:, 0]) * F32(1 / math.sqrt(d))
        e = strict.exp(score - score.max())
        o[b, t, h] = strict.psum((e[:, None] * vr) * va.astype(F32), axis=0) / strict.psum(e)
    return o


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (3, 40), (70, 70), (1, 65)])
def test_attention(rng: np.random.Generator, queries: int, keys: int) -> None:
    q, k, v = wild(rng, 2, queries, 2, 6), wild(rng, 2, keys, 2, 6), wild(rng, 2, keys, 2, 6)
    o = both("attention", q, k, v)
    last = np.broadcast_to(np.arange(queries) + keys - queries, (2, queries))
    np.testing.assert_array_equal(o, attention_by_definition(q, k, v, last))
    positions = rng.integers(-1, keys, (2, queries))
    o = both("attention", q, k, v, positions)
    np.testing.assert_array_equal(o, attention_by_definition(q, k, v, positions))
    assert not o[positions < 0].view(np.int32).any()


def test_attention_in_tiles_is_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (to_torch(wild(rng, 2, 40, 2, 6)) for _ in range(3))
    whole = torch_strict.attention(q, k, v)
    monkeypatch.setattr(sys.modules["walsh.kernels.torch.strict.attention"], "_TILE", 5000)
    monkeypatch.setattr(sys.modules["walsh.kernels.torch.strict.cayley_dickson"], "_TILE", 100)
    assert_same_bits(whole.numpy(), torch_strict.attention(q, k, v))
    both("cayley_dickson_linear", wild(rng, 9, 40), ternary_codes(rng, 8, 3, 5), wild(rng, 3))


def test_invisible_keys_and_padding_queries_never_matter(rng: np.random.Generator) -> None:
    q, k, v = wild(rng, 1, 3, 2, 4), wild(rng, 1, 6, 2, 4), wild(rng, 1, 6, 2, 4)
    positions = np.array([[1, -1, 3]])
    expected = both("attention", q, k, v, positions)
    q[:, 1] = k[:, 4:] = v[:, 4:] = np.nan
    assert_same_bits(expected, torch.from_numpy(both("attention", q, k, v, positions)))


def test_attention_of_nothing(rng: np.random.Generator) -> None:
    for b, t, s in ((0, 2, 2), (2, 0, 3), (2, 2, 0)):
        o = both("attention", wild(rng, b, t, 1, 4), wild(rng, b, s, 1, 4), wild(rng, b, s, 1, 4), np.full(t, -1))
        assert not o.any()


@pytest.mark.parametrize("positions", [[-2, 0], [0, 3]])
def test_attention_refuses_positions_out_of_range(rng: np.random.Generator, positions: list[int]) -> None:
    q, k = wild(rng, 1, 2, 1, 4), wild(rng, 1, 3, 1, 4)
    with pytest.raises(errors.RangeError):
        strict.attention(q, k, k, np.array(positions))
    with pytest.raises(errors.RangeError):
        torch_strict.attention(to_torch(q), to_torch(k), to_torch(k), torch.tensor(positions))


def make_caches(*sizes: int) -> tuple[strict.Int8KVCache, torch_strict.Int8KVCache]:
    return strict.Int8KVCache(*sizes), torch_strict.Int8KVCache(*sizes)


def test_cache_in_any_split_equals_the_full_pass(rng: np.random.Generator) -> None:
    q, k, v = (wild(rng, 2, 70, 2, 6) for _ in range(3))
    full = strict.attention(q, k, v)
    for split in ([70], [1] * 70, [33, 1, 36], [64, 0, 6]):
        for cache, convert in zip(make_caches(2, 80, 2, 6), (lambda x: x, to_torch), strict=True):
            parts, start = [], 0
            for size in split:
                piece = slice(start, start + size)
                positions = cache.append(convert(k[:, piece]), convert(v[:, piece]))
                parts.append(np.asarray(cache.attend(convert(q[:, piece]), positions)))
                start += size
            np.testing.assert_array_equal(np.concatenate(parts, 1).view(np.int32), full.view(np.int32))


def test_cache_of_sequences_of_different_lengths(rng: np.random.Generator) -> None:
    k, v, q = (wild(rng, 3, 4, 2, 6) for _ in range(3))
    counts = np.array([4, 0, 2])
    garbage = k.copy()
    garbage[2, 2:] = np.nan
    outputs = []
    for cache, convert in zip(make_caches(3, 5, 2, 6), (lambda x: x, to_torch), strict=True):
        positions = cache.append(convert(garbage), convert(v), convert(counts))
        assert positions.tolist() == [[0, 1, 2, 3], [-1] * 4, [0, 1, -1, -1]]
        first = cache.attend(convert(q), positions)
        with pytest.raises(errors.CapacityError):
            cache.append(convert(k), convert(v))
        assert cache.lengths.tolist() == [4, 0, 2]
        fork = cache.fork(convert(np.array([2, 0, 2])))
        cache.truncate(convert(np.array([1, 0, 2])))
        cache.append(convert(v), convert(k), convert(np.array([1, 1, 0])))
        assert fork.lengths.tolist() == [2, 4, 2]
        second = fork.attend(convert(q), convert(np.array([[1, 0, -1, -1], [3, 2, 1, 0], [0, 1, 0, 1]])))
        third = cache.attend(convert(q[:, :1]), convert(np.array([[1], [0], [1]])))
        cache.reset(convert(np.array([0])))
        assert cache.lengths.tolist() == [0, 1, 2]
        cache.reset()
        assert cache.lengths.tolist() == [0, 0, 0]
        outputs.append((first, second, third))
    assert_same_bits(*outputs)
    np.testing.assert_array_equal(outputs[0][0][0], strict.attention(q[:1], k[:1], v[:1])[0])
    np.testing.assert_array_equal(outputs[0][0][2, :2], strict.attention(q[2:, :2], k[2:, :2], v[2:, :2])[0])


def test_cache_refuses_and_stays(rng: np.random.Generator) -> None:
    k = wild(rng, 2, 2, 1, 4)
    bad = k.copy()
    bad[1, 1, 0, 0] = np.inf
    for cache, convert in zip(make_caches(2, 4, 1, 4), (lambda x: x, to_torch), strict=True):
        cache.append(convert(k), convert(k))
        attempts = [
            (errors.NonFiniteError, lambda c, f: c.append(f(bad), f(k))),
            (errors.NonFiniteError, lambda c, f: c.append(f(k), f(bad))),
            (errors.ShapeError, lambda c, f: c.append(f(k[:1]), f(k[:1]))),
            (errors.DTypeError, lambda c, f: c.append(f(k.astype(np.float64)), f(k))),
            (errors.RangeError, lambda c, f: c.append(f(k), f(k), f(np.array([0, 3])))),
            (errors.RangeError, lambda c, f: c.truncate(f(np.array([3, 0])))),
            (errors.RangeError, lambda c, f: c.truncate(f(np.array([-1, 0])))),
            (errors.RangeError, lambda c, f: c.fork(f(np.array([2])))),
            (errors.RangeError, lambda c, f: c.reset(f(np.array([-1])))),
            (errors.RangeError, lambda c, f: c.attend(f(k), f(np.array([[0, 2], [0, 1]])))),
        ]
        for error, attempt in attempts:
            with pytest.raises(error):
                attempt(cache, convert)
            assert cache.lengths.tolist() == [2, 2]
    for make in (strict.Int8KVCache, torch_strict.Int8KVCache):
        with pytest.raises(errors.ParameterError):
            make(1, -1, 1, 4)


def test_kv_cache_script(rng: np.random.Generator) -> None:
    k, v, q = ({key: wild(rng, 2, t, 1, 4) for key, t in (("a", 3), ("b", 2))} for _ in range(3))
    script = [["append", "a", [3, 1]], ["attend", "a"], ["fork", [1, 0]], ["truncate", [1, 2]], ["append", "b", None]]
    script += [["attend", "b"], ["reset", [0]]]
    lengths, o = strict.kv_cache(k, v, q, script=script, capacity=6)
    found_lengths, found = torch_strict.kv_cache(*map(to_torch, (k, v, q)), script=script, capacity=6)
    assert lengths.tolist() == found_lengths.tolist() == [0, 4]
    for key in ("a", "b"):
        assert_same_bits(o[key], found[key])


# embeddings


def test_embedding_and_head(rng: np.random.Generator) -> None:
    codes, scale = rng.integers(-127, 128, (50, 12)).astype(np.int8), wild(rng, 50)
    ids = rng.integers(0, 50, (2, 7))
    np.testing.assert_array_equal(both("embedding", ids, codes, scale)[1, 3], codes[ids[1, 3]] * scale[ids[1, 3]])
    both("embedding", ids[:0], codes, scale)
    for lead in ((), (3,), (2, 0)):
        x = wild(rng, *lead, 12)
        logits = both("lm_head", x, codes, scale)
        a, r = quantise("x", x)
        np.testing.assert_array_equal(logits, ((a.astype(np.int64) @ codes.T.astype(np.int64)).astype(F32) * r) * scale)
    for wrong in (-1, 50):
        with pytest.raises(errors.RangeError):
            strict.embedding(np.array([wrong]), codes, scale)
        with pytest.raises(errors.RangeError):
            torch_strict.embedding(torch.tensor([wrong]), to_torch(codes), to_torch(scale))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_hash_embedding_and_head(rng: np.random.Generator, count: int, stored: bool) -> None:
    vocabulary = 30
    tables = [rng.integers(-127, 128, (40, 12)).astype(np.int8) for _ in range(count)]
    scales = [wild(rng, 40) for _ in range(count)]
    importance = wild(rng, vocabulary, count)
    indices = rng.integers(0, 40, (vocabulary, count)) if stored else None
    ids = rng.integers(0, vocabulary, (2, 5))
    for scale in (1.0, math.sqrt(12)):
        e = both("hash_embedding", ids, tables, scales, importance, indices, scale=scale)
    both("hash_lm_head", wild(rng, 2, 3, 12), tables, scales, importance, indices)
    t = ids[1, 2]
    rows = indices[t] if stored else ([t % 1021, t // 1021] if count == 2 else [t % 1021, t % 1019, t % 1013])
    total = importance[t, 0] * (tables[0][rows[0]].astype(F32) * scales[0][rows[0]])
    for i in range(1, count):
        total = total + importance[t, i] * (tables[i][rows[i]].astype(F32) * scales[i][rows[i]])
    np.testing.assert_array_equal(e[1, 2], total * F32(math.sqrt(12)))
    with pytest.raises(errors.RangeError):
        strict.hash_embedding(ids, [t[:1] for t in tables], [s[:1] for s in scales], importance, indices)


# sampling


def test_splitmix64_known_answers() -> None:
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * i % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    assert [hex(int(z)) for z in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
    assert float(strict.uniform(0, 0)) == (0xE220A8397B1DCDAF >> 40) * 2.0**-24
    assert float(torch_strict.uniform(0, 1)) == (0x6E789E6AA1B965F4 >> 40) * 2.0**-24


def test_uniform_takes_integers_of_any_size_and_kind() -> None:
    for seed, position in ((-1, 0), (2**64 + 5, 3), (-(2**70) - 7, 2**65), (2**63, 2**64 - 1)):
        state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
        expected = (int(mix(np.array([state], dtype=np.uint64))[0]) >> 40) * 2.0**-24
        assert float(strict.uniform(seed, position)) == expected
        assert float(torch_strict.uniform(seed, position)) == expected
    expected = strict.uniform([-1, 2**64 - 1], 4)
    assert expected[0] == expected[1] == strict.uniform(np.array([-1]), np.array([4]))[0]
    assert strict.uniform(np.array([2**64 - 1], dtype=np.uint64), 4)[0] == expected[0]
    assert torch_strict.uniform(torch.tensor([-1]), 4)[0].item() == expected[0]
    for package in (strict, torch_strict):
        with pytest.raises(errors.DTypeError):
            package.uniform(0.5, 0)


def test_uniform_is_uniform() -> None:
    u = both("uniform", np.arange(200)[:, None], np.arange(500)).ravel().astype(np.float64)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * u.size)  # five standard errors
    assert abs(u.var() - 1 / 12) < 5 / math.sqrt(180 * u.size)
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - u.size / 64) ** 2 / (u.size / 64)).sum() < 63 + 5 * math.sqrt(126)


def sample_by_definition(
    logits: np.ndarray, history: list[int], temperature: float, top_k: int, top_p: float, penalty: float, u: float
) -> int:
    """One sequence, on scalars."""
    l = [F32(x) for x in logits]  # noqa: E741 - the letter of SPEC.md
    for t in set(history) - {-1}:
        l[t] = l[t] / F32(penalty) if l[t] > 0 else l[t] * F32(penalty)
    if temperature == 0:
        return l.index(max(l))
    l = [x / F32(temperature) for x in l]  # noqa: E741 - as above
    order = sorted(range(len(l)), key=lambda t: (-l[t], t))[: top_k or None]
    e = [F32(0)] * len(l)
    for t in order:
        e[t] = strict.exp(np.array(l[t] - l[order[0]]))[()]
    total = halves(e)
    cum, kept = F32(0), []
    for i, t in enumerate(order):
        p = e[t] / total
        cum = cum + p if i else p
        kept.append((t, cum))
        if cum >= F32(top_p):
            break
    return next((t for t, c in kept if c > F32(u) * kept[-1][1]), kept[-1][0])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (20, 0.9), (1, 0.5), (1000, 1e-9)])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.5])
def test_sample(rng: np.random.Generator, temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    batch = 12
    logits = (rng.standard_normal((batch, 37)) * 3).astype(F32)
    logits[:3] = np.rint(logits[:3])  # ties, and zeros of both signs
    history = rng.integers(-1, 37, (batch, 6))
    position = rng.integers(0, 1000, batch)
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty}
    ids = both("sample", logits, history, **params, seed=-3, position=position)
    u = strict.uniform(-3, position)
    for b in range(batch):
        expected = sample_by_definition(logits[b], history[b].tolist(), temperature, top_k, top_p, penalty, u[b])
        assert ids[b] == expected


def test_sample_follows_the_distribution() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.tile(np.log(p).astype(F32), (4000, 1))
    ids = both("sample", logits, seed=np.arange(4000), position=7)
    frequency = np.bincount(ids, minlength=4) / 4000
    assert (np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / 4000)).all()


def test_sample_of_no_sequences_and_no_history() -> None:
    assert both("sample", np.zeros((0, 3), dtype=F32)).shape == (0,)
    logits = np.array([[0.0, 3.0, 3.0], [1.0, -0.0, 0.0]], dtype=F32)
    assert both("sample", logits, np.empty((2, 0), dtype=np.int64), temperature=0.0).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"temperature": -0.1}, errors.ParameterError),
        ({"temperature": math.nan}, errors.ParameterError),
        ({"top_k": -1}, errors.ParameterError),
        ({"top_k": 1.5}, errors.ParameterError),
        ({"top_p": 0.0}, errors.ParameterError),
        ({"top_p": 1.1}, errors.ParameterError),
        ({"top_p": math.nan}, errors.ParameterError),
        ({"repetition_penalty": 0.0}, errors.ParameterError),
        ({"repetition_penalty": math.nan}, errors.ParameterError),
        ({"history": np.array([[4], [0]])}, errors.RangeError),
        ({"history": np.array([[-2], [0]])}, errors.RangeError),
        ({"history": np.array([0, 1])}, errors.ShapeError),
        ({"seed": np.arange(3)}, errors.ShapeError),
        ({"seed": 1.0}, errors.DTypeError),
        ({"logits": np.array([[0.0, np.nan]] * 2, dtype=F32)}, errors.NonFiniteError),
        ({"logits": np.array([[0.0, np.inf]] * 2, dtype=F32)}, errors.NonFiniteError),
        ({"logits": np.zeros((2, 0), dtype=F32)}, errors.ShapeError),
        ({"logits": np.zeros((2, 3))}, errors.DTypeError),
    ],
)
def test_sample_refuses(params: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"logits": np.zeros((2, 4), dtype=F32), **params}
    with pytest.raises(error):
        strict.sample(**arguments)
    with pytest.raises(error):
        torch_strict.sample(**to_torch(arguments))


# whole models

BASE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 61, "block_size": 48}
MODELS: dict[str, dict[str, Any]] = {
    "octonion_mixer": {**BASE, "algebra": "octonion", "n_head": 8, "head_mixing": True, "n_embd": 64},
    "hadamard_mixer": {**BASE, "algebra": "hadamard", "hadamard_size": 4, "n_head": 4, "head_mixing": True},
    "hash_2": {**BASE, "algebra": "hadamard", "hadamard_size": 8, "hash_embeddings": 2},
    "hash_3": {**BASE, "algebra": "complex", "hash_embeddings": 3, "hash_scale": True},
    "dense": {**BASE, "algebra": "dense", "rule": "round"},
    "quaternion": {**BASE, "algebra": "quaternion"},
    "sedenion_untied": {**BASE, "algebra": "sedenion", "n_embd": 64, "tied_head": False},
}


def make_weights(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """Ordinary weights: gains near 1, linears so that signals keep their size."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        w = rng.standard_normal(shape)
        if name.endswith((".beta", ".alpha", "norm.weight", "importance")):
            scale = 0.3 if name.endswith(".beta") and "mixer" not in name else 1.0
            w = scale * (1 + 0.1 * w)
        weights[name] = w.astype(F32)
    return weights


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = MODELS[request.param]
    return config, strict.export(make_weights(config), config)


def new_cache(package: Any, config: dict[str, Any], batch: int) -> list[Any]:
    sizes = (batch, config["block_size"], config["n_head"], config["n_embd"] // config["n_head"])
    return [package.Int8KVCache(*sizes) for _ in range(config["n_layer"])]


def test_logits_and_probes_are_equal_to_the_bit(model: Any, rng: np.random.Generator) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (2, 40))
    probes: dict[str, Any] = {}
    torch_probes: dict[str, Any] = {}
    expected = strict.forward(ids, weights, config, probes=probes)
    found = torch_strict.forward(to_torch(ids), to_torch(weights), config, probes=torch_probes)
    assert list(probes) == list(torch_probes) == ["x.0", "x.1", "x.2"]
    for name in probes:
        assert_same_bits(probes[name], torch_probes[name])
    assert_same_bits(expected, found)
    assert np.ptp(expected, axis=-1).min() > 0


def test_any_split_through_a_cache_equals_the_full_pass(model: Any, rng: np.random.Generator) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (2, 36))
    full = strict.forward(ids, weights, config).view(np.int32)
    for package, convert in ((strict, lambda x: x), (torch_strict, to_torch)):
        for split in ([35, 1], [1, 2, 30, 3], [33, 0, 3]):
            cache, start = new_cache(package, config, 2), 0
            for size in split:
                piece = convert(np.ascontiguousarray(ids[:, start : start + size]))
                logits = package.forward(piece, convert(weights), config, cache)
                np.testing.assert_array_equal(bits(logits), full[:, start : start + size])
                start += size


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.2}])
def test_generation(model: Any, rng: np.random.Generator, sampling: dict[str, Any]) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (2, 5))
    seed = np.array([3, 2**63 - 1]) if sampling else 0
    tokens = both("generate", ids, weights, config, 32, **sampling, seed=seed)
    assert tokens.shape == (2, 32)
    everything = np.concatenate([ids, tokens], axis=1)
    logits = strict.forward(everything[:, :-1], weights, config)  # one pass, without a cache
    settings = sampling or {"temperature": 0.0}
    for i in range(5, 37):
        again = strict.sample(logits[:, i - 1], everything[:, :i], **settings, seed=seed, position=i)
        np.testing.assert_array_equal(again, everything[:, i])


def test_a_sequence_does_not_depend_on_its_batch(model: Any, rng: np.random.Generator) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (3, 9))
    whole = torch_strict.forward(to_torch(ids), to_torch(weights), config)
    for b in range(3):
        alone = strict.forward(ids[b : b + 1], weights, config)
        np.testing.assert_array_equal(bits(alone)[0], bits(whole)[b])


@pytest.fixture
def dense() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = MODELS["dense"]
    return config, strict.export(make_weights(config), config)


def test_generate_takes_one_prompt_and_nothing_to_do(dense: Any) -> None:
    config, weights = dense
    ids = np.array([1, 2, 3])
    assert both("generate", ids, weights, config, 0).shape == (1, 0)
    np.testing.assert_array_equal(
        both("generate", ids, weights, config, 4), both("generate", ids[None], weights, config, 4)
    )
    full = config["block_size"]
    assert both("generate", np.zeros((1, full), dtype=np.int64), weights, config, 1).shape == (1, 1)
    assert both("generate", np.zeros((0, 2), dtype=np.int64), weights, config, 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("shape", "count", "error"),
    [
        ((1, 49), 1, errors.CapacityError),
        ((1, 49), 0, errors.CapacityError),
        ((1, 48), 2, errors.CapacityError),
        ((1, 0), 1, errors.ShapeError),
        ((1, 2, 3), 1, errors.ShapeError),
        ((1, 2), -1, errors.ParameterError),
        ((1, 2), 1.0, errors.ParameterError),
    ],
)
def test_generate_refuses(dense: Any, shape: tuple[int, ...], count: Any, error: type[Exception]) -> None:
    config, weights = dense
    ids = np.zeros(shape, dtype=np.int64)
    with pytest.raises(error):
        strict.generate(ids, weights, config, count)
    with pytest.raises(error):
        torch_strict.generate(to_torch(ids), to_torch(weights), config, count)


def test_forward_past_a_limit_leaves_the_cache_as_it_was(dense: Any) -> None:
    config, weights = dense
    for package, convert in ((strict, lambda x: x), (torch_strict, to_torch)):
        cache = new_cache(package, config, 1)
        package.forward(convert(np.zeros((1, 40), dtype=np.int64)), convert(weights), config, cache)
        with pytest.raises(errors.CapacityError):
            package.forward(convert(np.zeros((1, 9), dtype=np.int64)), convert(weights), config, cache)
        infinite = {**weights, "blocks.1.attention_norm.weight": np.full(32, np.inf, dtype=F32)}
        with pytest.raises(errors.NonFiniteError):  # in the second block, after the first has cached its keys
            package.forward(convert(np.zeros((1, 2), dtype=np.int64)), convert(infinite), config, cache)
        assert [layer.lengths.tolist() for layer in cache] == [[40], [40]]
        with pytest.raises(errors.ShapeError):
            package.forward(convert(np.zeros((1, 1), dtype=np.int64)), convert(weights), config, cache[:1])


def test_weights_are_checked_by_name_shape_dtype_and_value(dense: Any) -> None:
    config, weights = dense
    name = "blocks.1.ffn.down.codes"
    two = weights[name].copy()
    two[0, 0, 0] = 2
    cases = [
        ({k: v for k, v in weights.items() if k != name}, errors.ParameterError, name),
        ({**weights, "blocks.2.extra": weights[name]}, errors.ParameterError, "extra"),
        ({**weights, name: weights[name][:, :1]}, errors.ShapeError, name),
        ({**weights, name: weights[name].astype(F32)}, errors.DTypeError, name),
        ({**weights, name: two}, errors.ParameterError, "code 2"),
    ]
    ids = np.zeros((1, 2), dtype=np.int64)
    for wrong, error, message in cases:
        with pytest.raises(error, match=message):
            strict.forward(ids, wrong, config)
        with pytest.raises(error, match=message):
            torch_strict.forward(to_torch(ids), to_torch(wrong), config)


@pytest.mark.parametrize("change", [{"activation_bits": None}, {"ternary": False}])
def test_a_model_without_rounding_has_no_strict_arithmetic(dense: Any, change: dict[str, Any]) -> None:
    config, weights = dense
    ids = np.zeros((1, 2), dtype=np.int64)
    for package, convert in ((strict, lambda x: x), (torch_strict, to_torch)):
        for call in (
            lambda p, f, c: p.forward(f(ids), f(weights), c),
            lambda p, f, c: p.generate(f(ids), f(weights), c, 1),
            lambda p, f, c: p.export(f(make_weights(config)), c),
            lambda p, f, c: p.strict_weight_shapes(c),
        ):
            with pytest.raises(errors.StrictError):
                call(package, convert, {**config, **change})


# export


@pytest.mark.parametrize("name", MODELS)
def test_export_has_the_promised_shapes_and_is_the_same_in_both(name: str) -> None:
    config = MODELS[name]
    weights = make_weights(config, seed=7)
    exported = strict.export(weights, config)
    assert {n: w.shape for n, w in exported.items()} == strict.strict_weight_shapes(config)
    found = torch_strict.export(to_torch(weights), config)
    assert list(found) == list(exported)
    for key, value in exported.items():
        assert_same_bits(value, found[key])


def test_export_rounds_as_it_is_written() -> None:
    config = MODELS["octonion_mixer"]
    weights = make_weights(config)
    weights["embedding.weight"][3] = 0.0
    weights["blocks.0.mixer.weight"][:, :, 2] = 0.0
    exported = strict.export(weights, config)
    w = weights["blocks.0.ffn.up.weight"].astype(np.float64)
    gamma = np.abs(w).mean() + 1e-8
    np.testing.assert_array_equal(exported["blocks.0.ffn.up.codes"], np.clip(np.rint(w / gamma), -1, 1))
    row = weights["embedding.weight"][5].astype(np.float64)
    scale = F32(np.abs(row).max() / 127)
    assert exported["embedding.scale"][5] == scale
    np.testing.assert_array_equal(exported["embedding.codes"][5], np.rint(row / np.float64(scale)))
    assert exported["embedding.scale"][3] == 0
    assert not exported["embedding.codes"][3].any()
    mixer = weights["blocks.0.mixer.weight"].astype(np.float64)
    columns = (np.abs(mixer).max(axis=(0, 1)) / 127).astype(F32)
    np.testing.assert_array_equal(exported["blocks.0.mixer.scale"], columns)
    assert not exported["blocks.0.mixer.codes"][:, :, 2].any()
    d = config["n_embd"] // config["n_head"]
    np.testing.assert_allclose(exported["rope.inv_freq"], 10000.0 ** (-2 * np.arange(d // 2) / d), rtol=1e-15)


def test_export_keeps_codes_and_refuses_bad_weights() -> None:
    config = MODELS["dense"]
    weights = make_weights(config)
    name = "blocks.0.attention.wq.weight"
    codes = strict.export(weights, config)["blocks.0.attention.wq.codes"]
    np.testing.assert_array_equal(strict.export({**weights, name: codes}, config)["blocks.0.attention.wq.codes"], codes)
    nan = weights[name].copy()
    nan[0, 0, 0] = np.nan
    for wrong, error in (
        ({**weights, name: nan}, errors.NonFiniteError),
        ({**weights, "norm.weight": np.full(32, 1e300)}, errors.NonFiniteError),
        ({k: v for k, v in weights.items() if k != name}, errors.ParameterError),
        ({**weights, "extra": nan}, errors.ParameterError),
        ({**weights, name: weights[name][:, 1:]}, errors.ShapeError),
    ):
        with pytest.raises(error):
            strict.export(wrong, config)
        with pytest.raises(error):
            torch_strict.export(to_torch(wrong), config)


def test_stored_indices_may_come_with_tables_of_any_height(rng: np.random.Generator) -> None:
    config = MODELS["hash_2"]
    weights = make_weights(config)
    for i, height in enumerate((9, 13)):
        weights[f"embedding.tables.{i}"] = wild(rng, height, 32)
    weights["embedding.indices"] = np.stack([rng.integers(0, h, 61) for h in (9, 13)], axis=-1)
    exported = strict.export(weights, config)
    both("forward", rng.integers(0, 61, (1, 5)), exported, config)


# strided and widened inputs


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
