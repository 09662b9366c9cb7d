# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Walsh-Hadamard transform along the last axis, and across its blocks (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                            x [..., n], or x [..., n * K] and x_h [K]

The transform is the radix-2 butterfly, strides 1, 2, 4, ..., (a + b, a - b), then one product with 1 / sqrt(n). Rows
of up to 4,096 stay in registers; longer ones take a second pass along a strided axis, in the same order of additions.
Across blocks every pass is a strided one: a lane owns up to 32 values of a column, and neighbours read neighbours.
"""

import math

import torch
import triton.language as tl
from torch import Tensor

from walsh.algebra import is_power_of_two
from walsh.errors import DTypeError, ParameterError, ShapeError
from walsh.kernels.triton._check import INTEGERS, require_float, rows
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._hadamard_transform import transform_last_kernel, transform_strided_kernel
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation

LONGEST_COLUMN = 32
"""Most values along a strided axis that a lane keeps in registers."""

LONGEST_ROW = 4096
"""Longest row that one program transforms in registers; longer rows take a second, strided pass."""


def working_type(x: Tensor) -> tl.dtype:
    """What the transform computes in: int32 for integers, float64 for float64, else float32."""
    if not x.is_floating_point():
        return tl.int32
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _strided(x: Tensor, y: Tensor, n: int, inner: int, norm: float, fusion: bool) -> None:
    count = x.numel() // n
    block = min(next_power_of_two(count), 1 << 14) if interpreting() else 128
    launch(
        transform_strided_kernel,
        (cdiv(count, block),),
        x,
        y,
        count,
        inner,
        fusion=fusion,
        N=n,
        NORM=norm,
        BLOCK=block,
        ACC=working_type(x),
    )


def _buffer(x: Tensor, y: Tensor, passes: int) -> Tensor:
    """Where all passes but the last write: between two of them 16-bit floats are not rounded."""
    wide = x.is_floating_point() and x.element_size() == 2
    return torch.empty_like(x, dtype=torch.float32) if wide and passes > 1 else y


def _columns(x: Tensor, middle: Tensor, y: Tensor, n: int, inner: int, norm: float, fusion: bool) -> None:
    """The transform along the middle axis of [., n, inner] from x into y, by way of ``middle`` if it takes passes."""
    while n > LONGEST_COLUMN:
        _strided(x, middle, LONGEST_COLUMN, inner, 1.0, fusion)
        x, n, inner = middle, n // LONGEST_COLUMN, inner * LONGEST_COLUMN
    _strided(x, y, n, inner, norm, fusion)


def transform_into(x: Tensor, y: Tensor, normalize: bool, fusion: bool = True, inner: int = 1) -> None:
    """Transform contiguous x [..., n * inner] across its n blocks into contiguous y, which may be x."""
    n, count = x.shape[-1] // inner, rows(x)
    norm = 1 / math.sqrt(n) if normalize else 1.0
    if inner > 1:
        _columns(x, _buffer(x, y, 1 if n <= LONGEST_COLUMN else 2), y, n, inner, norm, fusion)
        return
    short = min(n, LONGEST_ROW)
    lines = count * (n // short)
    high = max(1, (1 << 16 if interpreting() else 2048) // short)
    tile = Rows(min(high, next_power_of_two(lines)), short, 8 if short >= 4096 else 4)
    if not interpreting():
        tile = configured(shape_of("hadamard_transform", (lines, short, 1), 1, x.dtype), x.device, tile)
    middle = _buffer(x, y, 1 if short == n else 2)
    launch(
        transform_last_kernel,
        (cdiv(lines, tile.rows),),
        x,
        middle,
        lines,
        warps=tile.warps,
        fusion=fusion,
        N=short,
        NORM=norm if short == n else 1.0,
        ROWS=tile.rows,
        ACC=working_type(x),
    )
    if short < n:
        _columns(middle, middle, y, n // short, short, norm, fusion)


def _fake_transform(x, normalize, strict, inner=1):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operation("hadamard_transform", _fake_transform)
def transform(x: Tensor, normalize: bool, strict: bool, inner: int = 1) -> Tensor:
    """The transform of checked x [..., n * inner] across its n blocks, in new memory."""
    require_device(x)
    y = _fake_transform(x, normalize, strict)
    if x.shape[-1] == inner or not x.numel():
        return y.copy_(x)
    transform_into(x.contiguous(), y, normalize, not strict, inner)
    return y


def _setup_transform(ctx, inputs, output):
    _, ctx.normalize, ctx.strict, ctx.inner = inputs


def _differentiate_transform(ctx, dy):
    return transform(dy, ctx.normalize, ctx.strict, ctx.inner), None, None, None


transform.differentiate(_differentiate_transform, _setup_transform)


def _check_transform(x: Tensor, normalize: bool, n: int | None = None) -> int:
    """Validate x and return the width of a block: 1 where the whole last axis is transformed."""
    if x.ndim == 0 or (n is None and not is_power_of_two(x.shape[-1])):
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n] with n a power of two; pad with zeros")
    if n is not None and (not is_power_of_two(n) or x.shape[-1] % n):
        raise ShapeError(f"x has shape {list(x.shape)} and n is {n}: expected [..., n * K] with n a power of two")
    if x.dtype in INTEGERS:
        if normalize:
            raise ParameterError(
                f"normalize is True and x is {x.dtype}: integers are transformed with normalize=False only"
            )
    else:
        require_float("x", x)
    return 1 if n is None else x.shape[-1] // n


def hadamard_transform(x: Tensor, normalize: bool = True, *, n: int | None = None) -> Tensor:
    """Walsh-Hadamard transform along the last axis, Sylvester order.

    Args:
        x: float [..., n], n a power of two; integers with ``normalize=False``.
        normalize: divide by sqrt(n), which makes the transform orthonormal and its own inverse.
        n: if given, x is [..., n * K], and the n blocks of K features are transformed, as the linear layer does.

    Returns:
        y like x, in its dtype; int32 for integers.

    Raises:
        ShapeError: n is not a power of two, or does not divide the last axis. DTypeError: integers with ``normalize``.
        BackendError: no machine for Triton.
    """
    inner = _check_transform(x, normalize, n)
    result: Tensor = transform(x if x.is_floating_point() else x.to(torch.int32), normalize, False, max(1, inner))
    return result


def hadamard_transform_(x: Tensor, normalize: bool = True, *, n: int | None = None) -> Tensor:
    """As :func:`hadamard_transform`, in place; x is float or int32, contiguous, and takes no part in a gradient.

    Raises:
        As :func:`hadamard_transform`; ShapeError: x is not contiguous. DTypeError: other integers.
    """
    inner = _check_transform(x, normalize, n)
    require_device(x)
    if not x.is_contiguous():
        raise ShapeError(f"x has strides {x.stride()}: expected a contiguous tensor to transform in place; use a copy")
    if not x.is_floating_point() and x.dtype != torch.int32:
        raise DTypeError(f"x is {x.dtype}: expected float or int32 to transform in place; convert it first")
    if x.numel() and x.shape[-1] > inner:
        transform_into(x, x, normalize, inner=inner)
    return x
