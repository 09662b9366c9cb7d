# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403, RUF005
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""The pinned arithmetic as functions of their own (SPEC.md, section *strict arithmetic*).

    exp(x)          Cephes expf without fused operations
    hsum(x), psum   sums in halves; over positions in blocks of 32, totals left to right
    sincos(angle)   in float64, rounded once to float32

The kernels of this package use the device functions below them; these wrappers exist so that each can be tested alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import RangeError, ShapeError
from walsh.kernels.triton import _device
from walsh.kernels.triton._launch import (
    cdiv,
    flat_block,
    interpreting,
    launch,
    next_power_of_two,
    require_device,
)
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.rope import strict_sincos
from walsh.kernels.triton.strict._check import require_dtype, require_float32

LARGEST_ANGLE = 1e5
"""Above this the three-part pi / 2 no longer leaves a correctly rounded remainder."""


@triton.jit
def exp_kernel(x, y, count, BLOCK: tl.constexpr):
    """y = exp(x)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < count, other=0.0)
    tl.store(y + index, _device.strict_exp(value), mask=index < count)


@triton.jit
def sincos_kernel(angle, sin, cos, count, BLOCK: tl.constexpr):
    """Sine and cosine of float64 angles."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s, c = strict_sincos(tl.load(angle + index, mask=index < count, other=0.0))
    tl.store(sin + index, s.to(tl.float32), mask=index < count)
    tl.store(cos + index, c.to(tl.float32), mask=index < count)


@triton.jit
def fold_kernel(x, y, count, width, FOLDS: tl.constexpr, BLOCK: tl.constexpr):
    """y[row, i] = the first halvings of a row of FOLDS * width numbers, count = rows * width; + 0 if width is 1."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    base = (index // width) * (width * FOLDS) + index % width
    values = ()
    for i in tl.static_range(FOLDS):
        values = values + (tl.load(x + base + i * width, mask=index < count, other=0.0),)
    for stage in tl.static_range(6):
        if (FOLDS >> (stage + 1)) > 0:
            halves = ()
            for i in tl.static_range(FOLDS >> (stage + 1)):
                halves = halves + (values[i] + values[i + (FOLDS >> (stage + 1))],)
            values = halves
    tl.store(y + index, tl.where(width == 1, values[0] + 0.0, values[0]), mask=index < count)


@triton.jit
def psum_kernel(x, y, count, length, BLOCK: tl.constexpr):
    """y[row] = hsum of each 32 numbers of a row, totals added left to right; one row per lane block."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, 32):
        position = start + tl.arange(0, 32)[None, :]
        inside = (row[:, None] < count) & (position < length)
        value = tl.load(x + row.to(tl.int64)[:, None] * length + position, mask=inside, other=0.0)
        total += _device.hsum(tl.reshape(value, (BLOCK * 32,)), BLOCK, 32, 1)
    tl.store(y + row, total, mask=row < count)


def _fake_exp(x):
    return x.new_empty(x.shape)


@operation("strict_exp", _fake_exp)
def _exp(x: Tensor) -> Tensor:
    require_device(x)
    x, y = x.contiguous(), _fake_exp(x)
    block = flat_block(x.numel())
    launch(exp_kernel, (cdiv(x.numel(), block),), x, y, x.numel(), fusion=False, BLOCK=block)
    return y


def exp(x: Tensor) -> Tensor:
    """The strict exponential.

    Args:
        x: float32 [...]; NaN propagates, x < -87 gives +0, x > 88 counts as 88.

    Returns:
        float32 [...].

    Raises:
        DTypeError: x is not float32. BackendError: no machine for Triton.
    """
    require_float32(x=x)
    y: Tensor = _exp(x)
    return y


def _fake_sincos(angle):
    return angle.new_empty(angle.shape, dtype=torch.float32), angle.new_empty(angle.shape, dtype=torch.float32)


@operation("strict_sincos", _fake_sincos)
def _sincos(angle: Tensor) -> tuple[Tensor, Tensor]:
    require_device(angle)
    sin, cos = _fake_sincos(angle)
    angle, block = angle.contiguous(), flat_block(angle.numel())
    launch(sincos_kernel, (cdiv(angle.numel(), block),), angle, sin, cos, angle.numel(), fusion=False, BLOCK=block)
    return sin, cos


def sincos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine, computed in float64 and rounded once.

    Args:
        angle: float64 [...], 0 <= angle <= 1e5.

    Returns:
        (sin, cos), float32 [...] each.

    Raises:
        DTypeError: angle is not float64. RangeError: an angle outside 0 .. 1e5, NaN included. BackendError: no machine.
    """
    require_dtype("angle", angle, torch.float64)
    require_angles(angle)
    sin, cos = _sincos(angle)
    return sin, cos


def require_angles(angle: Tensor) -> None:
    """Raise RangeError unless every angle lies in 0 .. 1e5."""
    inside = (angle >= 0) & (angle <= LARGEST_ANGLE)
    if not bool(inside.all()):
        wrong = float(angle[~inside].reshape(-1)[0])
        raise RangeError(f"angle {wrong}: expected 0 .. {LARGEST_ANGLE:g}; use a smaller position")


def _rows_of(x: Tensor, axis: int) -> Tensor:
    """x with this axis last."""
    require_float32(x=x)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"axis {axis} of a tensor of shape {list(x.shape)}: expected {-x.ndim} .. {x.ndim - 1}")
    return x.movedim(axis, -1)


def _fake_sum(x):
    return x.new_empty(x.shape[:-1])


@operation("strict_hsum", _fake_sum)
def _hsum(x: Tensor) -> Tensor:
    """:func:`hsum` along the last axis: 32 times fewer numbers by each launch."""
    require_device(x)
    x = x.contiguous()
    length = next_power_of_two(x.shape[-1])
    if length != x.shape[-1]:
        x = torch.nn.functional.pad(x, (0, length - x.shape[-1]))
    shape = x.shape[:-1]
    while True:
        folds = min(32, length)
        length //= folds
        y = x.new_empty((*shape, length))
        count = y.numel()
        block = min(next_power_of_two(count), 1 << 14 if interpreting() else 256)
        launch(fold_kernel, (cdiv(count, block),), x, y, count, length, fusion=False, FOLDS=folds, BLOCK=block)
        if length == 1:
            return y[..., 0]
        x = y


@operation("strict_psum", _fake_sum)
def _psum(x: Tensor) -> Tensor:
    """:func:`psum` along the last axis: one launch."""
    require_device(x)
    x, y = x.contiguous(), _fake_sum(x)
    count = y.numel()
    block = min(next_power_of_two(count), 1 << 11 if interpreting() else 32)
    launch(psum_kernel, (cdiv(count, block),), x, y, count, x.shape[-1], fusion=False, BLOCK=block)
    return y


def hsum(x: Tensor, axis: int = -1) -> Tensor:
    """Sum along one axis in halves.

    Args:
        x: float32 [..., n], n of any size (0 gives +0).
        axis: the axis to be summed.

    Returns:
        float32 [...], x without this axis; never -0.

    Raises:
        DTypeError: x is not float32. ShapeError: x has no such axis. BackendError: no machine for Triton.
    """
    y: Tensor = _hsum(_rows_of(x, axis))
    return y


def psum(x: Tensor, axis: int = -1) -> Tensor:
    """Sum over positions: the same for a full pass and for any split of it, because blocks start at position 0.

    Args, returns and raises as :func:`hsum`.
    """
    y: Tensor = _psum(_rows_of(x, axis))
    return y
