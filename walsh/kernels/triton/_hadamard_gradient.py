# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: SIM102
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled:
# a constant and a condition at run time are two ``if``.
"""Kernels of the parameters' gradients of the Hadamard linear layer.

    dw_g     = sum over rows of dz_g^T v_g,   dz = H(beta * dy),   v = H(alpha * x)
    dbeta_g  = sum over rows of dy_g * (H z)_g,                    z_g = v_g w_g^T

z is a sum over K and H is linear, so dbeta is a sum over tiles of K: the program that owns a tile of dw has the tiles
of v, dy and w at hand, and adds its share of dbeta to what it does for dw. Both are sums over rows, split over
programs; :func:`hadamard_sums_kernel` adds the parts in a fixed order, and those of dalpha with them: no atomics, the
same bits in every run.
"""

import triton
import triton.language as tl

from walsh.kernels.triton._device import divide, narrow, widen
from walsh.kernels.triton._gemm import load_codes, multiply, operand
from walsh.kernels.triton._hadamard import load_blocks, transform_blocks


@triton.jit
def hadamard_weight_kernel(
    dy,
    x,
    w,
    part,
    dots,
    out_scale,
    in_scale,
    x_scale,
    rows,
    cols,
    reds,
    dy_row,
    x_row,
    w_comp,
    w_col,
    w_red,
    share,
    N: tl.constexpr,
    NORM: tl.constexpr,
    PACK: tl.constexpr,
    WEIGHT: tl.constexpr,
    DOTS: tl.constexpr,
    OUT_SCALE: tl.constexpr,
    IN_SCALE: tl.constexpr,
    CODES: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    DOTS_DOT: tl.constexpr,
    DOTS_ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """This split's rows: part [split, n, cols, reds] if WEIGHT, dots [split * tiles of reds, n, cols] if DOTS.

    CODES: x holds the rounded v already, with a scale per row; products of codes are exact, divided afterwards.
    """
    tile = tl.program_id(0)
    red_tiles = tl.cdiv(reds, BK)
    red_tile = tile % red_tiles
    col = (tile // red_tiles) * BN + tl.arange(0, BN)
    red = red_tile * BK + tl.arange(0, BK)
    split = tl.program_id(1)
    first = split * share
    last = tl.minimum(first + share, rows)
    g = tl.arange(0, N)[:, None, None]
    acc = tl.zeros((N, BN, BK), ACC)
    total = tl.zeros((N, BN), DOTS_ACC)
    for start in range(first, last, BM):
        row = start + tl.arange(0, BM)
        v = load_blocks(x, in_scale, row, red, reds, x_row, 1, last, reds, reds, N, IN_SCALE, not CODES, NORM, ACC)
        if CODES:
            unit = tl.load(x_scale + row, mask=row < last, other=1.0)[None, :, None]
        if DOTS:
            # Loaded in every step, from cache: held, it would take the registers that the products need.
            inside = (red[None, :, None] < reds) & (col[None, None, :] < cols)
            across, along = col.to(tl.int64)[None, None, :], red.to(tl.int64)[None, :, None]
            codes = load_codes(w, g, across, along, w_comp, w_col, w_red, inside, PACK)
            zero = tl.zeros((N, BM, BN), DOTS_ACC)
            z = transform_blocks(multiply(operand(v, DOTS_DOT), operand(codes, DOTS_DOT), zero, DOTS_ACC), N, BM, BN)
            if CODES:
                z = divide(z.to(unit.dtype), tl.broadcast_to(unit, (N, BM, BN)))
            dy_tile = load_blocks(dy, None, row, col, cols, dy_row, 1, last, cols, cols, N, False, False, NORM, ACC)
            products = tl.where(row[None, :, None] < last, dy_tile.to(DOTS_ACC) * z.to(DOTS_ACC), 0.0)
            total += tl.sum(products, 1)
        if WEIGHT:
            # What comes before and what comes after at once, as the compiler would have it, take too many registers.
            tl.debug_barrier()
            if CODES:
                v = divide(v.to(unit.dtype), tl.broadcast_to(unit, (N, BM, BK)))
            dz = load_blocks(dy, out_scale, row, col, cols, dy_row, 1, last, cols, cols, N, OUT_SCALE, True, NORM, ACC)
            acc = multiply(tl.permute(operand(dz, DOT), (0, 2, 1)), operand(v, DOT), acc, ACC)
    if WEIGHT:
        inside = (col[None, :, None] < cols) & (red[None, None, :] < reds)
        index = (split.to(tl.int64) * N + g) * cols * reds + col.to(tl.int64)[None, :, None] * reds + red[None, None, :]
        tl.store(part + index, acc, mask=inside)
    if DOTS:
        if N > 1:
            total = total * NORM
        flat = tl.arange(0, N)[:, None] * cols + col[None, :]
        which = (split * red_tiles + red_tile).to(tl.int64) * (N * cols)
        tl.store(dots + which + flat, total, mask=col[None, :] < cols)


@triton.jit
def add_parts(
    part, out, limit, tile, size, parts, CLIP: tl.constexpr, CLIP_VALUE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip  # one argument a line would hide how short it is
    """A tile of out [size] = sum over part [parts, size], PARTS at a time; 0 where abs(limit) > CLIP_VALUE."""
    index = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = tl.zeros((PARTS, BLOCK), part.dtype.element_ty)
    for start in range(0, parts, PARTS):
        which = start + tl.arange(0, PARTS)
        where = part + which.to(tl.int64)[:, None] * size + index[None, :]
        total += tl.load(where, mask=(which[:, None] < parts) & inside[None, :], other=0.0)
    value = tl.sum(total, 0)
    if CLIP:
        inner = tl.abs(widen(tl.load(limit + index, mask=inside, other=0.0))) <= CLIP_VALUE
        value = tl.where(inner, value, 0.0)
    tl.store(out + index, narrow(value, out.dtype.element_ty), mask=inside)


@triton.jit
def hadamard_sums_kernel(
    w_part,
    dw,
    w,
    alpha_part,
    dalpha,
    beta_part,
    dbeta,
    w_size,
    w_parts,
    w_tiles,
    alpha_size,
    alpha_parts,
    alpha_tiles,
    beta_size,
    beta_parts,
    WEIGHT: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    CLIP: tl.constexpr,
    CLIP_VALUE: tl.constexpr,
    W_PARTS: tl.constexpr,
    W_BLOCK: tl.constexpr,
    ALPHA_PARTS: tl.constexpr,
    ALPHA_BLOCK: tl.constexpr,
    BETA_PARTS: tl.constexpr,
    BETA_BLOCK: tl.constexpr,
):
    """The second stage of all three gradients in one launch: programs are dealt out to dw, then dalpha, then dbeta."""
    tile = tl.program_id(0)
    if WEIGHT:
        if tile < w_tiles:
            add_parts(w_part, dw, w, tile, w_size, w_parts, CLIP, CLIP_VALUE, W_PARTS, W_BLOCK)
    if ALPHA:
        own = tile - w_tiles
        if (own >= 0) & (own < alpha_tiles):
            add_parts(alpha_part, dalpha, None, own, alpha_size, alpha_parts, False, 0.0, ALPHA_PARTS, ALPHA_BLOCK)
    if BETA:
        own = tile - w_tiles - alpha_tiles
        if own >= 0:
            add_parts(beta_part, dbeta, None, own, beta_size, beta_parts, False, 0.0, BETA_PARTS, BETA_BLOCK)
