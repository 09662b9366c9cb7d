# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Walsh-Hadamard transform along the last axis (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                                            x [..., n]

The transform is the radix-2 butterfly, strides 1, 2, 4, ..., (a + b, a - b), then one product with 1 / sqrt(n). Rows
of up to 4,096 stay in registers; longer ones take a second pass along a strided axis, in the same order of additions.
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


def transform_into(x: Tensor, y: Tensor, normalize: bool, fusion: bool = True) -> None:
    """Transform contiguous x along its last axis into contiguous y, which may be x."""
    n, count = x.shape[-1], rows(x)
    norm = 1 / math.sqrt(n) if normalize else 1.0
    short = min(n, LONGEST_ROW)
    lines = count * (n // short)
    high = max(1, (1 << 16 if interpreting() else 2048) // short)
    tile = Rows(min(high, next_power_of_two(lines)), short, 8 if short >= 4096 else 4)
    if not interpreting():
        tile = configured(shape_of("hadamard_transform", (lines, short, 1), 1, x.dtype), x.device, tile)
    # Between two passes nothing is rounded: 16-bit floats go through a float32 buffer.
    wide = x.is_floating_point() and x.element_size() == 2
    middle = y if short == n or not wide else torch.empty_like(x, dtype=torch.float32)
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
        long = n // short
        first = min(long, 32)
        _strided(middle, middle if first < long else y, first, short, norm if first == long else 1.0, fusion)
        if first < long:
            _strided(middle, y, long // first, short * first, norm, fusion)


def _fake_transform(x, normalize, strict):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operation("hadamard_transform", _fake_transform)
def transform(x: Tensor, normalize: bool, strict: bool) -> Tensor:
    """The transform of checked x in new memory."""
    require_device(x)
    y = _fake_transform(x, normalize, strict)
    if x.shape[-1] == 1 or not x.numel():
        return y.copy_(x)
    transform_into(x.contiguous(), y, normalize, not strict)
    return y


def _setup_transform(ctx, inputs, output):
    _, ctx.normalize, ctx.strict = inputs


def _differentiate_transform(ctx, dy):
    return transform(dy, ctx.normalize, ctx.strict), None, None


transform.differentiate(_differentiate_transform, _setup_transform)


def _check_transform(x: Tensor, normalize: bool) -> None:
    if x.ndim == 0 or not is_power_of_two(x.shape[-1]):
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n] with n a power of two; pad with zeros")
    if x.dtype in INTEGERS:
        if normalize:
            raise ParameterError(
                f"normalize is True and x is {x.dtype}: integers are transformed with normalize=False only"
            )
    else:
        require_float("x", x)


def hadamard_transform(x: Tensor, normalize: bool = True) -> Tensor:
    """Walsh-Hadamard transform along the last axis, Sylvester order.

    Args:
        x: float [..., n], n a power of two; integers with ``normalize=False``.
        normalize: divide by sqrt(n), which makes the transform orthonormal and its own inverse.

    Returns:
        y [..., n] in the dtype of x; int32 for integers.

    Raises:
        ShapeError: n is not a power of two. DTypeError: integers with ``normalize``. BackendError: no machine for
        Triton.
    """
    _check_transform(x, normalize)
    result: Tensor = transform(x if x.is_floating_point() else x.to(torch.int32), normalize, False)
    return result


def hadamard_transform_(x: Tensor, normalize: bool = True) -> Tensor:
    """As :func:`hadamard_transform`, in place; x is float or int32, contiguous, and takes no part in a gradient.

    Raises:
        As :func:`hadamard_transform`; ShapeError: x is not contiguous. DTypeError: other integers.
    """
    _check_transform(x, normalize)
    require_device(x)
    if not x.is_contiguous():
        raise ShapeError(f"x has strides {x.stride()}: expected a contiguous tensor to transform in place; use a copy")
    if not x.is_floating_point() and x.dtype != torch.int32:
        raise DTypeError(f"x is {x.dtype}: expected float or int32 to transform in place; convert it first")
    if x.shape[-1] > 1:
        transform_into(x, x, normalize)
    return x
