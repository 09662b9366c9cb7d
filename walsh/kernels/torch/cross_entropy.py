"""Cross-entropy of next tokens, from logits or straight from features (SPEC.md, section *cross_entropy*).

    loss = mean over targets that are not -1 of  log(sum_v exp(logits_v)) - logits_target

``linear_cross_entropy`` never holds the [tokens, V] logits: for one chunk of tokens at a time it forms logits, loss
*and* gradients, so that nothing of size V per token outlives its chunk (as in Liger-Kernel, Hsu et al.,
arXiv 2410.10989):

    p = softmax(x table^T) - onehot(target),     dx = p table / count,     dtable = p^T x / count
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.torch._check import (
    accumulate_dtype,
    require_features,
    require_float,
    require_integer,
    require_range,
    require_shape,
    rows,
)


def _check_targets(targets: Tensor, shape: torch.Size, vocabulary: int) -> Tensor:
    """Validate and return the targets as int64 [tokens]."""
    require_integer("targets", targets)
    if targets.shape != shape:
        raise ShapeError(f"targets have shape {list(targets.shape)}: expected {list(shape)}, one per token")
    require_range("targets", targets, -1, vocabulary, "-1 marks a token without a target")
    return targets.reshape(-1).to(torch.int64)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log likelihood of the targets.

    Args:
        logits: float [..., V].
        targets: integer [...], -1 where there is none.

    Returns:
        0-dim loss in the dtype of logits; 0, with zero gradients, if there is no target.

    Raises:
        RangeError: a target below -1 or from V up. ShapeError, DTypeError: arguments that do not fit.
    """
    require_float("logits", logits)
    if logits.ndim == 0:
        raise ShapeError("logits has no axis: expected [..., V]")
    vocabulary = logits.shape[-1]
    flat = _check_targets(targets, logits.shape[:-1], vocabulary)
    kept = (flat >= 0).nonzero().squeeze(1)
    wide = logits.reshape(rows(logits), vocabulary).to(accumulate_dtype(logits))
    if kept.numel() < flat.numel():
        # Selected, not masked: what stands in a row without a target must not matter, NaN included.
        wide, flat = wide[kept], flat[kept]
    if flat.numel() == 0:
        return wide.sum().to(logits.dtype)
    total = torch.nn.functional.cross_entropy(wide, flat, reduction="sum")
    return (total / flat.numel()).to(logits.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward and only scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, targets: Tensor, chunk_size: int) -> Tensor:
        work = accumulate_dtype(x, table)
        kept = (targets >= 0).nonzero().squeeze(1)
        features = x.reshape(rows(x), x.shape[-1])
        wide = table.to(work)
        need_x, need_table = ctx.needs_input_grad[:2]
        dx = torch.zeros(features.shape, dtype=work, device=x.device) if need_x else None
        dtable = torch.zeros_like(wide) if need_table else None
        loss = torch.zeros((), dtype=torch.float64 if x.device.type == "cpu" else work, device=x.device)
        memory = wide.new_empty(min(chunk_size, kept.numel()), wide.shape[0])
        for chunk in torch.split(kept, chunk_size):
            some = features[chunk].to(work)
            logits = torch.mm(some, wide.t(), out=memory[: chunk.numel()])
            loss += _softmax_error(logits, targets[chunk]).to(loss.dtype)
            if dx is not None:
                dx[chunk] = logits @ wide
            if dtable is not None:
                dtable.addmm_(logits.t(), some)
        count = max(kept.numel(), 1)
        for gradient in (dx, dtable):
            if gradient is not None:
                gradient.div_(count)
        ctx.save_for_backward(dx, dtable)
        ctx.shape, ctx.dtypes = x.shape, (x.dtype, table.dtype)
        return (loss / count).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dtable = ctx.saved_tensors
        if dx is not None:
            dx = (dx * dloss.to(dx.dtype)).reshape(ctx.shape).to(ctx.dtypes[0])
        if dtable is not None:
            dtable = (dtable * dloss.to(dtable.dtype)).to(ctx.dtypes[1])
        return dx, dtable, None, None


def _softmax_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits [tokens, V] into softmax minus one-hot, in place, and return the sum of the losses."""
    column = targets[:, None]
    wanted = logits.gather(1, column)
    largest = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    logits.div_(total)
    logits.scatter_add_(1, column, torch.full_like(wanted, -1))
    return (total.log() + largest - wanted).sum()


def linear_cross_entropy(x: Tensor, table: Tensor, targets: Tensor, chunk_size: int = 256) -> Tensor:
    """``cross_entropy(lm_head(x, table), targets)`` without the logits of more than one chunk.

    Args:
        x: float [..., C].
        table: float [V, C].
        targets: integer [...], -1 where there is none.
        chunk_size: tokens in a chunk; the peak is [chunk_size, V] beside the gradients.

    Returns:
        0-dim loss in the dtype of x; 0, with zero gradients, if there is no target.

    Raises:
        ParameterError: chunk_size below 1. RangeError: a target below -1 or from V up.
        ShapeError, DTypeError: arguments that do not fit.
    """
    if chunk_size < 1:
        raise ParameterError(f"chunk_size is {chunk_size}: expected at least 1")
    require_float("x", x)
    require_float("table", table)
    require_shape("table", table, (None, None), "[V, C]")
    require_features("x", x, table.shape[1], "C")
    flat = _check_targets(targets, x.shape[:-1], table.shape[0])
    result: Tensor = _LinearCrossEntropy.apply(x, table, flat, chunk_size)
    return result
