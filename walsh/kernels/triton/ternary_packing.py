# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Two-bit codes of ternary weights (SPEC.md, section *ternary*).

    packed[..., b] = sum_{l = 0 .. 3} (q[..., 4 b + l] + 1) << 2 l      q int8 [..., K], packed uint8 [..., ceil(K / 4)]

Past the end of a row stands code 1, a weight of zero, so that a kernel may read whole bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import DTypeError, FormatError, ParameterError, ShapeError
from walsh.kernels.triton._check import require_ternary, rows
from walsh.kernels.triton._device import decode_ternary
from walsh.kernels.triton._launch import cdiv, flat_block, launch, require_device, synchronous
from walsh.kernels.triton._ops import operation


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
