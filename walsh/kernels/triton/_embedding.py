# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Kernels of embeddings and their heads: rows gathered by id, and rows added by id.

    gather         out[j] = (before[j] +) importance[t, i] E_i[indices[t, i]],   t = ids[j]           out [n, C]
    segment_sum    out[v] = sum over the j with ids[j] = v, in their order, of factors[j] source[j]   out [V, C]
    row_dot        out[r] = a[a_rows[r]] . b[b_rows[r]]                                               out [n]
    combine        out[m, t] = (before[m, t] +) importance[t, i] products_i[m, indices[t, i]]         out [M, V]

A sum over several tables is one launch per table, from left to right: ``before`` is the sum so far. ``segment_sum``
reads positions that were sorted by id, one program per id: no atomics, the same bits in every run.
"""

import triton
import triton.language as tl

from walsh.kernels.triton._device import narrow, widen


@triton.jit
def gather_kernel(
    ids,
    indices,
    table,
    importance,
    row_scale,
    before,
    out,
    count,
    cols,
    tables,
    which,
    SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = (before +) importance * row_scale * table row of each id; times SCALE in the last of several tables."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    valid = row < count
    inside = valid[:, None] & (col < cols)
    token = tl.load(ids + row, mask=valid, other=0).to(tl.int64)
    source = token
    if indices is not None:
        source = tl.load(indices + token * tables + which, mask=valid, other=0).to(tl.int64)
    value = widen(tl.load(table + source[:, None] * cols + col, mask=inside, other=0))
    if row_scale is not None:
        value = value.to(tl.float32) * tl.load(row_scale + source, mask=valid, other=0.0)[:, None]
    if importance is not None:
        factor = widen(tl.load(importance + token * tables + which, mask=valid, other=0.0))
        value = factor[:, None].to(value.dtype) * value
    index = row.to(tl.int64)[:, None] * cols + col
    if not FIRST:
        value = tl.load(before + index, mask=inside, other=0.0) + value
    if LAST and SCALE != 1.0:
        value = value * SCALE
    tl.store(out + index, narrow(value, out.dtype.element_ty), mask=inside)


@triton.jit
def segment_sum_kernel(
    source,
    order,
    starts,
    factors,
    out,
    cols,
    s_row,
    s_col,
    o_row,
    o_col,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """out[v] = SCALE * sum over positions j of segment v, in order, of factors[order[j]] * source[order[j]]."""
    segment = tl.program_id(0)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(starts + segment)
    last = tl.load(starts + segment + 1)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        row = tl.load(order + place, mask=place < last, other=0).to(tl.int64)
        inside = (place < last)[:, None] & (col < cols)[None, :]
        value = widen(
            tl.load(source + row[:, None] * s_row + col.to(tl.int64)[None, :] * s_col, mask=inside, other=0.0)
        )
        if factors is not None:
            value = value * widen(tl.load(factors + row, mask=place < last, other=0.0))[:, None].to(value.dtype)
        total += tl.sum(value.to(ACC), 0)
    if SCALE != 1.0:
        total = total * SCALE
    where = out + segment.to(tl.int64) * o_row + col.to(tl.int64) * o_col
    tl.store(where, narrow(total, out.dtype.element_ty), mask=col < cols)


@triton.jit
def row_dot_kernel(
    a, b, a_rows, b_rows, out, count, cols, a_row, a_col, b_row, b_col, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """out[r] = a[a_rows[r]] . b[b_rows[r]], rows themselves where an index is absent."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < count
    left = row.to(tl.int64)
    right = row.to(tl.int64)
    if a_rows is not None:
        left = tl.load(a_rows + row, mask=valid, other=0).to(tl.int64)
    if b_rows is not None:
        right = tl.load(b_rows + row, mask=valid, other=0).to(tl.int64)
    total = tl.zeros((ROWS,), out.dtype.element_ty)
    for start in range(0, cols, BLOCK):
        col = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = valid[:, None] & (col < cols)[None, :]
        x = widen(tl.load(a + left[:, None] * a_row + col[None, :] * a_col, mask=inside, other=0.0))
        y = widen(tl.load(b + right[:, None] * b_row + col[None, :] * b_col, mask=inside, other=0.0))
        total += tl.sum(x.to(total.dtype) * y.to(total.dtype), 1)
    tl.store(out + row, total, mask=valid)


@triton.jit
def combine_kernel(
    products,
    indices,
    importance,
    before,
    out,
    vocabulary,
    size,
    tables,
    which,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[m, t] = (before +) importance[t, which] * products[m, indices[t, which]]."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    inside = token < vocabulary
    source = tl.load(indices + token.to(tl.int64) * tables + which, mask=inside, other=0).to(tl.int64)
    factor = widen(tl.load(importance + token.to(tl.int64) * tables + which, mask=inside, other=0.0))
    value = factor * tl.load(products + row * size + source, mask=inside, other=0.0)
    index = row * vocabulary + token
    if not FIRST:
        value = tl.load(before + index, mask=inside, other=0.0) + value
    tl.store(out + index, narrow(value, out.dtype.element_ty), mask=inside)
