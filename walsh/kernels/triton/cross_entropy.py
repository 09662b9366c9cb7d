# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Cross-entropy of logits, and of a tied head without the logits of all tokens (SPEC.md, section *cross_entropy*).

    loss = mean over targets that are not -1 of log(sum(exp(logits))) - logits[target];   0 if there are none
    dlogits = (softmax(logits) - onehot(target)) / count

``linear_cross_entropy`` walks over chunks of tokens. A chunk's logits become its gradient in place and at once go into
dx and the table's gradient, as in Hsu et al., *Liger Kernel* (arXiv 2410.10989); nothing of size [tokens, V] exists,
in the forward or for the backward, which only multiplies by the incoming gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import (
    accumulate_dtype,
    require_float,
    require_integer,
    require_range,
    require_shape,
    rows,
)
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._device import exponential, narrow, widen
from walsh.kernels.triton._launch import INTERPRET, cdiv, interpreting, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.embedding_head import check_head
from walsh.kernels.triton.gemm import Operand, matrix_product, rowwise


@triton.jit
def log_sum_kernel(logits, targets, losses, sums, count, vocabulary, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """sums[r] = log(sum(exp(logits[r]))); losses[r] = that - logits[target], 0 where the target is -1."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < count
    base = row.to(tl.int64)[:, None] * vocabulary
    kind = losses.dtype.element_ty
    largest = tl.full((ROWS,), float("-inf"), kind)
    total = tl.zeros((ROWS,), kind)
    for start in range(0, vocabulary, BLOCK):
        col = start + tl.arange(0, BLOCK)[None, :]
        inside = valid[:, None] & (col < vocabulary)
        value = widen(tl.load(logits + base + col, mask=inside, other=float("-inf"))).to(kind)
        # NaN fails the comparison and so never becomes the maximum; it reaches the total through its exponential.
        new = tl.maximum(largest, tl.max(tl.where(value == value, value, float("-inf")), 1))
        anchor = tl.where(new == float("-inf"), 0.0, new)
        part = tl.where(inside, exponential(value - anchor[:, None]), 0.0)
        total = total * tl.where(largest == float("-inf"), 0.0, exponential(largest - anchor)) + tl.sum(part, 1)
        largest = new
    result = tl.where(largest == float("inf"), largest, largest + tl.log(total))
    target = tl.load(targets + row, mask=valid, other=-1).to(tl.int64)
    picked = tl.load(logits + row.to(tl.int64) * vocabulary + target, mask=valid & (target >= 0), other=0.0)
    tl.store(sums + row, result, mask=valid)
    tl.store(losses + row, tl.where(target >= 0, result - widen(picked).to(kind), 0.0), mask=valid)


@triton.jit
def mean_kernel(losses, targets, loss, valid_count, count, BLOCK: tl.constexpr):
    """loss = sum of losses / number of targets that are not -1 (1 if none), in one program and a fixed order."""
    total = tl.zeros((BLOCK,), tl.float64)
    seen = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(losses + index, mask=index < count, other=0.0).to(tl.float64)
        seen += (tl.load(targets + index, mask=index < count, other=-1) >= 0).to(tl.int64)
    number = tl.maximum(tl.sum(seen, 0), 1).to(tl.float64)
    tl.store(loss, narrow((tl.sum(total, 0) / number).to(losses.dtype.element_ty), loss.dtype.element_ty))
    tl.store(valid_count, number.to(valid_count.dtype.element_ty))


@triton.jit
def logits_gradient_kernel(logits, targets, sums, upstream, number, out, count, vocabulary, BLOCK: tl.constexpr):
    """out = upstream / number * (exp(logits - sums) - onehot(target)), 0 where the target is -1; out may be logits."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < vocabulary
    kind = sums.dtype.element_ty
    target = tl.load(targets + row).to(tl.int64)
    factor = widen(tl.load(upstream)).to(kind) / tl.load(number)
    value = widen(tl.load(logits + row * vocabulary + col, mask=inside, other=0.0)).to(kind)
    gradient = exponential(value - tl.load(sums + row)) - (col == target).to(kind)
    gradient = tl.where(target >= 0, gradient * factor, 0.0)
    tl.store(out + row * vocabulary + col, narrow(gradient, out.dtype.element_ty), mask=inside)


def _row_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and log-sum of every row of logits [rows, V]."""
    count, vocabulary = logits.shape
    kind = accumulate_dtype(logits)
    losses, sums = logits.new_empty((count,), dtype=kind), logits.new_empty((count,), dtype=kind)
    if interpreting():
        # Several blocks of any vocabulary worth the name, so that their sums are rescaled.
        block = max(64, min(next_power_of_two(vocabulary) // 16, 1 << 13))
        tile = Rows(min(next_power_of_two(count), max(1, (1 << 16) // block)), block)
    else:
        rule = Rows(1, min(next_power_of_two(vocabulary), 2048))
        tile = configured(shape_of("log_sum", (count, vocabulary, 1), 1, logits.dtype), logits.device, rule)
    args = (logits, targets, losses, sums, count, vocabulary)
    launch(log_sum_kernel, (cdiv(count, tile.rows),), *args, warps=tile.warps, ROWS=tile.rows, BLOCK=tile.block)
    return losses, sums


def _mean(losses: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
    """Fill loss; return the number of targets that count, at least 1, in the dtype of losses."""
    number = losses.new_empty(())
    count = losses.shape[0]
    launch(mean_kernel, (1,), losses, targets, loss, number, count, BLOCK=min(1024, next_power_of_two(count)))
    return number


def _logits_gradient(
    logits: Tensor, targets: Tensor, sums: Tensor, upstream: Tensor, number: Tensor, out: Tensor
) -> Tensor:
    count, vocabulary = logits.shape
    tile = Rows(1, min(next_power_of_two(vocabulary), 1 << 14 if interpreting() else 2048))
    if not interpreting():
        shape = shape_of("logits_gradient", (count, vocabulary, 1), 1, logits.dtype)
        tile = configured(shape, logits.device, tile)
    args = (logits, targets, sums, upstream, number, out, count, vocabulary)
    grid = (count, cdiv(vocabulary, tile.block))
    launch(logits_gradient_kernel, grid, *args, warps=tile.warps, BLOCK=tile.block)
    return out


def _fake(logits, targets):
    kind = accumulate_dtype(logits)
    return logits.new_empty(()), logits.new_empty((targets.numel(),), dtype=kind), logits.new_empty((), dtype=kind)


@operation("cross_entropy", _fake)
def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log-sum of every row, number of targets that count."""
    require_device(logits, targets)
    flat = logits.reshape(rows(logits), logits.shape[-1]).contiguous()
    aims = targets.reshape(-1).contiguous()
    losses, sums = _row_losses(flat, aims)
    loss = logits.new_empty(())
    return loss, sums, _mean(losses, aims, loss)


def _fake_backward(dloss, logits, targets, sums, number):
    return logits.new_empty(logits.shape)


@operation("cross_entropy_backward", _fake_backward)
def _backward(dloss: Tensor, logits: Tensor, targets: Tensor, sums: Tensor, number: Tensor) -> Tensor:
    flat = logits.reshape(rows(logits), logits.shape[-1]).contiguous()
    out = logits.new_empty(logits.shape)
    _logits_gradient(flat, targets.reshape(-1).contiguous(), sums, dloss.contiguous(), number, out)
    return out


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx, dloss, *_):
    return _backward(dloss, *ctx.saved_tensors), None


