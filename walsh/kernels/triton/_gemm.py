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

import triton
import triton.language as tl

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
