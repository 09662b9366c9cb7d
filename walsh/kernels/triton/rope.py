# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Rotary position embedding, interleaved pairs (SPEC.md, sections *rope* and *strict arithmetic*).

    angle = position * theta^(-2 i / d)
    y_{2i} = x_{2i} cos - x_{2i+1} sin,      y_{2i+1} = x_{2i} sin + x_{2i+1} cos            x [..., T, H, d]

after Su et al., *RoFormer* (arXiv 2104.09864). Two launches: cosines and sines of each position once, in float64,
because a float32 angle is wrong by a tenth of a radian a million tokens out; then the rotation, shared by all heads.
The backward rotates by the opposite angle.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import require_float, require_integer, require_range
from walsh.kernels.triton._device import narrow, rint, widen
from walsh.kernels.triton._launch import cdiv, flat_block, launch, require_device
from walsh.kernels.triton._ops import operation


@triton.jit
def strict_sincos(angle):
    """Sine and cosine of SPEC.md, section *strict arithmetic*: reduction by pi/2 in three parts, two polynomials."""
    m = rint(angle * 6.36619772367581382433e-01)
    r = ((angle - m * 1.57079632673412561417e00) - m * 6.07710050630396597660e-11) - m * 2.02226624879595063154e-21
    z = r * r
    s = tl.full(angle.shape, 1.58969099521155010221e-10, tl.float64)
    s = s * z + -2.50507602534068634195e-08
    s = s * z + 2.75573137070700676789e-06
    s = s * z + -1.98412698298579493134e-04
    s = s * z + 8.33333333332248946124e-03
    s = s * z + -1.66666666666666324348e-01
    c = tl.full(angle.shape, -1.13596475577881948265e-11, tl.float64)
    c = c * z + 2.08757232129817482790e-09
    c = c * z + -2.75573143513906633035e-07
    c = c * z + 2.48015872894767294178e-05
    c = c * z + -1.38888888888741095749e-03
    c = c * z + 4.16666666666666019037e-02
    sine = r + r * (z * s)
    cosine = (1.0 - 0.5 * z) + (z * z) * c
    quadrant = m.to(tl.int64) & 3
    swap = (quadrant & 1) == 1
    sin, cos = tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)
    return tl.where(quadrant >= 2, -sin, sin), tl.where((quadrant == 1) | (quadrant == 2), -cos, cos)


@triton.jit
def rope_table_kernel(positions, inv_freq, cos, sin, count, pairs, STRICT: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin [positions, pairs] of position * inv_freq."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    position = tl.load(positions + index // pairs, mask=inside, other=0).to(tl.float64)
    angle = position * tl.load(inv_freq + index % pairs, mask=inside, other=0.0)
    if STRICT:
        s, c = strict_sincos(angle)
    else:
        s, c = tl.sin(angle), tl.cos(angle)
    tl.store(cos + index, c.to(cos.dtype.element_ty), mask=inside)
    tl.store(sin + index, s.to(sin.dtype.element_ty), mask=inside)


@triton.jit
def rope_kernel(x, cos, sin, y, count, pairs, heads, period, INVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Rotate pairs: token r of x [tokens, heads, 2 * pairs] by row r % period of the table."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    row = (index // (heads * pairs)) % period * pairs + index % pairs
    c = tl.load(cos + row, mask=inside, other=0.0)
    s = tl.load(sin + row, mask=inside, other=0.0)
    if INVERSE:
        s = -s
    a = widen(tl.load(x + 2 * index, mask=inside, other=0.0))
    b = widen(tl.load(x + 2 * index + 1, mask=inside, other=0.0))
    tl.store(y + 2 * index, narrow(a * c - b * s, y.dtype.element_ty), mask=inside)
    tl.store(y + 2 * index + 1, narrow(a * s + b * c, y.dtype.element_ty), mask=inside)


def _fake_table(positions, inv_freq, dtype, strict):
    shape = (positions.numel(), inv_freq.shape[0])
    return inv_freq.new_empty(shape, dtype=dtype), inv_freq.new_empty(shape, dtype=dtype)


@operation("rope_table", _fake_table)
def rope_table(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype, strict: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, d / 2] for float64 inv_freq [d / 2]: one launch."""
    require_device(positions, inv_freq)
    cos, sin = _fake_table(positions, inv_freq, dtype, strict)
    count, block = cos.numel(), flat_block(cos.numel())
    args = (positions.contiguous(), inv_freq.contiguous(), cos, sin, count, inv_freq.shape[0])
    launch(rope_table_kernel, (cdiv(count, block),), *args, fusion=not strict, STRICT=strict, BLOCK=block)
    return cos, sin


def _fake_rotate(x, cos, sin, inverse, strict):
    return x.new_empty(x.shape)


@operation("rope_rotate", _fake_rotate)
def rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool, strict: bool) -> Tensor:
    """Rotate x [..., T, H, d] by the rows of the table, repeated over the leading axes: one launch."""
    require_device(x, cos, sin)
    y = _fake_rotate(x, cos, sin, inverse, strict)
    count, block = x.numel() // 2, flat_block(x.numel() // 2)
    args = (x.contiguous(), cos, sin, y, count, cos.shape[1], x.shape[-2], max(1, cos.shape[0]))
    launch(rope_kernel, (cdiv(count, block),), *args, fusion=not strict, INVERSE=inverse, BLOCK=block)
    return y


def _setup(ctx, inputs, output):
    _, cos, sin, ctx.inverse, ctx.strict = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx, dy):
    return rotate(dy, *ctx.saved_tensors, not ctx.inverse, ctx.strict), None, None, None, None


rotate.differentiate(_differentiate, _setup)


def check_rope(x: Tensor, positions: Tensor | None) -> Tensor:
    """Validate and return positions, 0 .. T-1 where absent."""
    require_float("x", x)
    if x.ndim < 3 or x.shape[-1] % 2 or not x.shape[-1]:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., T, H, d] with d even and positive")
    tokens = x.shape[-3]
    if positions is None:
        return torch.arange(tokens, device=x.device)
    require_integer("positions", positions)
    if tuple(positions.shape) not in {(tokens,), tuple(x.shape[:-2])}:
        wanted = f"[{tokens}] or {list(x.shape[:-2])}"
        raise ShapeError(f"positions has shape {list(positions.shape)}: expected {wanted}, that is [T] or [..., T]")
    require_range("positions", positions, 0, 2**62, "positions count from 0; padding takes max(position, 0)")
    return positions


def inverse_frequencies(d: int, theta: float, device: torch.device) -> Tensor:
    """float64 [d / 2]: theta^(-2 i / d)."""
    return theta ** (torch.arange(0, d, 2, dtype=torch.float64, device=device) / -d)


def rope(x: Tensor, positions: Tensor | None = None, theta: float = 10000.0) -> Tensor:
    """Rotate pairs of features by angles that grow with the position.

    Args:
        x: float [..., T, H, d], d even.
        positions: integer [T] or [..., T], not negative; 0 .. T-1 if absent.
        theta: base of the frequencies.

    Returns:
        y like x.

    Raises:
        ShapeError: odd d or positions of another shape. RangeError: a negative position. DTypeError: wrong dtypes.
        ParameterError: theta not positive. BackendError: no machine for Triton.
    """
    positions = check_rope(x, positions)
    if not theta > 0:
        raise ParameterError(f"theta is {theta}: expected a positive number such as 10000")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = rope_table(positions, inverse_frequencies(x.shape[-1], theta, x.device), dtype, False)
    result: Tensor = rotate(x, cos, sin, False, False)
    return result
