"""Rotary position embedding in strict arithmetic (SPEC.md, *rope* and *Strict arithmetic*).

    angle = f64(position) * inv_freq;   (x0, x1) -> (x0 c - x1 s, x0 s + x1 c)      pairs (2i, 2i + 1), products rounded

x [..., T, H, d], inv_freq float64 [d/2], positions [T] or [..., T].
"""

from __future__ import annotations

import numpy as np

from walsh.errors import ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Float32, sincos
from walsh.reference.strict._check import Array


@np.errstate(over="ignore", invalid="ignore")
def rope(x: Array, inv_freq: Array, positions: Array) -> Float32:
    """Rotate every pair of features by its angle.

    Args:
        x: float32 [..., T, H, d], d even.
        inv_freq: float64 [d/2].
        positions: integers [T] or [..., T], non-negative.

    Returns:
        float32 [..., T, H, d].

    Raises:
        DTypeError: for another dtype.
        ShapeError: if d is odd or shapes do not fit.
        RangeError: for a negative position, or an angle above 1e5.
    """
    x = _check.typed("x", x, "float32")
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., T, H, d] with d even")
    inv_freq = _check.shaped("inv_freq", _check.typed("inv_freq", inv_freq, "float64"), (x.shape[-1] // 2,), "[d/2]")
    positions = _check.typed("positions", positions, "integer")
    if positions.shape not in ((x.shape[-3],), x.shape[:-2]):
        raise ShapeError(f"positions have shape {list(positions.shape)}: expected [T] or [..., T] of x {list(x.shape)}")
    _check.within("positions", positions, 0, 1 << 62, "use max(position, 0) for padding")
    sin, cos = sincos(positions.astype(np.float64)[..., None] * inv_freq)
    sin, cos = sin[..., None, :], cos[..., None, :]  # one angle for all heads
    even, odd = x[..., 0::2], x[..., 1::2]
    y = np.empty(x.shape, dtype=np.float32)
    y[..., 0::2] = even * cos - odd * sin
    y[..., 1::2] = even * sin + odd * cos
    return y