_cross_entropy.differentiate(_differentiate, _setup)


def check_targets(targets: Tensor, shape: tuple[int, ...], vocabulary: int) -> None:
    """Raise unless targets are integers of this shape in -1 .. vocabulary - 1."""
    require_integer("targets", targets)
    if tuple(targets.shape) != shape:
        raise ShapeError(f"targets has shape {list(targets.shape)}: expected {list(shape)}, that of the tokens")
    require_range("targets", targets, -1, vocabulary, "-1 marks a token that does not count")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of the targets that are not -1.

    Args:
        logits: float [..., V].
        targets: integer [...].

    Returns:
        A scalar in the dtype of logits; 0, with zero gradients, if no target counts.

    Raises:
        RangeError: a target below -1 or from V up. ShapeError, DTypeError: arguments that do not fit.
        BackendError: no machine for Triton.
    """
    require_float("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ShapeError(f"logits has shape {list(logits.shape)}: expected [..., V] with V at least 1")
    check_targets(targets, tuple(logits.shape[:-1]), logits.shape[-1])
    loss: Tensor = _cross_entropy(logits, targets)[0]
    return loss


def _fake_linear(x, table, targets, chunk_size, gradients):
    sizes = (x.shape, table.shape) if gradients else ((0,), (0,))
    kind = accumulate_dtype(x, table)
    return x.new_empty(()), x.new_empty(sizes[0], dtype=kind), x.new_empty(sizes[1], dtype=kind)


@operation("linear_cross_entropy", _fake_linear)
def _linear(
    x: Tensor, table: Tensor, targets: Tensor, chunk_size: int, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and, if ``gradients``, those of x and table for an incoming gradient of 1, wide."""
    require_device(x, table, targets)
    loss, dx, dtable = _fake_linear(x, table, targets, chunk_size, gradients)
    flat, aims = rowwise(x).tensor, targets.reshape(-1).contiguous()
    count, (vocabulary, cols) = flat.shape[0], table.shape
    kind = accumulate_dtype(x, table)
    losses = x.new_empty((count,), dtype=kind)
    # The number of targets that count is wanted before the first gradient, the loss only at the end.
    number = _mean(torch.zeros_like(losses), aims, torch.empty_like(loss)) if gradients else losses
    one = torch.ones_like(loss, dtype=kind)
    sixteen = x.dtype == table.dtype and x.element_size() == 2 and not INTERPRET
    if gradients:
        dtable.zero_()
    for start in range(0, count, chunk_size):
        part, aim = flat[start : start + chunk_size], aims[start : start + chunk_size]
        size = part.shape[0]
        logits = x.new_empty((size, vocabulary), dtype=kind)
        head = Operand(table, 0, *table.stride())
        matrix_product(Operand(part, 0, cols, 1), head, (size, vocabulary, cols), logits)
        losses[start : start + size], sums = _row_losses(logits, aim)
        if gradients:
            # On tensor cores both operands of the next products are 16-bit; elsewhere the gradient replaces the logits.
            slope = torch.empty_like(logits, dtype=x.dtype) if sixteen else logits
            _logits_gradient(logits, aim, sums, one, number, slope)
            across = Operand(table, 0, table.stride(1), table.stride(0))
            matrix_product(
                Operand(slope, 0, vocabulary, 1),
                across,
                (size, cols, vocabulary),
                dx.view(count, cols)[start : start + size],
            )
            down, along = Operand(slope, 0, 1, vocabulary), Operand(part, 0, 1, cols)
            matrix_product(down, along, (vocabulary, cols, size), dtable, add=True)
    _mean(losses, aims, loss)
    return loss, dx, dtable


