"""Exact products of int8 matrices against NumPy's int64, on every path that a processor may need."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from walsh.kernels.torch import integer

NATIVE = torch._int_mm
SHAPES = [
    *[(m, k, n) for m in (1, 3) for k in (1, 2, 8) for n in (1, 5)],
    *[(2, k, 3) for k in (1023, 1024, 1025, 4100)],
    *[(0, 8, 8), (8, 0, 8), (8, 8, 0), (0, 0, 0), (16, 64, 8), (17, 33, 65), (33, 40, 16)],
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250101)


@pytest.fixture
def probed_again() -> Iterator[None]:
    """The processor is asked anew inside the test, and again after it."""
    integer.native_limit.cache_clear()
    yield
    integer.native_limit.cache_clear()


def saturating_mm(a: Tensor, b: Tensor) -> Tensor:
    """``torch._int_mm`` of x86 without VNNI: 16-bit sums of pairs, saturating, of activations moved to 0 .. 255."""
    products = (a.int() + 128)[:, :, None] * b.int()
    if a.shape[1] % 2:
        products = torch.nn.functional.pad(products, (0, 0, 0, 1))
    pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(1 << 15), (1 << 15) - 1)
    return (pairs.sum(1) - 128 * b.int().sum(0)).int()


def cublas_mm(a: Tensor, b: Tensor) -> Tensor:
    assert a.shape[0] > 16
    assert a.shape[1] % 8 == b.shape[1] % 8 == 0
    return NATIVE(a, b)


def extremes(rng: np.random.Generator, *shape: int, largest: int = 128) -> Iterator[np.ndarray]:
    """The most negative values, the most positive, both in turn, and any."""
    high = min(largest, 127)
    yield np.full(shape, -largest, dtype=np.int8)
    yield np.full(shape, high, dtype=np.int8)
    yield rng.choice(np.array([-largest, high], dtype=np.int8), shape)
    yield rng.integers(-largest, high + 1, shape).astype(np.int8)


def expected_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) @ b.astype(np.int64).swapaxes(-1, -2)


def assert_equal(found: Tensor, expected: np.ndarray, dtype: torch.dtype = torch.int32) -> None:
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.numpy(), expected)


# --- one matrix


@pytest.mark.parametrize("largest", [1, 64, 65, 128])
@pytest.mark.parametrize("path", ["native", "saturates", "missing"])
def test_products_are_exact_up_to_the_extremes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, path: str, largest: int
) -> None:
    if path != "native":
        limit = 64 if path == "saturates" else 0
        monkeypatch.setattr(integer, "native_limit", lambda device: limit)
        monkeypatch.setattr(torch, "_int_mm", saturating_mm if limit else None)
    for m, k, n in SHAPES:
        for a in extremes(rng, m, k):
            for b in extremes(rng, n, k, largest=largest):
                found = integer.integer_mm(torch.from_numpy(a), torch.from_numpy(b), largest)
                assert_equal(found, expected_product(a, b))


@pytest.mark.parametrize("limit", [0, 64, None])
def test_strides_do_not_matter_and_operands_are_left_alone(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    if limit is not None:
        monkeypatch.setattr(integer, "native_limit", lambda device: limit)
    # Sums past 2^24, odd ones among them: float32 would not hold them.
    wide_a, wide_b = rng.integers(100, 128, (2, 2100, 18)), rng.integers(100, 128, (2, 2100, 10))
    wide_a, wide_b = wide_a.astype(np.int8), wide_b.astype(np.int8)
    left, right = torch.from_numpy(wide_a.copy()), torch.from_numpy(wide_b.copy())
    for index in (np.s_[0, :, ::2], np.s_[1, ::2, :4], np.s_[0, 5:6, :], np.s_[1, :, :1]):
        a, b = left[index].t(), right[index].t()
        assert_equal(integer.integer_mm(a, b), expected_product(wide_a[index].T, wide_b[index].T))
    a, b = left[:, :, ::2].mT, right[:, :, ::2].mT
    assert_equal(integer.integer_bmm(a, b), expected_product(a.numpy(), b.numpy()))
    np.testing.assert_array_equal(left.numpy(), wide_a)
    np.testing.assert_array_equal(right.numpy(), wide_b)


def test_shapes_are_filled_up_to_what_cublas_takes(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", cublas_mm)
    for m, k, n in ((1, 8, 8), (16, 8, 8), (17, 8, 8), (17, 9, 8), (17, 8, 9), (3, 7, 5), (40, 1025, 15)):
        a, b = rng.integers(-128, 128, (m, k)).astype(np.int8), rng.integers(-128, 128, (n, k)).astype(np.int8)
        assert_equal(integer._padded_mm(torch.from_numpy(a), torch.from_numpy(b)), expected_product(a, b))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(rng: np.random.Generator) -> None:
    for m, k, n in SHAPES:
        for a in extremes(rng, m, k):
            for b in extremes(rng, n, k):
                left, right = torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda()
                assert_equal(integer.integer_mm(left, right).cpu(), expected_product(a, b))
                assert_equal(integer.whole_bmm(left[None], right[None]).cpu()[0], expected_product(a, b))


# --- what the processor can do


@pytest.mark.usefixtures("probed_again")
def test_a_processor_that_saturates_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", saturating_mm)
    assert integer.native_limit(torch.device("cpu")) == 64
    a = torch.full((2, 64), 127, dtype=torch.int8)
    assert (torch._int_mm(a, a.t()) < 64 * 127 * 127).all()
    assert (integer.integer_mm(a, a) == 64 * 127 * 127).all()


@pytest.mark.usefixtures("probed_again")
@pytest.mark.parametrize("rows", [1, 32])
def test_a_processor_that_saturates_at_some_heights_only_is_found_out(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (saturating_mm if len(a) == rows else NATIVE)(a, b))
    assert integer.native_limit(torch.device("cpu")) == 64


def refuse(a: Tensor, b: Tensor) -> Tensor:
    raise NotImplementedError


@pytest.mark.usefixtures("probed_again")
@pytest.mark.parametrize(
    "substitute", [None, refuse, lambda a, b: NATIVE(a, b) + 1], ids=["absent", "refuses", "wrong"]
)
def test_without_a_native_product_there_is_none_to_trust(monkeypatch: pytest.MonkeyPatch, substitute: object) -> None:
    if substitute is None:
        monkeypatch.delattr(torch, "_int_mm")
    else:
        monkeypatch.setattr(torch, "_int_mm", substitute)
    assert integer.native_limit(torch.device("cpu")) == 0
    a = torch.full((3, 2000), -128, dtype=torch.int8)
    assert (integer.integer_mm(a, a) == 2000 << 14).all()


@pytest.mark.parametrize(("largest", "products"), [(1, 1), (64, 1), (65, 2), (128, 2)])
def test_codes_pay_once_where_pairs_saturate(monkeypatch: pytest.MonkeyPatch, largest: int, products: int) -> None:
    calls = []
    monkeypatch.setattr(integer, "native_limit", lambda device: 64)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: calls.append(a.shape) or NATIVE(a, b))
    integer.integer_mm(torch.ones(4, 8, dtype=torch.int8), torch.ones(4, 8, dtype=torch.int8), largest)
    assert len(calls) == products


# --- batches


@pytest.mark.parametrize("largest", [1, 3, 127, 128])
def test_float32_holds_every_sum_up_to_its_bound_and_not_far_beyond(largest: int) -> None:
    k = integer.exact_features(largest)
    assert 128 * largest * k <= 1 << 24 < 128 * largest * (k + 1)


def test_the_bounds_are_those_that_the_files_name() -> None:
    assert integer.exact_features(128) == 1024
    assert integer.exact_features(1) == 1 << 17


@pytest.mark.parametrize("k", [0, 1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("limit", [0, 64, None])
def test_batches_of_any_int8(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, k: int, limit: int | None
) -> None:
    if limit is not None:
        monkeypatch.setattr(integer, "native_limit", lambda device: limit)
    for lead in ((2,), (2, 3), (0,), ()):
        for a in extremes(rng, *lead, 3, k):
            for b in extremes(rng, *lead, 4, k):
                expected, left, right = expected_product(a, b), torch.from_numpy(a), torch.from_numpy(b)
                assert_equal(integer.integer_bmm(left, right), expected)
                if len(lead) == 1:
                    dtype = torch.float32 if k <= 1024 else torch.int32
                    assert_equal(integer.whole_bmm(left, right), expected, dtype)


@pytest.mark.parametrize("terms", [1, 32])
@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("limit", [0, None])
def test_batches_of_codes_at_the_bound(
    monkeypatch: pytest.MonkeyPatch, terms: int, beyond: int, limit: int | None
) -> None:
    if limit is not None:
        monkeypatch.setattr(integer, "native_limit", lambda device: limit)
    k = (1 << 17) // terms + beyond
    a = np.full((1, 2, k), -128, dtype=np.int8)
    b = np.ones((1, 2, k), dtype=np.int8)
    a[0, 1, 0], b[0, 1] = 127, -1  # 255 above the least sum: odd, and next to the bound
    found = integer.whole_bmm(torch.from_numpy(a), torch.from_numpy(b), largest=1, terms=terms)
    assert_equal(found, expected_product(a, b), torch.int32 if beyond else torch.float32)


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 0, 8), (8, 8, 0)])
def test_empty_batches(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = torch.ones(2, m, k, dtype=torch.int8), torch.ones(2, n, k, dtype=torch.int8)
    for largest, terms in ((1, 1), (128, 1), (128, 1 << 20)):
        found = integer.whole_bmm(a, b, largest, terms)
        assert found.shape == (2, m, n)
        assert not found.any()
