# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: RET505
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Bitmask codec of ternary codes (SPEC.md, section *bitmask*).

Row-major position p is bit ``p & 7`` of byte ``p >> 3`` of mask; signs holds one bit per non-zero in the same order.
The place of a sign is the number of non-zeros before it, so both directions count non-zeros per block, add the counts
up once, and only then move bits. No two programs write the same byte.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import DTypeError, FormatError, ShapeError
from walsh.kernels.triton._check import require_ternary
from walsh.kernels.triton._launch import cdiv, flat_block, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation


@triton.jit
def flag_at(data, index, count, BITS: tl.constexpr):
    """1 where position ``index`` is non-zero: in codes, or in the bits of a mask if BITS."""
    inside = index < count
    if BITS:
        byte = tl.load(data + (index >> 3), mask=inside, other=0).to(tl.int32)
        return tl.where(inside, (byte >> (index & 7).to(tl.int32)) & 1, 0)
    else:
        return (tl.load(data + index, mask=inside, other=0) != 0).to(tl.int32)


@triton.jit
def count_kernel(data, totals, count, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """totals[b] = non-zeros in block b."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(totals + tl.program_id(0), tl.sum(flag_at(data, index, count, BITS), 0))


@triton.jit
def scan_kernel(totals, before, blocks, BLOCK: tl.constexpr):
    """before[b] = non-zeros in all blocks before b, b = 0 .. blocks: one program, so the order is fixed."""
    carry = tl.zeros((), tl.int64)
    for start in range(0, blocks, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(totals + index, mask=index < blocks, other=0).to(tl.int64)
        tl.store(before + index, carry + tl.cumsum(value, 0) - value, mask=index < blocks)
        carry += tl.sum(value, 0)
    tl.store(before + blocks, carry)


@triton.jit
def scatter_kernel(q, before, signs, count, BLOCK: tl.constexpr):
    """signs[rank of p] = (q[p] > 0), one byte each."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    flag = flag_at(q, index, count, False)
    rank = tl.load(before + tl.program_id(0)) + tl.cumsum(flag, 0) - flag
    positive = tl.load(q + index, mask=index < count, other=0) > 0
    tl.store(signs + rank, positive.to(tl.int8), mask=flag == 1)


@triton.jit
def pack_bits_kernel(data, packed, count, size, BLOCK: tl.constexpr):
    """Bit ``p & 7`` of byte ``p >> 3`` is whether data[p] is non-zero."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.zeros((BLOCK,), tl.int32)
    for bit in tl.static_range(8):
        value = value | (flag_at(data, byte * 8 + bit, count, False) << bit)
    tl.store(packed + byte, value.to(tl.uint8), mask=byte < size)


@triton.jit
def gather_kernel(mask, signs, before, q, count, BLOCK: tl.constexpr):
    """q[p] = 0, or +1 or -1 by the sign bit at the rank of p."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    flag = flag_at(mask, index, count, True)
    rank = tl.load(before + tl.program_id(0)) + tl.cumsum(flag, 0) - flag
    byte = tl.load(signs + (rank >> 3), mask=flag == 1, other=0).to(tl.int32)
    sign = ((byte >> (rank & 7).to(tl.int32)) & 1) * 2 - 1
    tl.store(q + index, tl.where(flag == 1, sign, 0).to(tl.int8), mask=index < count)


def _ranks(data: Tensor, count: int, bits: bool) -> tuple[Tensor, int]:
    """int64 [blocks + 1]: non-zeros before each block and, last, in all; and the block's size."""
    block = flat_block(count)
    blocks = cdiv(count, block)
    totals = data.new_empty((blocks,), dtype=torch.int32)
    before = data.new_empty((blocks + 1,), dtype=torch.int64)
    launch(count_kernel, (blocks,), data, totals, count, BITS=bits, BLOCK=block)
    launch(scan_kernel, (1,), totals, before, blocks, BLOCK=min(1024, next_power_of_two(blocks)))
    return before, block


def _pack_bits(data: Tensor, count: int) -> Tensor:
    size = cdiv(count, 8)
    packed = data.new_empty((size,), dtype=torch.uint8)
    block = max(1, flat_block(count) // 8)
    launch(pack_bits_kernel, (cdiv(size, block),), data, packed, count, size, BLOCK=block)
    return packed


def _fake_encode(q: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return q.new_empty((cdiv(q.numel(), 8),), dtype=torch.uint8), q.new_empty((size,), dtype=torch.uint8)


@operation("bitmask_encode", _fake_encode)
def _encode(q: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and signs of checked codes; the number of signs is read back."""
    require_device(q)
    q = q.contiguous()
    count = q.numel()
    before, block = _ranks(q, count, False)
    nonzeros = count if q.device.type == "meta" else int(before[-1])
    signs = q.new_empty((nonzeros,), dtype=torch.int8)
    launch(scatter_kernel, (cdiv(count, block),), q, before, signs, count, BLOCK=block)
    return _pack_bits(q, count), _pack_bits(signs, nonzeros)


def bitmask_encode(q: Tensor) -> tuple[Tensor, Tensor]:
    """One bit per code, and one sign bit per non-zero code.

    Args:
        q: int8 [...] in {-1, 0, 1}.

    Returns:
        mask uint8 [ceil(P / 8)] for P codes and signs uint8 [ceil(Z / 8)] for Z non-zeros.

    Raises:
        DTypeError: q is not int8. ParameterError: a code outside {-1, 0, 1}.
    """
    if q.dtype != torch.int8:
        raise DTypeError(f"q is {q.dtype}: expected int8 codes; make them with `ternary`")
    require_ternary("q", q)
    mask, signs = _encode(q)
    return mask, signs


def _require_bytes(name: str, data: Tensor, bits: int) -> None:
    """Raise FormatError unless data holds this many bits, padding bits 0."""
    size = cdiv(bits, 8)
    if data.shape != (size,):
        raise FormatError(f"{name} has shape {list(data.shape)}: expected [{size}], bytes for {bits} bits")
    if bits % 8 and data.device.type != "meta" and int(data[-1]) >> (bits % 8):
        raise FormatError(f"{name} has a set padding bit past bit {bits}: the bytes are damaged")


def _fake_decode(mask: Tensor, signs: Tensor, shape: list[int]) -> Tensor:
    del signs  # they say nothing of the shape
    return mask.new_empty(shape, dtype=torch.int8)


@operation("bitmask_decode", _fake_decode)
def _decode(mask: Tensor, signs: Tensor, shape: list[int]) -> Tensor:
    """The codes; raises FormatError for damaged bytes, which only the bytes themselves tell."""
    require_device(mask, signs)
    count = math.prod(shape)
    mask, signs = mask.contiguous(), signs.contiguous()
    _require_bytes("mask", mask, count)
    before, block = _ranks(mask, count, True)
    _require_bytes("signs", signs, 8 * signs.numel() if mask.device.type == "meta" else int(before[-1]))
    q = mask.new_empty(shape, dtype=torch.int8)
    launch(gather_kernel, (cdiv(count, block),), mask, signs, before, q, count, BLOCK=block)
    return q


def bitmask_decode(mask: Tensor, signs: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`bitmask_encode`.

    Args:
        mask, signs: uint8, as ``bitmask_encode`` returns them.
        shape: shape of the codes.

    Returns:
        q int8 of this shape.

    Raises:
        DTypeError: not uint8. ShapeError: a negative length. FormatError: a wrong length, a set padding bit, or a
        number of signs that does not fit the mask.
    """
    for name, data in (("mask", mask), ("signs", signs)):
        if data.dtype != torch.uint8:
            raise DTypeError(f"{name} is {data.dtype}: expected uint8 made by `bitmask_encode`")
    if any(length < 0 for length in shape):
        raise ShapeError(f"shape {list(shape)}: expected lengths of at least 0")
    q: Tensor = _decode(mask, signs, list(shape))
    return q
