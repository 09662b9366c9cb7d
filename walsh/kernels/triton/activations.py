# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Activations as int8 codes with one scale per token (SPEC.md, sections *activations* and *strict arithmetic*).

    scale = 127 / max(max(abs(x)), 1e-5),   a = clip(rint(x * scale), -128, 127),   x [..., C], a int8, scale [..., 1]

One program owns a few rows and goes over them twice, first for the maximum, then for the codes; the second read comes
from cache. Product and rounding are never fused, so ties fall where the definition has them fall.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.kernels.triton._check import require_float, require_nonempty_row, row_tile, rows
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._device import divide, narrow, rint, widen
from walsh.kernels.triton._launch import cdiv, interpreting, launch, require_device
from walsh.kernels.triton._ops import operation


@triton.jit
def codes_of(value, scale):
    """clip(rint(value * scale), -128, 127) as int8; abs(value) * scale is at most 127 (1 + 2^-22): nothing to clip."""
    return tl.where(scale == scale, rint(value * scale), 0.0).to(tl.int8)


@triton.jit
def scale_of(largest, finite):
    """127 / max(largest, 1e-5), NaN where the row is not finite; constants are rounded to the dtype of ``largest``."""
    floor = tl.full(largest.shape, 1e-5, largest.dtype)
    top = tl.full(largest.shape, 127.0, largest.dtype)
    scale = divide(top, tl.maximum(tl.where(finite, largest, 1.0), floor))
    return tl.where(finite, scale, float("nan"))


@triton.jit
def quantize_kernel(
    x,
    out,
    scales,
    count,
    columns,
    FAKE: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Codes (or, if FAKE, the values they stand for) and one scale per row (or, if RECIPROCAL, 1 / scale)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    base = row.to(tl.int64)[:, None] * columns
    kind = widen(tl.load(x)).dtype
    largest = tl.zeros((ROWS,), kind)
    finite = tl.full((ROWS,), 1, tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row[:, None] < count) & (column < columns)
        value = tl.abs(widen(tl.load(x + base + column, mask=inside, other=0.0)))
        good = value < float("inf")
        finite = tl.minimum(finite, tl.min(good.to(tl.int32), 1))
        largest = tl.maximum(largest, tl.max(tl.where(good, value, 0.0), 1))
    scale = scale_of(largest, finite == 1)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row[:, None] < count) & (column < columns)
        value = widen(tl.load(x + base + column, mask=inside, other=0.0))
        code = codes_of(value, scale[:, None])
        if FAKE:
            result = divide(code.to(kind), tl.broadcast_to(scale[:, None], (ROWS, BLOCK)))
            tl.store(out + base + column, narrow(result, out.dtype.element_ty), mask=inside)
        else:
            tl.store(out + base + column, code, mask=inside)
    if RECIPROCAL:
        scale = divide(tl.full((ROWS,), 1.0, kind), scale)
    tl.store(scales + row, scale, mask=row < count)


def scale_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 x, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake(x: Tensor, fake: bool, reciprocal: bool) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if fake else torch.int8
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((*x.shape[:-1], 1), dtype=scale_dtype(x))


@operation("quantize_activations", _fake)
def quantize(x: Tensor, fake: bool, reciprocal: bool) -> tuple[Tensor, Tensor]:
    """Codes or values, and scale or its reciprocal, of checked x: one launch."""
    require_device(x)
    x = x.contiguous()
    out, scale = _fake(x, fake, reciprocal)
    count, columns = rows(x), x.shape[-1]
    tile = Rows(*row_tile(count, columns))
    if not interpreting():
        tile = configured(shape_of("quantize_activations", (count, columns, 1), 1, x.dtype), x.device, tile)
    launch(
        quantize_kernel,
        (cdiv(count, tile.rows),),
        x,
        out,
        scale,
        count,
        columns,
        warps=tile.warps,
        fusion=False,
        FAKE=fake,
        RECIPROCAL=reciprocal,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )
    return out, scale


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and their scale, per row of the last axis.

    Args:
        x: float [..., C], C >= 1.

    Returns:
        a int8 [..., C] and scale [..., 1], float64 for float64 x and float32 otherwise. A row that holds NaN or
        infinity has scale NaN and codes 0.

    Raises:
        DTypeError: x is not float. ShapeError: C is 0. BackendError: no machine for Triton.
    """
    require_float("x", x)
    require_nonempty_row("x", x)
    a, scale = quantize(x.detach(), False, False)
    return a, scale


class _StraightThrough(torch.autograd.Function):
    """a / scale in the dtype of x; dx = dv."""

    @staticmethod
    def forward(_ctx, x):
        return quantize(x, True, False)[0]

    @staticmethod
    def backward(_ctx, dv):
        return dv


def fake_quantize_activations(x: Tensor) -> Tensor:
    """The values that the int8 codes stand for, with the straight-through gradient dx = dv.

    Args:
        x: float [..., C], C >= 1.

    Returns:
        a / scale [..., C] in the dtype of x.

    Raises:
        As :func:`quantize_activations`.
    """
    require_float("x", x)
    require_nonempty_row("x", x)
    result: Tensor = _StraightThrough.apply(x)
    return result
