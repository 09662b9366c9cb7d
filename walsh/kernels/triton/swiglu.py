# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Gated activation of the feed-forward (SPEC.md, section *swiglu*).

    h = silu(gate) * up,   silu(x) = x / (1 + exp(-x))                                       gate, up, h [...]

after Shazeer, *GLU Variants Improve Transformer* (arXiv 2002.05202). Both gradients come from one launch that reads
gate, up and dh once; s = 1 / (1 + exp(-gate)):

    dgate = dh * up * s * (1 + gate * (1 - s)),   dup = dh * gate * s
"""

import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import require_float
from walsh.kernels.triton._device import divide, exponential, narrow, strict_exp, widen
from walsh.kernels.triton._launch import cdiv, flat_block, launch, require_device
from walsh.kernels.triton._ops import operation


@triton.jit
def swiglu_kernel(gate, up, h, count, STRICT: tl.constexpr, BLOCK: tl.constexpr):
    """h = silu(gate) * up."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = widen(tl.load(gate + index, mask=index < count, other=0.0))
    u = widen(tl.load(up + index, mask=index < count, other=0.0))
    if STRICT:
        silu = divide(g, 1.0 + strict_exp(-g))
    else:
        silu = tl.where(g == float("-inf"), -0.0, divide(g, 1.0 + exponential(-g)))
    tl.store(h + index, narrow(silu * u.to(g.dtype), h.dtype.element_ty), mask=index < count)


@triton.jit
def swiglu_backward_kernel(dh, gate, up, dgate, dup, count, BLOCK: tl.constexpr):
    """Both gradients."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = widen(tl.load(gate + index, mask=index < count, other=0.0))
    u = widen(tl.load(up + index, mask=index < count, other=0.0)).to(g.dtype)
    upstream = widen(tl.load(dh + index, mask=index < count, other=0.0)).to(g.dtype)
    one = tl.full((BLOCK,), 1.0, g.dtype)
    s = divide(one, 1.0 + exponential(-g))
    # 1 - s loses its digits where s is near one; exp(-g) s is the same number without the subtraction.
    complement = divide(one, 1.0 + exponential(g))
    gone = g == float("-inf")
    slope = tl.where(gone, 0.0, s * (1.0 + g * complement))
    tl.store(dgate + index, narrow(upstream * u * slope, dgate.dtype.element_ty), mask=index < count)
    silu = tl.where(gone, -0.0, g * s)
    tl.store(dup + index, narrow(upstream * silu, dup.dtype.element_ty), mask=index < count)


def _fake(gate, up, strict):
    return gate.new_empty(gate.shape)


@operation("swiglu", _fake)
def gated(gate: Tensor, up: Tensor, strict: bool) -> Tensor:
    """The product of checked arguments: one launch."""
    require_device(gate, up)
    h = _fake(gate, up, strict)
    count, block = gate.numel(), flat_block(gate.numel())
    args = (gate.contiguous(), up.contiguous(), h, count)
    launch(swiglu_kernel, (cdiv(count, block),), *args, fusion=not strict, STRICT=strict, BLOCK=block)
    return h


def _fake_backward(dh, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


@operation("swiglu_backward", _fake_backward)
def _backward(dh: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = _fake_backward(dh, gate, up)
    count, block = gate.numel(), flat_block(gate.numel())
    args = (dh.contiguous(), gate.contiguous(), up.contiguous(), dgate, dup, count)
    launch(swiglu_backward_kernel, (cdiv(count, block),), *args, BLOCK=block)
    return dgate, dup


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx, dh):
    return (*_backward(dh, *ctx.saved_tensors), None)


gated.differentiate(_differentiate, _setup)


def check_swiglu(gate: Tensor, up: Tensor) -> None:
    """Raise unless gate and up are float and of one shape."""
    require_float("gate", gate)
    require_float("up", up)
    if gate.shape != up.shape:
        raise ShapeError(f"gate has shape {list(gate.shape)} and up {list(up.shape)}: expected equal shapes")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate, up: float [...] of one shape.

    Returns:
        h [...] in the dtype of gate, computed in float32 for 16-bit dtypes; silu(-inf) is -0, its limit.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. BackendError: no machine for Triton.
    """
    check_swiglu(gate, up)
    result: Tensor = gated(gate, up, False)
    return result


def swiglu_hidden(c: int, multiple: int) -> int:
    """Width of the feed-forward: int(8 c / 3) rounded up to a multiple of the algebra's dimension.

    Raises:
        ParameterError: c or multiple below 1.
    """
    if c < 1 or multiple < 1:
        raise ParameterError(f"c is {c} and multiple is {multiple}: expected both to be at least 1")
    return cdiv(8 * c // 3, multiple) * multiple
