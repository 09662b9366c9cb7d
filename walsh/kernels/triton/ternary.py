# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403, SIM108
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Ternary weights and their two-bit packing (SPEC.md, section *ternary*).

    gamma = mean(abs(w)) + 1e-8,   q = clip(rint(w / gamma), -1, 1)               w [...], q int8 [...]

Two passes over w: partial sums in float64, one per program; then every program adds the same partial sums in the same
order (hence no atomics, and the same bits in every run) and rounds its share. Rounding half to even sends a ratio of
one half to 0, so q = (w > gamma / 2) - (w < -gamma / 2), and no element is divided.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import DTypeError, FormatError, NonFiniteError, ParameterError, ShapeError
from walsh.kernels.triton._check import require_float, require_rule, require_ternary, rows
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._device import decode_ternary, widen
from walsh.kernels.triton._launch import (
    cdiv,
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


@triton.jit
def pack_kernel(q, packed, count, k, width, BLOCK: tl.constexpr):
    """Byte b of a row holds codes q + 1 of positions 4b .. 4b + 3, two bits each; code 1 past the end."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, byte = index // width, index % width
    value = tl.zeros((BLOCK,), tl.int32)
    for lane in tl.static_range(4):
        position = byte * 4 + lane
        inside = (index < count) & (position < k)
        code = tl.load(q + row * k + position, mask=inside, other=0).to(tl.int32) + 1
        value = value | (code << (2 * lane))
    tl.store(packed + index, value.to(tl.uint8), mask=index < count)


@triton.jit
def unpack_kernel(packed, q, count, k, width, BLOCK: tl.constexpr):
    """q of position p of a row from bits 2 (p & 3) of byte p >> 2."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, position = index // k, index % k
    byte = tl.load(packed + row * width + (position >> 2), mask=index < count, other=0)
    tl.store(q + index, decode_ternary(byte, position).to(tl.int8), mask=index < count)


def flat_block(count: int) -> int:
    """Elements per program of an elementwise kernel."""
    return min(next_power_of_two(count), 1 << 16) if interpreting() else 1024


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


def _fake_pack(q: Tensor) -> Tensor:
    return q.new_empty((*q.shape[:-1], cdiv(q.shape[-1], 4)), dtype=torch.uint8)


@operation("pack_ternary", _fake_pack)
def _pack(q: Tensor) -> Tensor:
    require_device(q)
    q, packed = q.contiguous(), _fake_pack(q)
    count, k, width = packed.numel(), q.shape[-1], packed.shape[-1]
    block = flat_block(count)
    launch(pack_kernel, (cdiv(count, block),), q, packed, count, k, width, BLOCK=block)
    return packed


def pack_ternary(q: Tensor) -> Tensor:
    """Four codes in a byte, code q + 1, position p in bits ``2 (p & 3)`` of byte ``p >> 2``.

    Args:
        q: int8 [..., K] in {-1, 0, 1}.

    Returns:
        uint8 [..., ceil(K / 4)]; positions past K hold code 1, a zero weight.

    Raises:
        DTypeError: q is not int8. ShapeError: q has no axis. ParameterError: a code outside {-1, 0, 1}.
    """
    if q.dtype != torch.int8:
        raise DTypeError(f"q is {q.dtype}: expected int8 codes; make them with `ternary`")
    if q.ndim == 0:
        raise ShapeError("q has no axis: expected [..., K]")
    require_ternary("q", q)
    result: Tensor = _pack(q)
    return result


def _fake_unpack(packed: Tensor, k: int) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], k), dtype=torch.int8)


@operation("unpack_ternary", _fake_unpack)
def _unpack(packed: Tensor, k: int) -> Tensor:
    require_device(packed)
    packed, q = packed.contiguous(), _fake_unpack(packed, k)
    count, block = q.numel(), flat_block(q.numel())
    launch(unpack_kernel, (cdiv(count, block),), packed, q, count, k, packed.shape[-1], BLOCK=block)
    return q


def unpack_ternary(packed: Tensor, k: int) -> Tensor:
    """The inverse of :func:`pack_ternary`.

    Args:
        packed: uint8 [..., ceil(k / 4)].
        k: number of codes in a row.

    Returns:
        int8 [..., k].

    Raises:
        DTypeError: packed is not uint8. ShapeError: the last axis is not ceil(k / 4). ParameterError: k is negative.
        FormatError: code 3, or a padding code other than 1.
    """
    if packed.dtype != torch.uint8:
        raise DTypeError(f"packed is {packed.dtype}: expected uint8 made by `pack_ternary`")
    if k < 0:
        raise ParameterError(f"k is {k}: expected the number of codes in a row, at least 0")
    width = cdiv(k, 4)
    if packed.ndim == 0 or packed.shape[-1] != width:
        raise ShapeError(f"packed has shape {list(packed.shape)}: expected [..., {width}], ceil(k / 4) with k = {k}")
    codes: Tensor = _unpack(packed, 4 * width)
    require_packed(codes, k)
    return codes[..., :k].contiguous()


def require_packed(codes: Tensor, k: int) -> None:
    """Raise FormatError for code 3 (unpacked: 2), or for a padding code other than 1 (unpacked: not 0)."""
    if not rows(codes) or not synchronous(codes):
        return
    if bool((codes == 2).any()):
        raise FormatError("packed holds code 3: expected 0, 1 or 2; the bytes are damaged or not packed weights")
    if bool((codes[..., k:] != 0).any()):
        raise FormatError(f"packed has a padding code other than 1 past position {k}: the bytes are damaged")


_CHECKED = "_walsh_checked_codes"
"""Attribute of a tensor whose codes were found valid: the width and the version of the tensor then."""


def require_codes(w: Tensor, k: int) -> None:
    """Raise unless integer weights hold codes: int8 in {-1, 0, 1}, or packed bytes with proper padding.

    A tensor that passed is not looked at again until it is written to: a decoding step must not read all weights twice.
    """
    if w.dtype not in (torch.int8, torch.uint8) or not synchronous(w):
        return
    stamp = (k, -1 if w.is_inference() else w._version)
    if stamp[1] >= 0 and w.__dict__.get(_CHECKED) == stamp:
        return
    if w.dtype == torch.int8:
        require_ternary("w", w)
    else:
        require_packed(_unpack(w, 4 * w.shape[-1]), k)
    w.__dict__[_CHECKED] = stamp
