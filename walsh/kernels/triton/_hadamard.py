# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403, SIM108
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Kernels of the Hadamard linear layer: tiles [n, BM, BK] hold the same features of all n blocks.

    out_g = out_scale_g * c_n * sum_h H[g, h] (c_n * sum_i H[h, i] (in_scale_i * x_i)) w_h^T          c_n = 1 / sqrt(n)

The transform across blocks is a butterfly along the first axis of a tile, the n small products are one batched
``tl.dot``, and the second transform acts on the accumulators: one launch, nothing in between is written to memory. The
gradient of x is the same kernel with the scales exchanged and w transposed.
"""

import triton
import triton.language as tl

from walsh.kernels.triton._device import butterflies, divide, narrow, widen
from walsh.kernels.triton._gemm import load_codes, multiply, operand
from walsh.kernels.triton.activations import codes_of, scale_of


@triton.jit
def transform_blocks(v, N: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Unnormalised transform along the first axis of [N, ROWS, COLS]."""
    return tl.reshape(butterflies(tl.reshape(v, (N * ROWS * COLS,)), 1, N, ROWS * COLS), (N, ROWS, COLS))


@triton.jit
def load_blocks(
    x,
    scale,
    row,
    col,
    x_comp,
    x_row,
    x_col,
    rows,
    cols,
    last,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    TRANSFORM: tl.constexpr,
    NORM: tl.constexpr,
    ACC: tl.constexpr,
):
    """The tile [N, rows, cols] of x, scaled per block and column, then transformed across the blocks."""
    g = tl.arange(0, N)[:, None, None]
    inside = (row[None, :, None] < rows) & (col[None, None, :] < last)
    where = x + g * x_comp + row.to(tl.int64)[None, :, None] * x_row + col.to(tl.int64)[None, None, :] * x_col
    v = widen(tl.load(where, mask=inside, other=0))
    if SCALE:
        v = v.to(ACC) * tl.load(scale + g * cols + col[None, None, :], mask=col[None, None, :] < last, other=0.0).to(
            ACC
        )
    if TRANSFORM:
        v = transform_blocks(v.to(ACC), N, row.shape[0], col.shape[0])
        if N > 1:
            v = v * NORM
    return v


@triton.jit
def hadamard_linear_kernel(
    x,
    w,
    y,
    in_scale,
    out_scale,
    row_scale,
    other,
    part,
    rows,
    cols,
    reds,
    x_comp,
    x_row,
    x_col,
    w_comp,
    w_col,
    w_red,
    other_row,
    N: tl.constexpr,
    NORM: tl.constexpr,
    PACK: tl.constexpr,
    TRANSFORM: tl.constexpr,
    IN_SCALE: tl.constexpr,
    OUT_SCALE: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    STORE: tl.constexpr,
    PART: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y [rows, n * cols] if STORE; if PART, part [row tile, n, cols] = sum over rows of y / out_scale times other.

    ROW_SCALE 1 divides by a scale per row, 2 multiplies by it (integer products). OUT_SCALE: how many factors [n,
    cols], one after the other in ``out_scale``, are multiplied in turn.
    """
    tile = tl.program_id(0)
    col_tiles = tl.cdiv(cols, BN)
    row = (tile // col_tiles) * BM + tl.arange(0, BM)
    col = (tile % col_tiles) * BN + tl.arange(0, BN)
    g = tl.arange(0, N)[:, None, None]
    acc = tl.zeros((N, BM, BN), ACC)
    for start in range(0, reds, BK):
        red = start + tl.arange(0, BK)
        v = load_blocks(
            x, in_scale, row, red, x_comp, x_row, x_col, rows, reds, reds, N, IN_SCALE, TRANSFORM, NORM, ACC
        )
        inside = (red[None, :, None] < reds) & (col[None, None, :] < cols)
        across, along = col.to(tl.int64)[None, None, :], red.to(tl.int64)[None, :, None]
        codes = load_codes(w, g, across, along, w_comp, w_col, w_red, inside, PACK)
        acc = multiply(operand(v, DOT), operand(codes, DOT), acc, ACC)
    z = transform_blocks(acc, N, BM, BN)
    if ROW_SCALE > 0:
        unit = tl.load(row_scale + row, mask=row < rows, other=1.0)[None, :, None]
        if ROW_SCALE == 1:
            z = divide(z.to(unit.dtype), tl.broadcast_to(unit, (N, BM, BN)))
        else:
            z = z.to(unit.dtype) * unit
    if N > 1:
        z = z * NORM
    inside = (row[None, :, None] < rows) & (col[None, None, :] < cols)
    feature = g * cols + col[None, None, :]
    if PART:
        partner = tl.load(other + row.to(tl.int64)[None, :, None] * other_row + feature, mask=inside, other=0.0)
        products = tl.where(inside, z * widen(partner).to(z.dtype), 0.0)
        total = tl.sum(products, 1)
        flat = tl.arange(0, N)[:, None] * cols + col[None, :]
        tl.store(part + (tile // col_tiles).to(tl.int64) * (N * cols) + flat, total, mask=col[None, :] < cols)
    if STORE:
        for factor in tl.static_range(OUT_SCALE):
            unit = tl.load(out_scale + factor * (N * cols) + feature, mask=col[None, None, :] < cols, other=0.0)
            z = z * unit.to(z.dtype)
        where = y + row.to(tl.int64)[None, :, None] * (N * cols) + feature
        tl.store(where, narrow(z, y.dtype.element_ty), mask=inside)


@triton.jit
def hadamard_quantize_kernel(
    x,
    codes,
    scales,
    in_scale,
    rows,
    cols,
    x_row,
    N: tl.constexpr,
    NORM: tl.constexpr,
    IN_SCALE: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """int8 codes of v = c_n H(in_scale * x) with one scale per row; the transform is computed twice, never stored."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    largest = tl.zeros((BM,), ACC)
    finite = tl.full((BM,), 1, tl.int32)
    for start in range(0, cols, BK):
        col = start + tl.arange(0, BK)
        v = tl.abs(load_blocks(x, in_scale, row, col, cols, x_row, 1, rows, cols, cols, N, IN_SCALE, True, NORM, ACC))
        good = v < float("inf")
        finite = tl.minimum(finite, tl.min(tl.min(good.to(tl.int32), 2), 0))
        largest = tl.maximum(largest, tl.max(tl.max(tl.where(good, v, 0.0), 2), 0))
    scale = scale_of(largest, finite == 1)
    g = tl.arange(0, N)[:, None, None]
    for start in range(0, cols, BK):
        col = start + tl.arange(0, BK)
        v = load_blocks(x, in_scale, row, col, cols, x_row, 1, rows, cols, cols, N, IN_SCALE, True, NORM, ACC)
        where = codes + row.to(tl.int64)[None, :, None] * (N * cols) + g * cols + col[None, None, :]
        inside = (row[None, :, None] < rows) & (col[None, None, :] < cols)
        tl.store(where, codes_of(v, scale[None, :, None]), mask=inside)
    if RECIPROCAL:
        scale = divide(tl.full((BM,), 1.0, ACC), scale)
    tl.store(scales + row, scale, mask=row < rows)