def _setup_linear(ctx, inputs, output):
    x, table, *_ = inputs
    ctx.dtypes = (x.dtype, table.dtype)
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_linear(ctx, dloss, *_):
    dx, dtable = ctx.saved_tensors
    first = (dx * dloss.to(dx.dtype)).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
    second = (dtable * dloss.to(dtable.dtype)).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
    return first, second, None, None, None


_linear.differentiate(_differentiate_linear, _setup_linear)


def linear_cross_entropy(x: Tensor, table: Tensor, targets: Tensor, chunk_size: int = 1024) -> Tensor:
    """``cross_entropy(lm_head(x, table), targets)`` without the logits of all tokens, also for the gradients.

    Args:
        x: float [..., C].
        table: float [V, C].
        targets: integer [...].
        chunk_size: tokens whose logits exist at a time.

    Returns:
        A scalar in the dtype of x.

    Raises:
        As :func:`cross_entropy`; ParameterError: chunk_size below 1.
    """
    require_float("table", table)
    require_shape("table", table, (None, None), "[V, C]")
    check_head(x, table)
    if chunk_size < 1:
        raise ParameterError(f"chunk_size is {chunk_size}: expected at least 1 token")
    check_targets(targets, tuple(x.shape[:-1]), table.shape[0])
    gradients = torch.is_grad_enabled() and (x.requires_grad or table.requires_grad)
    loss: Tensor = _linear(x, table, targets, chunk_size, gradients)[0]
    return loss
