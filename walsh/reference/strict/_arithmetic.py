"""The arithmetic that every backend repeats to the bit (SPEC.md, *Strict arithmetic*).

    exp(x)     Cephes expf without fused operations: n = rint(x / log 2), a polynomial in x - n log 2, times 2^n
    hsum(x)    pad with +0 to a power of two, add halves until one is left, then + 0
    psum(x)    hsum in blocks of 32 positions, block totals left to right
    sincos(a)  Cody-Waite reduction by pi / 2 and the fdlibm kernels, in float64, rounded once to float32
    quantise   m = max(absmax(x), 1e-5), s = 127 / m, a = clip(rint(x s), -128, 127), r = 1 / s

Only add, subtract, multiply, divide and square root, each rounded to nearest even, never fused. Constants are float32
scalars (float64 in ``sincos``), so that NumPy never widens an intermediate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from walsh.errors import NonFiniteError, RangeError, ShapeError
from walsh.reference.strict._check import Array, featured, typed

Float32 = NDArray[np.float32]
Codes = NDArray[np.int8]

ZERO, ONE = np.float32(0), np.float32(1)

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)  # 10 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_EXP = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)

_TWO_OVER_PI = 6.36619772367581382433e-01
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_SIN = (
    1.58969099521155010221e-10,
    -2.50507602534068634195e-08,
    2.75573137070700676789e-06,
    -1.98412698298579493134e-04,
    8.33333333332248946124e-03,
    -1.66666666666666324348e-01,
)
_COS = (
    -1.13596475577881948265e-11,
    2.08757232129817482790e-09,
    -2.75573143513906633035e-07,
    2.48015872894767294178e-05,
    -1.38888888888741095749e-03,
    4.16666666666666019037e-02,
)
LARGEST_ANGLE = 1e5
"""Above this the three-part pi / 2 no longer leaves a correctly rounded remainder."""

BLOCK = 32
"""Positions in one block of ``psum``."""


@np.errstate(over="ignore", invalid="ignore")
def exp(x: Array) -> Float32:
    """e^x within one unit in the last place.

    Args:
        x: float32 [...]; NaN propagates, x < -87 gives +0, x > 88 counts as 88.

    Returns:
        float32 [...].

    Raises:
        DTypeError: if x is not float32.
    """
    x = typed("x", x, "float32")
    clipped = np.minimum(np.maximum(x, np.float32(-87)), np.float32(88))
    n = np.rint(clipped * _LOG2_E)
    t = (clipped - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.full_like(t, _EXP[0])
    for coefficient in _EXP[1:]:
        p = p * t + coefficient
    y = (p * (t * t) + t) + ONE
    exponent = np.where(np.isnan(n), ZERO, n).astype(np.int32)
    power_of_two = ((exponent + np.int32(127)) << np.int32(23)).astype(np.int32).view(np.float32)
    return np.where(x < np.float32(-87), ZERO, y * power_of_two)


def _positions_first(x: Array, axis: int) -> Array:
    x = typed("x", x, "float32")
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"axis {axis} of a tensor of shape {list(x.shape)}: expected {-x.ndim} .. {x.ndim - 1}")
    return np.moveaxis(x, axis, 0)


def _padded(x: Array, length: int) -> Array:
    return np.concatenate([x, np.zeros((length - x.shape[0], *x.shape[1:]), dtype=np.float32)])


def _halves(x: Array) -> Float32:
    """Sum in halves along the first axis."""
    x = _padded(x, 1 << max(x.shape[0] - 1, 0).bit_length())
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = x[:half] + x[half:]
    return np.asarray(x[0] + ZERO)  # -0 + +0 is +0: a sum of nothing but -0 has one sign everywhere


@np.errstate(over="ignore", invalid="ignore")
def hsum(x: Array, axis: int = -1) -> Float32:
    """Sum along one axis in halves.

    Args:
        x: float32 [..., n], n of any size (0 gives +0).
        axis: the axis to be summed.

    Returns:
        float32 [...], x without this axis; never -0.

    Raises:
        DTypeError: if x is not float32.
        ShapeError: if x has no such axis.
    """
    return _halves(_positions_first(x, axis))


@np.errstate(over="ignore", invalid="ignore")
def psum(x: Array, axis: int = -1) -> Float32:
    """Sum over positions: the same for a full pass and for any split of it, because blocks start at position 0.

    Args, returns and raises as :func:`hsum`.
    """
    x = _positions_first(x, axis)
    blocks = max(-(-x.shape[0] // BLOCK), 1)
    totals = [_halves(block) for block in _padded(x, blocks * BLOCK).reshape(blocks, BLOCK, *x.shape[1:])]
    result = totals[0]
    for total in totals[1:]:
        result = result + total
    return np.asarray(result)


def _horner(z: Array, coefficients: tuple[float, ...]) -> Array:
    p = np.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * z + np.float64(coefficient)
    return p


def sincos(angle: Array) -> tuple[Float32, Float32]:
    """Sine and cosine, computed in float64 and rounded once.

    Args:
        angle: float64 [...], 0 <= angle <= 1e5.

    Returns:
        (sin, cos), float32 [...] each.

    Raises:
        DTypeError: if angle is not float64.
        RangeError: for an angle outside 0 .. 1e5, NaN included.
    """
    angle = typed("angle", angle, "float64")
    outside = ~((angle >= 0) & (angle <= LARGEST_ANGLE))
    if outside.any():
        raise RangeError(f"angle {angle[outside][0]}: expected 0 .. {LARGEST_ANGLE:g}; use a smaller position")
    m = np.rint(angle * np.float64(_TWO_OVER_PI))
    r = angle
    for part in _HALF_PI:
        r = r - m * np.float64(part)
    z = r * r
    s = r + r * (z * _horner(z, _SIN))
    c = (np.float64(1) - np.float64(0.5) * z) + (z * z) * _horner(z, _COS)
    quadrant = m.astype(np.int64) % 4
    sine = np.choose(quadrant, [s, c, -s, -c])
    cosine = np.choose(quadrant, [c, -s, -c, s])
    return np.asarray(sine, dtype=np.float32), np.asarray(cosine, dtype=np.float32)


def quantise(name: str, x: Array) -> tuple[Codes, Float32]:
    """int8 codes per row of the last axis and what one of them is worth.

    Args:
        name: what x is called in an error message.
        x: float32 [..., C], finite, C at least 1.

    Returns:
        (a int8 [..., C], r float32 [..., 1]); the value represented is a * r.

    Raises:
        DTypeError: if x is not float32.
        ShapeError: if C is 0.
        NonFiniteError: if x holds NaN or infinity.
    """
    x = featured(name, typed(name, x, "float32"), None, "C")
    finite = np.isfinite(x)
    if not finite.all():
        row = np.argwhere(~finite)[0].tolist()
        raise NonFiniteError(f"{name} holds {x[tuple(row)]} at {row}: an int8 quantiser needs finite numbers")
    m = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    s = np.float32(127) / m
    a = np.clip(np.rint(x * s), np.float32(-128), np.float32(127)).astype(np.int8)
    return a, ONE / s


def integer_product(a: Array, w: Array) -> Array:
    """``a @ w`` of integers, exact: float64 holds every partial sum of int8 products below 2^53.

    Args:
        a: integers [..., M, K].
        w: integers [..., K, N].

    Returns:
        float64 [..., M, N] that holds integers.
    """
    return np.asarray(a, dtype=np.float64) @ np.asarray(w, dtype=np.float64)


def reciprocal_root(n: int) -> np.float32:
    """f32(1 / sqrt(n)), computed in float64 and rounded once."""
    return np.float32(1.0 / np.sqrt(np.float64(n)))
