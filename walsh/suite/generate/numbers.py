"""Inputs of vectors: numbers from plain integer arithmetic, the same in every language and for ever.

Two sources, and no random-number library (its stream may change between versions)::

    paint    value(i) = (((i mul + add) mod mod) - sub) 2^shift
    draw     word(label, name, i) = splitmix64(fnv1a(label / name) + (i + 1) 0x9E3779B97F4A7C15)

Drawn words are mapped to integers, ternary codes or *reals*: a sign, an exponent that differs from element to element
(uneven magnitudes make the order of summation visible) and a short significand. A short significand is representable
in the dtype at hand, and keeps the float64 reference's own sums nearly exact, hence the same on every machine.
Sources: Steele, Lea and Flood, *Fast splittable pseudorandom number generators* (2014); Fowler, Noll and Vo's hash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import VectorError
from walsh.suite.tensors import DTYPES, Array

FLOATS: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16")
"""The dtypes that ordinary calls take."""

SIGNIFICANDS: dict[str, int] = {"float64": 24, "float32": 12, "float16": 11, "bfloat16": 8}
"""Bits in the significand of a drawn real."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def splitmix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, elementwise modulo 2^64."""
    z = words.copy()
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def fnv1a(text: str) -> int:
    """64-bit FNV-1a hash of the UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


class Draw:
    """Tensors that depend on a label and a name only.

    Args:
        label: of the case, such as ``cayley_dickson/rounded/tail-17``.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def words(self, name: str, count: int) -> NDArray[np.uint64]:
        """uint64 [count]."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        return splitmix64(steps + np.uint64(fnv1a(f"{self.label}/{name}")))

    def integers(self, name: str, shape: Sequence[int], low: int, high: int, dtype: str = "int64") -> Array:
        """Integers low <= i <= high, as any dtype that holds them."""
        span = np.uint64(high - low + 1)
        values = ((self.words(name, math.prod(shape)) >> np.uint64(16)) % span).astype(np.int64) + low
        return values.reshape(tuple(shape)).astype(DTYPES[dtype])

    def nonzero(self, name: str, shape: Sequence[int], size: int, dtype: str = "int64") -> Array:
        """Integers -size <= i <= size but 0: a factor of 0 would hide the other one."""
        values = self.integers(name, shape, -size, size)
        return np.where(values == 0, size, values).astype(DTYPES[dtype])

    def codes(self, name: str, shape: Sequence[int], dtype: str = "int8") -> Array:
        """Ternary codes, a third of each."""
        return self.integers(name, shape, -1, 1, dtype)

    def reals(self, name: str, shape: Sequence[int], dtype: str = "float32", low: int = -4, high: int = 1) -> Array:
        """Reals +-(1 + m) 2^e with exponents low <= e <= high; none is zero."""
        words = self.words(name, math.prod(shape))
        bits = SIGNIFICANDS[dtype] - 1
        sign = np.where(words & np.uint64(1), -1.0, 1.0)
        exponent = ((words >> np.uint64(8)) % np.uint64(high - low + 1)).astype(np.int64) + low
        fraction = (words >> np.uint64(64 - bits)).astype(np.float64)
        values = np.ldexp(sign * (1.0 + fraction * 2.0**-bits), exponent)
        return values.reshape(tuple(shape)).astype(DTYPES[dtype])

    def positive(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Array:
        """Reals in [1/2, 2): scales and norm weights."""
        return np.abs(self.reals(name, shape, dtype, -1, 0))

    def search(self, make: Callable[[Draw], Array], accept: Callable[[Array], bool], tries: int = 2000) -> Array:
        """The first tensor of a numbered family that is accepted: how inputs are kept away from rounding ties.

        Raises:
            VectorError: if none of ``tries`` is.
        """
        for number in range(tries):
            values = make(Draw(f"{self.label}#{number}"))
            if accept(values):
                return values
        raise VectorError(f"{self.label}: none of {tries} drawn tensors is acceptable; ask for a smaller one")


def clear_of_ties(scaled: Array, margin: float = 1e-3) -> bool:
    """Whether every value stays ``margin`` away from the half-integers, where rounding jumps."""
    distance = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5)
    return bool((distance >= margin).all())


def ternary_is_clear(w: Array) -> bool:
    """Whether ``w / gamma`` (rule absmean) stays clear of ties, so that any sound gamma gives the same codes."""
    exact = np.abs(w.astype(np.float64))
    return clear_of_ties(np.minimum(exact / (exact.mean() + 1e-8), 2.0))


def activations_are_clear(x: Array) -> bool:
    """Whether ``x * scale`` stays clear of ties in every row."""
    exact = x.astype(np.float64)
    return clear_of_ties(exact * (127.0 / np.maximum(np.abs(exact).max(axis=-1, keepdims=True), 1e-5)))


def unit(array: Array) -> float:
    """The largest power of two of which every element is a multiple; 1 for a tensor of zeros.

    Integer and dyadic tensors live on this grid: sums of products of grid points are exact while they stay below
    2^24 grid units in float32, whatever the order of summation.
    """
    values = np.abs(array.astype(np.float64)).ravel()
    values = values[(values > 0) & np.isfinite(values)]
    if values.size == 0:
        return 1.0
    significand, exponent = np.frexp(values)
    integers = np.ldexp(significand, 53).astype(np.int64)
    trailing = np.log2((integers & -integers).astype(np.float64))
    return float(2.0 ** (exponent - 53 + trailing).min())


def filled(shape: Sequence[int], value: float, dtype: str = "float32") -> Array:
    """A constant tensor."""
    return np.full(tuple(shape), value, dtype=DTYPES[dtype])


def listed(values: Any, dtype: str = "float32") -> Array:
    """A tensor from nested lists."""
    return np.array(values, dtype=np.float64 if dtype in FLOATS else None).astype(DTYPES[dtype])
