"""Rotary position embedding of interleaved pairs (SPEC.md, section *rope*).

    angle = position * theta^(-2 i / d)                                                     x [..., T, H, d], d even
    y_{2i} = x_{2i} cos - x_{2i+1} sin,      y_{2i+1} = x_{2i} sin + x_{2i+1} cos

Su et al., *RoFormer* (arXiv 2104.09864). A pair is a complex number and its rotation one complex product with
``cos + i sin``: one pass over the data. Angles are formed in float64, so that any position is as exact as the first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.torch._check import accumulate_dtype, require_float, require_integer, require_number, require_range

REMEMBERED = 1 << 20
"""Angles of one table up to which it is remembered: 8 MiB in float32."""


def rotation(positions: Tensor, d: int, dtype: torch.dtype, theta: float = 10000.0) -> Tensor:
    """Cosine and sine of every angle: integer positions [...] to ``dtype`` [..., 1, d/2, 2], for all heads alike."""
    exponents = torch.arange(0, d, 2, dtype=torch.float64, device=positions.device) / max(d, 1)
    angles = positions.to(torch.float64)[..., None] * torch.pow(theta, -exponents)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)[..., None, :, :]


@lru_cache(maxsize=8)
def _first_rotations(tokens: int, d: int, dtype: torch.dtype, theta: float) -> NDArray[Any]:
    """:func:`rotation` of positions 0 .. tokens - 1, a function of these numbers alone; not to be written to.

    An array, because a tensor made in inference mode could not be saved for a gradient later.
    """
    table: NDArray[Any] = rotation(torch.arange(tokens), d, dtype, theta).numpy()
    return table


def _by_default(x: Tensor, theta: float) -> Tensor:
    """The rotation of positions 0 .. T-1 for x [..., T, H, d]."""
    tokens, d, dtype = x.shape[-3], x.shape[-1], accumulate_dtype(x)
    # Tensors without content, and those of a compiler, would leave a table without content behind.
    ordinary = type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if ordinary and x.device.type == "cpu" and tokens * d <= 2 * REMEMBERED:
        return torch.from_numpy(_first_rotations(tokens, d, dtype, theta))
    return rotation(torch.arange(tokens, device=x.device), d, dtype, theta)


def _pairs(x: Tensor) -> Tensor:
    """[..., d] as [..., d/2, 2], which may be seen as complex numbers."""
    if not x.is_contiguous() or x.storage_offset() % 2:
        x = x.clone(memory_format=torch.contiguous_format)
    return x.view(*x.shape[:-1], x.shape[-1] // 2, 2)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate x; in new memory and the dtype of x."""
    if x.numel() == 0:
        return torch.empty_like(x)
    wide = x.to(angles.dtype)
    if torch.compiler.is_compiling() or wide.dtype == torch.float64:
        # The compiler fuses these products, but knows no complex numbers. In float64 a fused multiply-add in some lanes
        # of a complex product shows.
        pairs, cos, sin = wide.unflatten(-1, (x.shape[-1] // 2, 2)), angles[..., 0], angles[..., 1]  # type: ignore[no-untyped-call]  # torch's own
        even, odd = pairs[..., 0], pairs[..., 1]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
    y = torch.empty(x.shape, dtype=wide.dtype, device=x.device)
    pairs, turned = (torch.view_as_complex(_pairs(z)) for z in (wide, y))
    torch.mul(pairs, torch.view_as_complex(angles), out=turned)
    return y.to(x.dtype)


class _Rotate(torch.autograd.Function):
    """Saves cosines and sines only: the backward is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor) -> Tensor:
        ctx.save_for_backward(angles)
        return _turn(x, angles)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (angles,) = ctx.saved_tensors
        cos, sin = angles.unbind(-1)
        return rotate(dy, torch.stack((cos, -sin), dim=-1)), None


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the pairs of x [..., T, H, d] by a :func:`rotation` of its positions [T] or [..., T]."""
    result: Tensor = _Rotate.apply(x, angles)
    return result


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
    if positions is None:
        return rotate(x, _by_default(x, theta))
    tokens = x.shape[-3]
    require_integer("positions", positions)
    if positions.shape not in ((tokens,), x.shape[:-2]):
        raise ShapeError(
            f"positions have shape {list(positions.shape)}: expected [{tokens}] or {list(x.shape[:-2])}, [..., T] of x"
        )
    require_range("positions", positions, 0, 1 << 62, "padding (-1) takes position 0")
    return rotate(x, rotation(positions, x.shape[-1], accumulate_dtype(x), theta))
