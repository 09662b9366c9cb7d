# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403, SIM108
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Ternary weights (SPEC.md, section *ternary*); their two-bit codes are in ``ternary_packing.py``.

    gamma = mean(abs(w)) + 1e-8,   q = clip(rint(w / gamma), -1, 1)               w [...], q int8 [...]

Two passes over w: partial sums in float64, one per program; then every program adds the same partial sums in the same
order (hence no atomics, and the same bits in every run) and rounds its share. Rounding half to even sends a ratio of
one half to 0, so q = (w > gamma / 2) - (w < -gamma / 2), and no element is divided.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import NonFiniteError, ShapeError
from walsh.kernels.triton._check import require_float, require_rule
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._device import widen
from walsh.kernels.triton._launch import (
    cdiv,
    flat_block,
    interpreting,
    launch,
    next_power_of_two,
    processors,
    require_device,
    synchronous,
)
from walsh.kernels.triton._ops import operation


@triton.jit
def abs_sum_kernel(w, partial, count, share, BLOCK: tl.constexpr):
    """partial[p] = sum of abs(w) over the share of program p, in float64."""
    program = tl.program_id(0)
    start = program.to(tl.int64) * share
    total = tl.zeros((BLOCK,), tl.float64)
    for offset in range(0, share, BLOCK):
        index = offset + tl.arange(0, BLOCK)
        inside = (index < share) & (start + index < count)
        total += tl.abs(tl.load(w + start + index, mask=inside, other=0.0).to(tl.float64))
    tl.store(partial + program, tl.sum(total, 0))


@triton.jit
def half_gamma(partial, gamma, count, partials, ROUND: tl.constexpr, PARTIALS: tl.constexpr):
    """gamma / 2 in float64 from the partial sums; program 0 stores [gamma, mean(abs(w))]."""
    which = tl.arange(0, PARTIALS)
    mean = tl.sum(tl.load(partial + which, mask=which < partials, other=0.0), 0) / count.to(tl.float64)
    if ROUND:
        g = mean * 0.0 + 1.0
    else:
        g = mean + 1e-8
    if tl.program_id(0) == 0:
        tl.store(gamma, g)
        tl.store(gamma + 1, mean)
    return g * 0.5


