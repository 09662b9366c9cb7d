"""Gated activation of the feed-forward (SPEC.md, section *swiglu*).

    h = silu(gate) * up,   silu(x) = x / (1 + exp(-x)),   silu(-inf) = -0

Shazeer, *GLU Variants Improve Transformer* (arXiv 2002.05202).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.torch._check import accumulate_dtype, require_float


def _silu(x: Tensor) -> Tensor:
    """In new memory, whose pages cost more than the arithmetic: hence once and in place."""
    # -inf / inf is NaN; the largest finite negative number has the limit, -0, as its value.
    return silu(x.clamp(min=torch.finfo(x.dtype).min), inplace=True)


class _SwiGLU(torch.autograd.Function):
    """Saves gate and up; the sigmoid is formed again in the backward."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        work = accumulate_dtype(gate, up)
        return _silu(gate.to(work)).mul_(up.to(work)).to(gate.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        dgate = dup = None
        work = accumulate_dtype(gate, up)
        wide, dh = gate.to(work), dh.to(work)
        if ctx.needs_input_grad[1]:
            dup = (dh * _silu(wide)).to(up.dtype)
        if ctx.needs_input_grad[0]:
            # Past 1000 the slope is 0 or 1 to the last bit, and infinity times zero is avoided.
            x = wide.clamp(-1000, 1000)
            s = torch.sigmoid(x)
            dgate = (dh * up.to(work) * s * (1 + x * (1 - s))).to(gate.dtype)
        return dgate, dup


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate, up: float, of one shape.

    Returns:
        h of the same shape, in the dtype of gate.

    Raises:
        ShapeError: the shapes differ. DTypeError: not float.
    """
    require_float("gate", gate)
    require_float("up", up)
    if gate.shape != up.shape:
        raise ShapeError(f"gate has shape {list(gate.shape)} and up {list(up.shape)}: expected equal shapes")
    result: Tensor = _SwiGLU.apply(gate, up)
    return result


def swiglu_hidden(c: int, multiple: int) -> int:
    """Width of the feed-forward: int(8 c / 3) rounded up to a multiple of the algebra's dimension.

    Raises:
        ParameterError: c or multiple below 1.
    """
    if c < 1 or multiple < 1:
        raise ParameterError(f"c is {c} and multiple is {multiple}: expected both at least 1")
    return -(-(8 * c // 3) // multiple) * multiple
