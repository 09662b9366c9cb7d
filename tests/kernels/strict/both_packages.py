"""Strict arithmetic in NumPy and in PyTorch: one call, both packages, the same bits.

    both("exp", x)    walsh.reference.strict.exp(x), once walsh.kernels.torch.strict.exp(x) has given the same bits
    halves(values)    hsum of SPEC.md on scalars: the first half of the row plus the second, until one is left
    wild(rng, 4, 5)   reals of unlike magnitudes, with zeros of both signs and subnormals among them

``both`` also sees that neither package has touched its inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict

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