@triton.jit
def ternary_code(value, half):
    """The sign of value where abs(value) > half (float64), else 0; int32."""
    if value.dtype == tl.float64:
        threshold = half
    else:
        # The largest float32 that is at most gamma / 2 compares like gamma / 2 itself, without float64 per element.
        near = half.to(tl.float32)
        below = (near.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
        threshold = tl.where(near.to(tl.float64) > half, below, near)
    return (value > threshold).to(tl.int32) - (value < -threshold).to(tl.int32)


@triton.jit
def ternary_kernel(
    w, partial, q, gamma, count, partials, ROUND: tl.constexpr, PARTIALS: tl.constexpr, BLOCK: tl.constexpr
):
    """q = sign(w) where abs(w) > gamma / 2, and gamma = [gamma, mean(abs(w))] from the partial sums of pass one."""
    program = tl.program_id(0)
    half = half_gamma(partial, gamma, count, partials, ROUND, PARTIALS)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = widen(tl.load(w + index, mask=index < count, other=0.0))
    tl.store(q + index, ternary_code(value, half).to(tl.int8), mask=index < count)


@triton.jit
def ternary_pack_kernel(
    w,
    partial,
    packed,
    gamma,
    count,
    partials,
    k,
    width,
    size,
    ROUND: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As :func:`ternary_kernel`, but what is written are bytes of four codes: a quarter of the traffic."""
    half = half_gamma(partial, gamma, count, partials, ROUND, PARTIALS)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, byte = index // width, index % width
    bits = tl.zeros((BLOCK,), tl.int32)
    for lane in tl.static_range(4):
        position = byte * 4 + lane
        inside = (index < size) & (position < k)
        value = widen(tl.load(w + row * k + position, mask=inside, other=0.0))
        bits = bits | ((ternary_code(value, half) + 1) << (2 * lane))
    tl.store(packed + index, bits.to(tl.uint8), mask=index < size)


def _tile(op: str, w: Tensor, count: int) -> Rows:
    """Elements and warps of a program of the second pass; the first one's stay fixed, since gamma depends on them."""
    rule = Rows(1, flat_block(count))
    return rule if interpreting() else configured(shape_of(op, (count, 1, 1), 1, w.dtype), w.device, rule)


def _gamma_dtype(w: Tensor) -> torch.dtype:
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _fake(w: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(w, dtype=torch.int8).contiguous(), w.new_empty((2,), dtype=torch.float64)


@operation("ternary", _fake)
def _ternary(w: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Codes, and float64 [gamma, mean(abs(w))]: two launches."""
    require_device(w)
    w = w.contiguous()
    count, tile = w.numel(), _tile("ternary", w, w.numel())
    partial = _abs_sums(w)
    q, gamma = w.new_empty(w.shape, dtype=torch.int8), w.new_empty((2,), dtype=torch.float64)
    launch(
        ternary_kernel,
        (cdiv(count, tile.block),),
        w,
        partial,
        q,
        gamma,
        count,
        partial.numel(),
        warps=tile.warps,
        fusion=False,
        ROUND=rule == "round",
        PARTIALS=next_power_of_two(partial.numel()),
        BLOCK=tile.block,
    )
    return q, gamma


def _abs_sums(w: Tensor) -> Tensor:
    """Pass one: partial sums of abs(w), one per program."""
    count, block = w.numel(), flat_block(w.numel())
    programs = max(1, min(cdiv(count, block), 4 * processors(w.device)))
    share = cdiv(cdiv(count, programs), block) * block
    partial = w.new_empty((cdiv(count, share),), dtype=torch.float64)
    launch(abs_sum_kernel, (partial.numel(),), w, partial, count, share, fusion=False, BLOCK=block)
    return partial


def _fake_packed(w: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    shape = (*w.shape[:-1], cdiv(w.shape[-1], 4))
    return w.new_empty(shape, dtype=torch.uint8), w.new_empty((2,), dtype=torch.float64)


@operation("ternary_packed", _fake_packed)
def _packed(w: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Packed codes, and float64 [gamma, mean(abs(w))]: two launches, no codes in between."""
    require_device(w)
    packed, gamma = _fake_packed(w, rule)
    w = w.contiguous()
    partial, size = _abs_sums(w), packed.numel()
    tile = _tile("ternary_packed", w, size)
    launch(
        ternary_pack_kernel,
        (cdiv(size, tile.block),),
        w,
        partial,
        packed,
        gamma,
        w.numel(),
        partial.numel(),
        w.shape[-1],
        packed.shape[-1],
        size,
        warps=tile.warps,
        fusion=False,
        ROUND=rule == "round",
        PARTIALS=next_power_of_two(partial.numel()),
        BLOCK=tile.block,
    )
    return packed, gamma


def check_ternary(w: Tensor, rule: str) -> None:
    """Raise unless :func:`ternary` takes these arguments; values are not looked at."""
    require_rule(rule)
    require_float("w", w)
    if w.numel() == 0:
        raise ShapeError(f"w has shape {list(w.shape)}: expected at least one weight to take the mean of")


def require_finite_mean(gamma: Tensor) -> None:
    """Raise NonFiniteError if the mean of abs(w), which :func:`_ternary` returned beside gamma, is not finite."""
    if synchronous(gamma) and not bool(torch.isfinite(gamma[1])):
        raise NonFiniteError("w holds NaN or infinity: expected finite weights; look for a diverged update")


def ternary_codes(w: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """As :func:`ternary` for checked arguments, gamma as float64 [gamma, mean(abs(w))]."""
    q, gamma = _ternary(w.detach(), rule)
    require_finite_mean(gamma)
    return q, gamma


def ternary(w: Tensor, rule: str = "absmean") -> tuple[Tensor, Tensor]:
    """Ternary codes of a weight tensor and the scale that they leave out.

    Args:
        w: float [...], not empty.
        rule: ``absmean`` or ``round``.

    Returns:
        q int8 [...] in {-1, 0, 1} and gamma, a 0-dim tensor: float64 for float64 w, else float32.

    Raises:
        DTypeError: w is not float. ShapeError: w is empty. ParameterError: another rule.
        NonFiniteError: NaN or infinity in w. BackendError: no machine for Triton.
    """
    check_ternary(w, rule)
    q, gamma = ternary_codes(w, rule)
    return q, gamma[0].to(_gamma_dtype(w))


def ternary_packed(w: Tensor, rule: str = "absmean") -> tuple[Tensor, Tensor]:
    """``pack_ternary`` of the codes of :func:`ternary`, in its two launches: the codes are never stored.

    Args:
        w: float [..., K], not empty.
        rule: as in :func:`ternary`.

    Returns:
        packed uint8 [..., ceil(K / 4)] and gamma, as :func:`ternary` returns it.

    Raises:
        As :func:`ternary`; ShapeError: w has no axis.
    """
    check_ternary(w, rule)
    if w.ndim == 0:
        raise ShapeError("w has no axis: expected [..., K]")
    packed, gamma = _packed(w.detach(), rule)
    require_finite_mean(gamma)
    return packed, gamma[0].to(_gamma_dtype(w))


class _StraightThrough(torch.autograd.Function):
    """q in the dtype of w; dw = dq where abs(w) <= ste_clip, a selection that PyTorch itself makes in one kernel."""

    @staticmethod
    def forward(ctx, w, rule, ste_clip):
        ctx.ste_clip = ste_clip
        ctx.save_for_backward(w if ste_clip is not None else None)
        return ternary_codes(w, rule)[0].to(w.dtype)

    @staticmethod
    def backward(ctx, dq):
        (w,) = ctx.saved_tensors
        return (dq if w is None else dq.masked_fill(~(w.abs() <= ctx.ste_clip), 0)), None, None


def ternary_ste(w: Tensor, rule: str = "absmean", ste_clip: float | None = None) -> Tensor:
    """Ternary codes in the dtype of w, with the straight-through gradient (gamma held constant).

    Args:
        w: float [...], not empty.
        rule: as in :func:`ternary`.
        ste_clip: gradients pass where ``abs(w) <= ste_clip``; everywhere if None.

    Returns:
        q [...] in the dtype of w.

    Raises:
        As :func:`ternary`.
    """
    check_ternary(w, rule)
    result: Tensor = _StraightThrough.apply(w, rule, ste_clip)
    return result
