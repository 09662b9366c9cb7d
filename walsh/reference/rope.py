"""Rotary position embedding, interleaved pairs (SPEC.md, section *rope*).

    angle = position * theta^(-2 i / d)                                                     x [..., T, H, d], d even
    y_{2i} = x_{2i} cos - x_{2i+1} sin,   y_{2i+1} = x_{2i} sin + x_{2i+1} cos

A rotation, so backward is the rotation by the opposite angle. Source: Su et al., *RoFormer* (arXiv 2104.09864).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from walsh.errors import ShapeError
from walsh.reference._check import (
    Float,
    as_float,
    as_indices,
    as_integer,
    as_upstream,
    ieee,
    require_axes,
    require_number,
)

ANY_POSITION = 2**53
"""One past the largest position that float64 holds exactly."""


def _check(x: ArrayLike, positions: ArrayLike | None, theta: float) -> tuple[Float, Float]:
    """Validate; x, and angles [..., T, 1, d/2] that broadcast over the heads."""
    theta = require_number("theta", theta, 0.0, exclusive=True)
    x = as_float("x", x)
    require_axes("x", x, 3, "[..., T, H, d]")
    d = x.shape[-1]
    if d % 2:
        raise ShapeError(f"x has head dimension {d}, shape {list(x.shape)}: expected an even one, made of pairs")
    if positions is None:
        positions = np.arange(x.shape[-3])
    positions = as_integer("positions", positions)
    if positions.shape not in (x.shape[-3:-2], x.shape[:-2]):
        expected = f"[T] = {list(x.shape[-3:-2])} or [..., T] = {list(x.shape[:-2])}"
        raise ShapeError(f"positions has shape {list(positions.shape)}: expected {expected}")
    positions = as_indices("positions", positions, 0, ANY_POSITION, "give padding position 0")
    return x, positions[..., None, None] * theta ** (-2 * np.arange(d // 2) / d)


def _rotate(x: Float, angle: Float) -> Float:
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], np.cos(angle), np.sin(angle)
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


@ieee
def rope(x: ArrayLike, positions: ArrayLike | None = None, theta: float = 10000.0) -> Float:
    """Rotate each pair of features by an angle that grows with the position.

    Args:
        x: float [..., T, H, d], d even.
        positions: integer [T] or [..., T], not negative; 0 .. T-1 if None.
        theta: base of the frequencies, above 0.

    Returns:
        y float64 [..., T, H, d].

    Raises:
        ShapeError: odd d, or shapes that do not fit. RangeError: a negative position. DTypeError: not float, or
        positions not integer. ParameterError: theta is not positive and finite.
    """
    x, angle = _check(x, positions, theta)
    return _rotate(x, angle)


@ieee
def rope_backward(x: ArrayLike, positions: ArrayLike | None, dy: ArrayLike, theta: float = 10000.0) -> tuple[Float]:
    """From dy float [..., T, H, d] to (dx,): the rotation by the opposite angle.

    Raises:
        As :func:`rope`; ShapeError: dy has not the shape of x.
    """
    x, angle = _check(x, positions, theta)
    return (_rotate(as_upstream("dy", dy, x.shape), -angle),)
