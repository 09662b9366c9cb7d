"""Exact products of int8 matrices against NumPy's int64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from walsh.kernels.torch import integer
from walsh.kernels.torch.strict import _integer


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250101)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 1, 4), (3, 5, 7), (16, 64, 8), (17, 33, 65), (40, 4100, 3), (0, 4, 4), (4, 0, 2)]
)
def test_products_with_codes_are_exact_up_to_the_extremes(
    rng: np.random.Generator, shape: tuple[int, int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(integer, "native_is_exact", lambda device: False)
    m, k, n = shape
    a, b = rng.integers(-128, 128, (m, k)).astype(np.int8), rng.integers(-1, 2, (n, k)).astype(np.int8)
    # One row and one column whose product reaches 128 k in absolute value.
    a[:1], b[:1] = -128, -1
    expected = a.astype(np.int64) @ b.astype(np.int64).T
    left, right = torch.from_numpy(a), torch.from_numpy(b).t()
    np.testing.assert_array_equal(integer.integer_mm(left, right).numpy(), expected)
    for terms in (1, 32):
        found = integer.exact_bmm(left[None], right[None], terms)[0]
        assert found.dtype == (torch.float32 if terms * k <= 1 << 17 else torch.int32)
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 8, 8), (3, 7, 5), (17, 1000, 3), (1, 1, 1), (0, 8, 8), (2, 8, 0)])
def test_products_of_extremes_are_exact(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, m: int, k: int, n: int, saturates: bool
) -> None:
    if not saturates and _integer.int_mm_saturates():
        pytest.skip("this CPU adds pairs of products in 16 bits")
    monkeypatch.setattr(_integer, "int_mm_saturates", lambda: saturates)
    for low in (-128, 127):  # the extremes, then anything
        a, b = rng.integers(low, 128, (m, k)).astype(np.int8), rng.integers(low, 128, (n, k)).astype(np.int8)
        expected = a.astype(np.int64) @ b.astype(np.int64).T
        found = _integer.integer_mm(torch.from_numpy(a), torch.from_numpy(b))
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(expected, found.numpy())


@pytest.mark.parametrize("k", [1, 1024, 1025, 3000])
def test_batched_products_are_exact_at_any_depth(rng: np.random.Generator, k: int) -> None:
    a, b = rng.integers(-128, 128, (2, 3, k)).astype(np.int8), np.full((2, 4, k), -128, dtype=np.int8)
    a[0] = -128
    found = _integer.integer_bmm(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_array_equal(a.astype(np.int64) @ b.astype(np.int64).swapaxes(1, 2), found.numpy())
