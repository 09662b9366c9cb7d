# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403, SIM108
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Root-mean-square norm, alone or fused with the activation quantizer (SPEC.md, section *rms_norm*).

    y  = x / sqrt(mean(x^2) + eps) * weight                                         x [..., C], weight [C]
    dx = (g - xhat * mean(g * xhat)) / rms,  g = dy * weight,  xhat = x / rms;   dweight = sum over tokens of dy * xhat

after Zhang and Sennrich, *Root Mean Square Layer Normalization* (arXiv 1910.07467). A program holds whole rows, so x
is read once; dweight is summed per program, then over programs in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import ParameterError
from walsh.kernels.triton._check import (
    accumulate_dtype,
    require_float,
    require_nonempty_row,
    require_optional,
    rows,
)
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._device import divide, hsum, narrow, root, widen
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, processors, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.activations import codes_of, scale_dtype, scale_of
from walsh.kernels.triton.gemm import reduce_parts

WIDEST_ROW = 1 << 16
"""Most features of a row: a program holds all of them."""


@triton.jit
def inverse_rms(value, cols, EPS: tl.constexpr, STRICT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """1 / sqrt(mean(value^2) + eps) per row of [ROWS, BLOCK], padded with zeros."""
    square = value * value
    if STRICT:
        total = hsum(tl.reshape(square, (ROWS * BLOCK,)), ROWS, BLOCK, 1)
    else:
        total = tl.sum(square, 1)
    width = tl.zeros((ROWS,), value.dtype) + cols.to(value.dtype)
    return divide(tl.full((ROWS,), 1.0, value.dtype), root(divide(total, width) + EPS))


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    out,
    scales,
    count,
    cols,
    EPS: tl.constexpr,
    STRICT: tl.constexpr,
    QUANTIZE: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y, or if QUANTIZE the int8 codes of y and their scale (1 / scale if RECIPROCAL)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row[:, None] < count) & (col < cols)
    index = row.to(tl.int64)[:, None] * cols + col
    value = widen(tl.load(x + index, mask=inside, other=0.0))
    gain = widen(tl.load(weight + col, mask=col < cols, other=0.0)).to(value.dtype)
    y = (value * inverse_rms(value, cols + 0, EPS, STRICT, ROWS, BLOCK)[:, None]) * gain
    if QUANTIZE:
        size = tl.abs(tl.where(inside, y, 0.0))
        good = size < float("inf")
        finite = tl.min(good.to(tl.int32), 1)
        scale = scale_of(tl.max(tl.where(good, size, 0.0), 1), finite == 1)
        tl.store(out + index, codes_of(y, scale[:, None]), mask=inside)
        if RECIPROCAL:
            scale = divide(tl.full((ROWS,), 1.0, scale.dtype), scale)
        tl.store(scales + row, scale, mask=row < count)
    else:
        tl.store(out + index, narrow(y, out.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    dy, x, weight, dx, part, count, cols, share, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """dx of this program's rows, and the sum over them of dy * xhat."""
    first = tl.program_id(0) * share
    last = tl.minimum(first + share, count)
    col = tl.arange(0, BLOCK)[None, :]
    gain = widen(tl.load(weight + col, mask=col < cols, other=0.0)).to(part.dtype.element_ty)
    total = tl.zeros((ROWS, BLOCK), part.dtype.element_ty)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < last) & (col < cols)
        index = row.to(tl.int64)[:, None] * cols + col
        value = widen(tl.load(x + index, mask=inside, other=0.0)).to(part.dtype.element_ty)
        upstream = widen(tl.load(dy + index, mask=inside, other=0.0)).to(part.dtype.element_ty)
        inverse = inverse_rms(value, cols + 0, EPS, False, ROWS, BLOCK)[:, None]
        unit = value * inverse
        g = upstream * gain
        mean = tl.sum(g * unit, 1)[:, None] / cols
        tl.store(dx + index, narrow((g - unit * mean) * inverse, dx.dtype.element_ty), mask=inside)
        total += upstream * unit
    flat = tl.program_id(0).to(tl.int64) * cols + tl.arange(0, BLOCK)
    tl.store(part + flat, tl.sum(total, 0), mask=tl.arange(0, BLOCK) < cols)


def _tile(op: str, x: Tensor, widest: int) -> Rows:
    """Rows of a program, each held whole, and warps: by rule 8 for rows of more than ``widest`` features, else 4."""
    count, cols = rows(x), x.shape[-1]
    block = next_power_of_two(cols)
    # Half as many numbers of twice the size stay in registers.
    room = 1 << 16 if interpreting() else 2048 if x.dtype == torch.float64 else 4096
    rule = Rows(max(1, min(next_power_of_two(count), room // block)), block, 8 if block > widest else 4)
    return rule if interpreting() else configured(shape_of(op, (count, cols, 1), 1, x.dtype), x.device, rule)


def _launch_forward(
    x: Tensor, weight: Tensor, out: Tensor, scale: Tensor | None, eps: float, strict: bool, reciprocal: bool
) -> None:
    x = x.contiguous()
    count, cols = rows(x), x.shape[-1]
    tile = _tile("rms_norm", x, 4096)
    launch(
        rms_norm_kernel,
        (cdiv(count, tile.rows),),
        x,
        weight.contiguous(),
        out,
        scale,
        count,
        cols,
        warps=tile.warps,
        fusion=not strict and scale is None,
        EPS=eps,
        STRICT=strict,
        QUANTIZE=scale is not None,
        RECIPROCAL=reciprocal,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )


def _fake(x, weight, eps, strict):
    return x.new_empty(x.shape)


@operation("rms_norm", _fake)
def normalize(x: Tensor, weight: Tensor, eps: float, strict: bool) -> Tensor:
    """y of checked arguments: one launch."""
    require_device(x, weight)
    y = _fake(x, weight, eps, strict)
    _launch_forward(x, weight, y, None, eps, strict, False)
    return y


def _fake_backward(dy, x, weight, eps):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@operation("rms_norm_backward", _fake_backward)
def _backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx, dweight = _fake_backward(dy, x, weight, eps)
    dy, x = dy.contiguous(), x.contiguous()
    count, cols = rows(x), x.shape[-1]
    tile = _tile("rms_norm_backward", x, 2048)
    share = cdiv(cdiv(max(1, count), 2 * processors(x.device)), tile.rows) * tile.rows
    programs = max(1, cdiv(count, share))
    part = x.new_empty((programs, 1, 1, cols), dtype=accumulate_dtype(x, weight))
    launch(
        rms_norm_backward_kernel,
        (programs,),
        dy,
        x,
        weight.contiguous(),
        dx,
        part,
        count,
        cols,
        share,
        warps=tile.warps,
        EPS=eps,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )
    reduce_parts(part, dweight[None, None])
    return dx, dweight


def _setup(ctx, inputs, output):
    x, weight, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, dy):
    return (*_backward(dy, *ctx.saved_tensors, ctx.eps), None, None)


normalize.differentiate(_differentiate, _setup)


def _fake_quantize(x, weight, eps, strict):
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=scale_dtype(x))


@operation("rms_norm_quantize", _fake_quantize)
def normalize_quantize(x: Tensor, weight: Tensor, eps: float, strict: bool) -> tuple[Tensor, Tensor]:
    """Codes of y and scale, or for strict arithmetic 1 / scale: one launch."""
    require_device(x, weight)
    codes, scale = _fake_quantize(x, weight, eps, strict)
    _launch_forward(x, weight, codes, scale, eps, strict, strict)
    return codes, scale


def check_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    """Raise unless ``rms_norm`` takes these arguments."""
    require_float("x", x)
    require_nonempty_row("x", x)
    require_optional("weight", weight, (x.shape[-1],), "[C]")
    if eps < 0:
        raise ParameterError(f"eps is {eps}: expected a number of at least 0, such as 1e-6")
    if x.shape[-1] > WIDEST_ROW:
        raise ParameterError(f"x has {x.shape[-1]} features: expected at most {WIDEST_ROW}; use the backend 'torch'")


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each row by its root mean square and multiply by the weight.

    Args:
        x: float [..., C], C from 1 to 65,536.
        weight: float [C].
        eps: added to the mean square.

    Returns:
        y [..., C] in the dtype of x, computed in float32 for 16-bit dtypes.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: negative eps, too many features.
        BackendError: no machine for Triton.
    """
    check_norm(x, weight, eps)
    result: Tensor = normalize(x, weight, eps, False)
    return result


def rms_norm_quantize(x: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """``quantize_activations(rms_norm(x, weight, eps))`` in one launch, without rounding y in between; no gradient.

    Args:
        x: float [..., C].
        weight: float [C].
        eps: added to the mean square.

    Returns:
        a int8 [..., C] and scale [..., 1].

    Raises:
        As :func:`rms_norm`.
    """
    check_norm(x, weight, eps)
    codes, scale = normalize_quantize(x.detach(), weight.detach(), eps, False)
    return codes, scale
