"""The arithmetic that every backend repeats to the bit (SPEC.md, *Strict arithmetic*), in PyTorch.

    exp(x)     Cephes expf without fused operations: n = rint(x / log 2), a polynomial in x - n log 2, times 2^n
    hsum(x)    pad with +0 to a power of two, add halves until one is left, then + 0
    psum(x)    hsum in blocks of 32 positions, block totals left to right
    sincos(a)  Cody-Waite reduction by pi / 2 and the fdlibm kernels, in float64, rounded once to float32
    quantise   m = max(absmax(x), 1e-5), s = 127 / m, a = clip(rint(x s), -128, 127), r = 1 / s

PyTorch offers few operations that are the IEEE ones on every device: add, subtract and multiply of tensors, ``round``,
comparisons, maxima, and division *of a tensor by a tensor*. A number in a quotient becomes a reciprocal and a product
(on the left on CPU, on the right on CUDA); ``sqrt`` of float32 is one unit off in places, and so are ``exp``, ``sum``
and ``cumsum``. Hence ``divide`` and ``root``, the only places where a quotient and a root are formed, and a lint that
keeps the rest out. Do not run these functions under ``torch.compile``: it may fuse a product and a sum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from walsh.errors import NonFiniteError, RangeError, ShapeError
from walsh.kernels.torch.strict._check import require_dtype, require_float32, require_last_axis


def _round_to_float32(*numbers: float) -> tuple[float, ...]:
    return tuple(torch.tensor(numbers, dtype=torch.float32).tolist())


_LOG2_E, _LN2_HIGH, _LN2_LOW = _round_to_float32(1.44269504, 0.693359375, -2.12194440e-4)
_EXP = _round_to_float32(
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
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


def divide(a: Tensor | float, b: Tensor) -> Tensor:
    """The IEEE quotient a / b; a number is first spread into a tensor like b."""
    return (a if isinstance(a, Tensor) else torch.full_like(b, a)) / b


def root(x: Tensor) -> Tensor:
    """The correctly rounded float32 square root: taken in float64, which leaves no double rounding."""
    return torch.sqrt(x.to(torch.float64)).to(torch.float32)


def reciprocal_root(n: int) -> float:
    """f32(1 / sqrt(n)), computed in float64 and rounded once."""
    return _round_to_float32(1.0 / math.sqrt(n))[0]


def _horner(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    p = torch.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * z + coefficient
    return p


def exp(x: Tensor) -> Tensor:
    """e^x within one unit in the last place.

    Args:
        x: float32 [...]; NaN propagates, x < -87 gives +0, x > 88 counts as 88.

    Returns:
        float32 [...].

    Raises:
        DTypeError: if x is not float32.
    """
    require_float32(x=x)
    clipped = torch.clamp(x, -87.0, 88.0)
    n = torch.round(clipped * _LOG2_E)
    t = (clipped - n * _LN2_HIGH) - n * _LN2_LOW
    y = (_horner(t, _EXP) * (t * t) + t) + 1.0
    exponent = torch.where(torch.isnan(n), 0.0, n).to(torch.int32)
    power_of_two = ((exponent + 127) << 23).view(torch.float32)
    return torch.where(x < -87.0, 0.0, y * power_of_two)


def _positions_first(x: Tensor, axis: int) -> Tensor:
    require_float32(x=x)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"axis {axis} of a tensor of shape {list(x.shape)}: expected {-x.ndim} .. {x.ndim - 1}")
    return x.movedim(axis, 0)


def _padded(x: Tensor, length: int) -> Tensor:
    missing = length - x.shape[0]
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _halves(x: Tensor) -> Tensor:
    """Hsum along the first axis, whose length is a power of two."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = x[:half] + x[half:]
    return x[0] + 0.0  # -0 + +0 is +0: a sum of nothing but -0 has one sign everywhere


def hsum(x: Tensor, axis: int = -1) -> Tensor:
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
    x = _positions_first(x, axis)
    return _halves(_padded(x, 1 << max(x.shape[0] - 1, 0).bit_length()))


def psum(x: Tensor, axis: int = -1) -> Tensor:
    """Sum over positions: the same for a full pass and for any split of it, because blocks start at position 0.

    Args, returns and raises as :func:`hsum`.
    """
    x = _positions_first(x, axis)
    blocks = max(-(-x.shape[0] // BLOCK), 1)
    totals = _halves(_padded(x, blocks * BLOCK).reshape(blocks, BLOCK, *x.shape[1:]).movedim(1, 0))
    result = totals[0]
    for block in range(1, blocks):
        result = result + totals[block]
    return result


def sincos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine, computed in float64 and rounded once.

    Args:
        angle: float64 [...], 0 <= angle <= 1e5.

    Returns:
        (sin, cos), float32 [...] each.

    Raises:
        DTypeError: if angle is not float64.
        RangeError: for an angle outside 0 .. 1e5, NaN included.
    """
    require_dtype("angle", angle, torch.float64)
    inside = (angle >= 0) & (angle <= LARGEST_ANGLE)
    if not bool(inside.all()):
        wrong = angle[~inside][0].item()
        raise RangeError(f"angle {wrong}: expected 0 .. {LARGEST_ANGLE:g}; use a smaller position")
    m = torch.round(angle * _TWO_OVER_PI)
    r = angle
    for part in _HALF_PI:
        r = r - m * part
    z = r * r
    s = r + r * (z * _horner(z, _SIN))
    c = (1.0 - 0.5 * z) + (z * z) * _horner(z, _COS)
    quadrant = m.to(torch.int64) & 3
    odd, lower, left = (quadrant & 1) == 1, quadrant >= 2, (quadrant == 1) | (quadrant == 2)
    sine, cosine = torch.where(odd, c, s), torch.where(odd, s, c)
    sine, cosine = torch.where(lower, -sine, sine), torch.where(left, -cosine, cosine)
    return sine.to(torch.float32), cosine.to(torch.float32)


def quantise(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
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
    require_dtype(name, x, torch.float32)
    require_last_axis(name, x, "C")
    largest = torch.amax(torch.abs(x), dim=-1, keepdim=True)  # NaN and infinity come through to here
    finite = torch.isfinite(largest)
    if not bool(finite.all()):
        row = torch.nonzero(~finite)[0].tolist()[:-1]
        raise NonFiniteError(f"{name} holds NaN or infinity in row {row}: an int8 quantiser needs finite numbers")
    s = divide(127.0, torch.clamp(largest, min=1e-5))
    a = torch.clamp(torch.round(x * s), -128.0, 127.0).to(torch.int8)
    return a, divide(1.0, s)
