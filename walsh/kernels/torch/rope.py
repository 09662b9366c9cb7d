"""Rotary position embedding of interleaved pairs (SPEC.md, section *rope*).

    angle = position * theta^(-2 i / d)                                                     x [..., T, H, d], d even
    y_{2i} = x_{2i} cos - x_{2i+1} sin,      y_{2i+1} = x_{2i} sin + x_{2i+1} cos

Su et al., *RoFormer* (arXiv 2104.09864). Angles are formed in float64, so that any position is as exact as the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.torch._check import accumulate_dtype, require_float, require_integer, require_number, require_range


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of x [..., d] by angles whose cosine and sine [..., d/2] broadcast; in the dtype of x."""
    pairs = x.to(cos.dtype).unflatten(-1, (x.shape[-1] // 2, 2))  # type: ignore[no-untyped-call]  # torch's own
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """Saves cosines and sines only: the backward is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(dy, cos, -sin), None, None


def rope(x: Tensor, positions: Tensor | None = None, theta: float = 10000.0) -> Tensor:
    """Rotate each pair of features by an angle proportional to the position.

    Args:
        x: float [..., T, H, d], d even.
        positions: integer [T] or [..., T], not negative; 0 .. T-1 if None.
        theta: base of the frequencies.

    Returns:
        y [..., T, H, d] in the dtype of x.

    Raises:
        ShapeError: d is odd, or positions do not fit. RangeError: a negative position. DTypeError: wrong dtypes.
        ParameterError: theta is not positive and finite.
    """
    require_number("theta", theta, 0.0, exclusive=True)
    require_float("x", x)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., T, H, d] with d even")
    tokens, d = x.shape[-3], x.shape[-1]
    if positions is None:
        positions = torch.arange(tokens, device=x.device)
    require_integer("positions", positions)
    if positions.shape not in ((tokens,), x.shape[:-2]):
        raise ShapeError(
            f"positions have shape {list(positions.shape)}: expected [{tokens}] or {list(x.shape[:-2])}, [..., T] of x"
        )
    require_range("positions", positions, 0, 1 << 62, "padding (-1) takes position 0")
    exponents = torch.arange(0, d, 2, dtype=torch.float64, device=x.device) / max(d, 1)
    angles = positions.to(torch.float64)[..., None] * torch.pow(theta, -exponents)
    work = accumulate_dtype(x)
    cos, sin = angles.cos().to(work)[..., None, :], angles.sin().to(work)[..., None, :]
    result: Tensor = _Rotate.apply(x, cos, sin)
    return result
