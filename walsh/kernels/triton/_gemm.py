# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403, RET505, RUF005, SIM300
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""One kernel for the three products of a Cayley-Dickson layer, and for plain matrix products (D = 1).

    z_a[r, c] = sum_b sum_t A[a, b] p_b[r, t] q_{a xor b}[c, t]              a, b = 0 .. D-1

With p = X, q = W it is the forward, with p = beta dY, q = W^T the gradient of X, with p = dY^T, q = X^T the gradient of
W (``walsh.algebra``); only strides and the sign table A differ. One program owns the same tile of all D outputs, held
in a tuple of registers, so each tile of p and q is read once and meets its D partners there. Signs are compile-time
constants: a negative sign is a negated tile of q, not a multiplication.

The fast form (``walsh.algebra.FastProduct``, 30 block products instead of 64 for octonions) makes two passes over t
with the same D accumulators: D products of transformed tiles, a transform of the accumulators, then the corrections.

A long sum over t can be split over programs; each part is stored and :func:`reduce_kernel` adds the parts in a fixed
order: no atomics, the same bits in every run.
"""

from dataclasses import dataclass
from dataclasses import replace as replace_fields

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from walsh.algebra import FastProduct
from walsh.kernels.triton._check import row_tile
from walsh.kernels.triton._config import configured, shape_of
from walsh.kernels.triton._device import (
    INTERPRET,
    decode_ternary,
    divide,
    narrow,
    replace,
    tuple_butterflies,
    widen,
    zeros,
)
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, processors


@triton.jit
def operand(value, DTYPE: tl.constexpr):
    """A tile in the dtype that the tensor cores take; the interpreter multiplies 16-bit floats in float32."""
    if INTERPRET and (DTYPE == tl.bfloat16 or DTYPE == tl.float16):
        return value.to(tl.float32)
    else:
        return narrow(value, DTYPE)


@triton.jit
def multiply(a, b, acc, ACC: tl.constexpr):
    """acc + a b without tf32; integers in int32."""
    if ACC == tl.int32:
        return tl.dot(a, b, acc, out_dtype=ACC)
    else:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC)


@triton.jit
def load_p(p, comp, row, red, p_comp, p_row, p_red, scale, rows, last, SCALED: tl.constexpr, ACC: tl.constexpr):
    """The tile p_comp[r, t], times a scale per t if SCALED."""
    inside = (row[:, None] < rows) & (red[None, :] < last)
    where = p + comp * p_comp + row.to(tl.int64)[:, None] * p_row + red.to(tl.int64)[None, :] * p_red
    value = widen(tl.load(where, mask=inside, other=0))
    if SCALED:
        value = value.to(ACC) * tl.load(scale + red, mask=red < last, other=0.0)[None, :].to(ACC)
    return value


@triton.jit
def load_codes(q, comp, col, red, q_comp, q_col, q_red, inside, PACK: tl.constexpr):
    """The tile q_comp[c, t] of broadcastable int64 indices; PACK 1 unpacks two-bit codes along t, PACK 2 along c."""
    if PACK == 1:
        return decode_ternary(tl.load(q + comp * q_comp + col * q_col + (red >> 2) * q_red, mask=inside, other=85), red)
    elif PACK == 2:
        return decode_ternary(tl.load(q + comp * q_comp + (col >> 2) * q_col + red * q_red, mask=inside, other=85), col)
    else:
        return widen(tl.load(q + comp * q_comp + col * q_col + red * q_red, mask=inside, other=0))


@triton.jit
def load_q(q, comp, col, red, q_comp, q_col, q_red, scale, cols, last, SCALED: tl.constexpr, PACK: tl.constexpr):
    """The tile q_comp[c, t] as [t, c], divided by a scale per t if SCALED: codes become the values they stand for."""
    inside = (red[:, None] < last) & (col[None, :] < cols)
    value = load_codes(
        q, comp, col.to(tl.int64)[None, :], red.to(tl.int64)[:, None], q_comp, q_col, q_red, inside, PACK
    )
    if SCALED:
        unit = tl.load(scale + red, mask=red < last, other=1.0)
        value = divide(value.to(unit.dtype), tl.broadcast_to(unit[:, None], value.shape))
    return value


@triton.jit
def negate_if(value, BITS: tl.constexpr, INDEX: tl.constexpr):
    """-value where this bit is set; decided when compiling."""
    if (BITS >> INDEX) & 1:
        return -value
    else:
        return value


@triton.jit
def add_signed(acc, left, value, negative, FULL_RANGE: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr):
    """acc plus or minus left times value, the sign known when running; FULL_RANGE: -(-128) is not an int8."""
    right = operand(value, DOT)
    if FULL_RANGE:
        product = multiply(left, right, tl.zeros_like(acc), ACC)
        return acc + tl.where(negative == 1, -product, product)
    else:
        return multiply(left, tl.where(negative == 1, -right, right), acc, ACC)


@triton.jit
def signed_xor_kernel(
    p,
    q,
    out,
    row_scale,
    col_scale,
    p_scale,
    q_scale,
    rows,
    cols,
    reds,
    p_comp,
    p_row,
    p_red,
    q_comp,
    q_col,
    q_red,
    o_split,
    o_comp,
    o_row,
    o_col,
    share,
    SIGNS: tl.constexpr,
    FLIP_P: tl.constexpr,
    FLIP_Q: tl.constexpr,
    BASE: tl.constexpr,
    CORRECTIONS: tl.constexpr,
    FAST: tl.constexpr,
    UNROLL: tl.constexpr,
    D: tl.constexpr,
    PACK: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    COL_SCALE: tl.constexpr,
    P_SCALE: tl.constexpr,
    Q_SCALE: tl.constexpr,
    ADD: tl.constexpr,
    FULL_RANGE: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile [BM, BN] of every z_a, over the share of t that belongs to this split.

    Bit a * D + b of SIGNS and CORRECTIONS: whether A[a, b] is negative, whether it is corrected. Bit a of BASE, FLIP_P,
    FLIP_Q: whether that sign is negative. ROW_SCALE 1 divides by a scale per row, 2 multiplies by it. COL_SCALE is how
    many factors [cols], one after the other in ``col_scale``, are multiplied in turn. FULL_RANGE: q may hold -128.
    """
    tile = tl.program_id(0)
    col_tiles = tl.cdiv(cols, BN)
    row = (tile // col_tiles) * BM + tl.arange(0, BM)
    col = (tile % col_tiles) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    first = split * share
    last = tl.minimum(first + share, reds)
    acc = zeros(D, BM, BN, ACC)
    if FAST:
        for start in range(first, last, BK):
            red = start + tl.arange(0, BK)
            ps = ()
            qs = ()
            for c in tl.static_range(D):
                value = load_p(p, c, row, red, p_comp, p_row, p_red, p_scale, rows, last, P_SCALE, ACC)
                ps = ps + (negate_if(value.to(ACC), FLIP_P, c),)
                value = load_q(q, c, col, red, q_comp, q_col, q_red, q_scale, cols, last, Q_SCALE, PACK)
                qs = qs + (negate_if(value.to(ACC), FLIP_Q, c),)
            ps = tuple_butterflies(ps, D)
            qs = tuple_butterflies(qs, D)
            for c in tl.static_range(D):
                acc = replace(acc, c, multiply(operand(ps[c], DOT), operand(qs[c], DOT), acc[c], ACC))
        acc = tuple_butterflies(acc, D)
        for a in tl.static_range(D):
            acc = replace(acc, a, negate_if(acc[a], BASE, a) * (1.0 / D))
    if UNROLL:
        for start in range(first, last, BK):
            red = start + tl.arange(0, BK)
            qs = ()
            for c in tl.static_range(D):
                value = load_q(q, c, col, red, q_comp, q_col, q_red, q_scale, cols, last, Q_SCALE, PACK)
                qs = qs + (operand(value, DOT),)
            for b in tl.static_range(D):
                value = load_p(p, b, row, red, p_comp, p_row, p_red, p_scale, rows, last, P_SCALE, ACC)
                if FAST:
                    value = value * 2
                left = operand(value, DOT)
                for a in tl.static_range(D):
                    if (CORRECTIONS >> (a * D + b)) & 1:
                        if FULL_RANGE and ((SIGNS >> (a * D + b)) & 1):
                            # -(-128) is not an int8: the product is subtracted, not the tile negated.
                            product = multiply(left, qs[a ^ b], tl.zeros((BM, BN), ACC), ACC)
                            acc = replace(acc, a, acc[a] - product)
                        else:
                            right = negate_if(qs[a ^ b], SIGNS, a * D + b)
                            acc = replace(acc, a, multiply(left, right, acc[a], ACC))
    else:
        # b runs: code and registers for D products at a time, not D^2; the tiles of q come from cache.
        for start in range(first, last, BK):
            red = start + tl.arange(0, BK)
            for b in range(D):
                value = load_p(p, b, row, red, p_comp, p_row, p_red, p_scale, rows, last, P_SCALE, ACC)
                if FAST:
                    value = value * 2
                left = operand(value, DOT)
                for a in tl.static_range(D):
                    negative = (((SIGNS >> (a * D)) & ((1 << D) - 1)) >> b) & 1
                    if FAST:
                        if (((CORRECTIONS >> (a * D)) & ((1 << D) - 1)) >> b) & 1 == 1:
                            partner = load_q(
                                q, a ^ b, col, red, q_comp, q_col, q_red, q_scale, cols, last, Q_SCALE, PACK
                            )
                            acc = replace(acc, a, add_signed(acc[a], left, partner, negative, FULL_RANGE, DOT, ACC))
                    else:
                        partner = load_q(q, a ^ b, col, red, q_comp, q_col, q_red, q_scale, cols, last, Q_SCALE, PACK)
                        acc = replace(acc, a, add_signed(acc[a], left, partner, negative, FULL_RANGE, DOT, ACC))
    inside = (row[:, None] < rows) & (col[None, :] < cols)
    base = out + split.to(tl.int64) * o_split + row.to(tl.int64)[:, None] * o_row + col.to(tl.int64)[None, :] * o_col
    for a in tl.static_range(D):
        z = acc[a]
        if ROW_SCALE > 0:
            unit = tl.load(row_scale + row, mask=row < rows, other=1.0)
            if ROW_SCALE == 1:
                z = divide(z.to(unit.dtype), tl.broadcast_to(unit[:, None], (BM, BN)))
            else:
                z = z.to(unit.dtype) * unit[:, None]
        if COL_SCALE > 0:
            if ACC == tl.int32 and ROW_SCALE == 0:
                z = z.to(tl.float32)
            for factor in tl.static_range(COL_SCALE):
                unit = tl.load(col_scale + factor * cols + col, mask=col < cols, other=0.0)
                z = z * unit[None, :].to(z.dtype)
        if ADD:
            z = z + tl.load(base + a * o_comp, mask=inside, other=0.0)
        tl.store(base + a * o_comp, narrow(z, out.dtype.element_ty), mask=inside)


@triton.jit
def reduce_kernel(
    part,
    out,
    row_scale,
    other,
    dots,
    limit,
    rows,
    cols,
    splits,
    comps,
    part_split,
    part_comp,
    other_comp,
    other_row,
    other_col,
    ROW_SCALE: tl.constexpr,
    OUT: tl.constexpr,
    DOTS: tl.constexpr,
    PACK: tl.constexpr,
    CLIP: tl.constexpr,
    CLIP_VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = row_scale * sum over splits of part, 0 where abs(limit) > CLIP_VALUE; dots[row] = sum of part * other."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK), part.dtype.element_ty)
    for comp in range(comps):
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK)[None, :]
            inside = (row[:, None] < rows) & (col < cols)
            index = comp * part_comp + row.to(tl.int64)[:, None] * cols + col
            value = tl.zeros((ROWS, BLOCK), part.dtype.element_ty)
            for split in range(splits):
                value += tl.load(part + split * part_split + index, mask=inside, other=0.0)
            if DOTS:
                across, down = col.to(tl.int64), row.to(tl.int64)[:, None]
                partner = load_codes(other, comp, across, down, other_comp, other_col, other_row, inside, PACK)
                total += tl.where(inside, value * partner.to(value.dtype), 0.0)
            if OUT:
                if ROW_SCALE:
                    scale = tl.load(row_scale + row, mask=row < rows, other=0.0)
                    value = value * scale[:, None].to(value.dtype)
                if CLIP:
                    inner = tl.abs(widen(tl.load(limit + index, mask=inside, other=0.0))) <= CLIP_VALUE
                    value = tl.where(inner, value, 0.0)
                tl.store(out + index, narrow(value, out.dtype.element_ty), mask=inside)
    if DOTS:
        tl.store(dots + row, narrow(tl.sum(total, 1), dots.dtype.element_ty), mask=row < rows)


@dataclass(frozen=True)
class Blocks:
    """Tile sizes of one launch: rows BM, columns BN, steps BK along the sum, warps and pipeline stages.

    ``unroll``: all D^2 products of a step in one straight line, each tile read once; else D at a time.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    unroll: bool = True


TENSOR_CORE_BLOCKS = {
    1: Blocks(128, 64, 64, 8, 3),
    2: Blocks(64, 64, 32, 8, 2),
    4: Blocks(64, 32, 32, 4, 2),
    8: Blocks(64, 16, 32, 4, 2),
    16: Blocks(64, 16, 32, 4, 2, False),
}
"""Tiles of 16-bit and int8 products by D: 64 rows feed a warp group of Hopper, and nothing spills (``compile.py``)."""

_TRITON_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.int8: tl.int8,
    torch.int32: tl.int32,
}


def sign_bits(table: NDArray[np.int8]) -> int:
    """Bit i of the result: whether element i (row-major) of an array of signs is negative."""
    return sum(1 << i for i, sign in enumerate(table.reshape(-1).tolist()) if sign < 0)


@dataclass(frozen=True)
class Operand:
    """A stack of matrices in memory: the tensor and its strides along component, row or column, and t."""

    tensor: Tensor
    comp: int
    major: int
    red: int
    pack: int = 0


def weight_operand(w: Tensor, across: bool = False) -> Operand:
    """Weights [D, N, K], float, int8 or packed, as q with t along K; ``across``: with t along N."""
    comp, n, k = w.stride()
    packed = w.dtype == torch.uint8
    return Operand(w, comp, k, n, 2 if packed else 0) if across else Operand(w, comp, n, k, 1 if packed else 0)


@dataclass(frozen=True)
class Scales:
    """Factors that are fused.

    Per row (mode 1 divides, 2 multiplies), per column ([cols], or several in turn), and along t on p (times) and q
    (divides).
    """

    row: Tensor | None = None
    row_mode: int = 0
    col: Tensor | None = None
    p: Tensor | None = None
    q: Tensor | None = None


def dot_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the operands: int8 for codes only, a 16-bit float if all floats are, float64 if any, or float32."""
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if not floats:
        return torch.int8
    if torch.float64 in floats:
        return torch.float64
    return floats.pop() if len(floats) == 1 else torch.float32


def accumulator(dot: torch.dtype) -> torch.dtype:
    """int32 for int8 operands, float64 for float64, else float32."""
    return {torch.int8: torch.int32, torch.float64: torch.float64}.get(dot, torch.float32)


def choose_blocks(
    rows: int, cols: int, reds: int, d: int, dot: torch.dtype, device: torch.device, fast: bool = False
) -> Blocks:
    """Tile sizes for this shape: measured on this device if ``configs.json`` has them, else by the rules below.

    The D accumulators live in registers: 8 warps hold 32,768 numbers in 128 registers per thread. float32 and float64
    are multiplied without tensor cores and need registers for operands too, hence smaller tiles.
    """
    wide = dot in (torch.float32, torch.float64)
    # Without tensor cores 64 products in a straight line spill: every operand is a register.
    unroll = d <= 2 or (d <= 8 and not wide)
    if interpreting():
        # At least two steps of a sum of any length, so that vectors see them added.
        bm, bn, bk = (max(16, min(128, next_power_of_two(size))) for size in (rows, cols, cdiv(reds, 2)))
        return Blocks(bm, bn, bk, 4, 1, unroll)
    rule = _rule(rows, cols, d, dot, device, fast, unroll)
    # The fast form holds transformed tiles beside the accumulators: what is best for it is another question.
    return configured(shape_of("signed_xor_fast" if fast else "signed_xor", (rows, cols, reds), d, dot), device, rule)


def _rule(rows: int, cols: int, d: int, dot: torch.dtype, device: torch.device, fast: bool, unroll: bool) -> Blocks:
    """Tile sizes by rules that were not measured: nothing spills, and small shapes still fill the device."""
    wide = dot in (torch.float32, torch.float64)
    if wide:
        area = max(256, (2048 if dot == torch.float32 else 1024) // d)
        bm = min(32, 1 << ((area.bit_length() - 1) // 2))
        blocks = Blocks(bm, min(64, area // bm), 16, 4, 2 if d == 1 else 1, unroll)
        if d == 8:
            # As many accumulators per thread in twice the threads: with half of both, sm_80 spills.
            blocks = Blocks(32, 16, 16, 8, 1, unroll)
        elif d > 8:
            blocks = replace_fields(blocks, warps=8)
    elif fast:
        # Transformed tiles of p and q live beside the accumulators; of octonions not the unrolled corrections too.
        blocks = Blocks(32, 16, 16, 8, 2, False) if d >= 8 else Blocks(64, 256 // d, 16, 8, 2, unroll)
    else:
        blocks = TENSOR_CORE_BLOCKS[d]
        if d >= 4 and dot != torch.int8:
            # Products of 32 steps with four and more accumulators spill; int8 tensor cores take no fewer.
            blocks = replace_fields(blocks, bk=16)
    bm = max(16, min(blocks.bm, next_power_of_two(rows)))
    bn = max(16, min(blocks.bn if bm == blocks.bm else 32, next_power_of_two(cols)))
    while bn > (32 if d == 8 and not wide else 16) and cdiv(rows, bm) * cdiv(cols, bn) < processors(device):
        bn //= 2
    return Blocks(bm, bn, blocks.bk, blocks.warps, blocks.stages, blocks.unroll)


def choose_splits(rows: int, cols: int, reds: int, blocks: Blocks, device: torch.device) -> int:
    """How many programs share one tile's sum over t, so that two waves of programs fill the device."""
    if interpreting():
        return 2 if reds >= 48 else 1
    tiles = cdiv(rows, blocks.bm) * cdiv(cols, blocks.bn)
    return max(1, min(cdiv(2 * processors(device), tiles), reds // (4 * blocks.bk), 64))


def signed_xor_product(
    p: Operand,
    q: Operand,
    sizes: tuple[int, int, int],
    factors: FastProduct,
    out: Operand,
    scales: Scales = Scales(),
    *,
    fast: bool = False,
    add: bool = False,
    full_range: bool = False,
    splits: int = 1,
    fusion: bool = True,
    blocks: Blocks | None = None,
) -> None:
    """Launch :func:`signed_xor_kernel` once.

    Args:
        p, q: operands; ``q.pack`` 1 or 2 if q holds two-bit codes along t or along its columns.
        sizes: rows, columns and length of the sum.
        factors: the sign table with its factorisation.
        out: result, strides along component, row (``major``) and column (``red``); with splits its first axis is the
        split. scales: fused factors.
        fast: use the factorisation.
        add: add to what ``out`` holds.
        full_range: q may hold the code -128.
        splits: programs that share one tile's sum.
        fusion: allow fused multiply-add; never in strict arithmetic.
        blocks: tile sizes, chosen by shape if absent.
    """
    rows, cols, reds = sizes
    d = factors.dimension
    dot = dot_dtype(p.tensor, q.tensor)
    if blocks is None:
        blocks = choose_blocks(rows, cols, reds, d, dot, p.tensor.device, fast)
    share = cdiv(cdiv(reds, splits), blocks.bk) * blocks.bk
    corrections = sum(1 << (a * d + b) for a, b in factors.corrections) if fast else (1 << (d * d)) - 1
    launch(
        signed_xor_kernel,
        (cdiv(rows, blocks.bm) * cdiv(cols, blocks.bn), splits),
        p.tensor,
        q.tensor,
        out.tensor,
        scales.row,
        None if scales.col is None else scales.col.contiguous(),
        scales.p,
        scales.q,
        rows,
        cols,
        reds,
        p.comp,
        p.major,
        p.red,
        q.comp,
        q.major,
        q.red,
        out.tensor.stride(0) if splits > 1 else 0,
        out.comp,
        out.major,
        out.red,
        share,
        warps=blocks.warps,
        stages=blocks.stages,
        fusion=fusion,
        SIGNS=sign_bits(factors.signs),
        FLIP_P=sign_bits(factors.flip_p),
        FLIP_Q=sign_bits(factors.flip_q),
        BASE=sign_bits(factors.base),
        CORRECTIONS=corrections,
        FAST=fast,
        UNROLL=blocks.unroll,
        D=d,
        PACK=q.pack,
        ROW_SCALE=scales.row_mode,
        COL_SCALE=0 if scales.col is None else scales.col.numel() // max(1, cols),
        P_SCALE=scales.p is not None,
        Q_SCALE=scales.q is not None,
        ADD=add,
        FULL_RANGE=full_range,
        DOT=_TRITON_TYPES[dot],
        ACC=_TRITON_TYPES[accumulator(dot)],
        BM=blocks.bm,
        BN=blocks.bn,
        BK=blocks.bk,
    )


def reduce_parts(
    part: Tensor,
    out: Tensor | None,
    row_scale: Tensor | None = None,
    *,
    dots: Tensor | None = None,
    other: Operand | None = None,
    limit: Tensor | None = None,
    clip: float | None = None,
) -> None:
    """Launch :func:`reduce_kernel`: the second stage of a split sum.

    Args:
        part: float [splits, comps, rows, cols].
        out: [comps, rows, cols], or None where only ``dots`` is wanted.
        row_scale: [rows], multiplies ``out``.
        dots, other: dots [rows] becomes the sum over comps and cols of part (before row_scale) times other.
        limit, clip: out is 0 where abs(limit) > clip.
    """
    splits, comps, rows, cols = part.shape
    tile, block = row_tile(rows, cols, 1024)
    launch(
        reduce_kernel,
        (cdiv(rows, tile),),
        part,
        out,
        row_scale,
        None if other is None else other.tensor,
        dots,
        limit,
        rows,
        cols,
        splits,
        comps,
        part.stride(0),
        part.stride(1),
        0 if other is None else other.comp,
        0 if other is None else other.major,
        0 if other is None else other.red,
        ROW_SCALE=row_scale is not None,
        OUT=out is not None,
        DOTS=dots is not None,
        PACK=0 if other is None else other.pack,
        CLIP=clip is not None,
        CLIP_VALUE=float(clip or 0.0),
        ROWS=tile,
        BLOCK=min(block, 1024) if not interpreting() else block,
    )
