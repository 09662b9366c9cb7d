"""Rotary position embedding in strict arithmetic (SPEC.md, *rope* and *Strict arithmetic*).

    angle = f64(position) * inv_freq;   (x0, x1) -> (x0 c - x1 s, x0 s + x1 c)      pairs (2i, 2i + 1), products rounded

x [..., T, H, d], inv_freq float64 [d/2], positions [T] or [..., T].
"""

from __future__ import annotations

import torch
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.torch._check import require_range, require_shape
from walsh.kernels.torch.strict._arithmetic import sincos
from walsh.kernels.torch.strict._check import as_integers, require_dtype, require_float32


def rope(x: Tensor, inv_freq: Tensor, positions: Tensor) -> Tensor:
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
    require_float32(x=x)
    require_dtype("inv_freq", inv_freq, torch.float64)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., T, H, d] with d even")
    require_shape("inv_freq", inv_freq, (x.shape[-1] // 2,), "[d/2]")
    positions = as_integers("positions", positions, x.device)
    if positions.shape not in ((x.shape[-3],), x.shape[:-2]):
        raise ShapeError(f"positions have shape {list(positions.shape)}: expected [T] or [..., T] of x {list(x.shape)}")
    require_range("positions", positions, 0, 1 << 62, "use max(position, 0) for padding")
    sin, cos = sincos(positions.to(torch.float64)[..., None] * inv_freq)
    sin, cos = sin[..., None, :], cos[..., None, :]  # one angle for all heads
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).reshape(x.shape)
