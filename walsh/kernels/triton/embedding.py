# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Embeddings, plain and hashed, and their tied heads (SPEC.md, section *embedding*).

    e(t) = E[t];     e(t) = scale * sum_i importance[t, i] E_i[indices[t, i]]                   ids [...], e [..., C]
    logits = x table^T;     logits_t = sum_i importance[t, i] (x . E_i[indices[t, i]])

The gradient of a table adds the rows of all tokens with one id. Ids are sorted first (a stable sort), then one program
per row adds its tokens in their order: no atomics, the same bits in every run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.algebra import fast_forward
from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import (
    accumulate_dtype,
    require_features,
    require_float,
    require_integer,
    require_range,
    require_shape,
    rows,
)
from walsh.kernels.triton._device import narrow, widen
from walsh.kernels.triton._gemm import Operand, Scales, signed_xor_product
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation

PRIMES = {2: (1021,), 3: (1021, 1019, 1013)}


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
    count,
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


def _tile(count: int, cols: int) -> tuple[int, int]:
    block = min(next_power_of_two(cols), 1024)
    return max(1, min(next_power_of_two(count), (1 << 16 if interpreting() else 1024) // block)), block


def gather(
    ids: Tensor,
    tables: Sequence[Tensor],
    out: Tensor,
    *,
    indices: Tensor | None = None,
    importance: Tensor | None = None,
    scales: Sequence[Tensor] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Launch :func:`gather_kernel` once per table, left to right; sums stay wide until the last."""
    count, cols = ids.numel(), out.shape[-1]
    flat = ids.reshape(-1).contiguous()
    tile, block = _tile(count, cols)
    wide = out
    if len(tables) > 1 and out.is_floating_point() and out.element_size() == 2:
        wide = torch.empty_like(out, dtype=torch.float32)
    for which, table in enumerate(tables):
        last = which == len(tables) - 1
        launch(
            gather_kernel,
            (cdiv(count, tile), cdiv(cols, block)),
            flat,
            indices,
            table.contiguous(),
            importance,
            None if scales is None else scales[which].contiguous(),
            wide if which else None,
            out if last else wide,
            count,
            cols,
            len(tables),
            which,
            fusion=False,
            SCALE=scale,
            FIRST=which == 0,
            LAST=last,
            ROWS=tile,
            BLOCK=block,
        )
    return out


def segments(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions of ids sorted by id, equal ids in their order, and where each id starts (count + 1 numbers)."""
    values, order = torch.sort(ids.reshape(-1).to(torch.int64), stable=True)
    starts = torch.searchsorted(values, torch.arange(count + 1, device=ids.device))
    return order, starts


def segment_sum(
    source: Operand,
    cols: int,
    groups: tuple[Tensor, Tensor],
    out: Operand,
    factors: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """Launch :func:`segment_sum_kernel`; ``major`` and ``red`` of both operands are the strides of rows and columns."""
    order, starts = groups
    tile, block = (64 if interpreting() else 8), min(next_power_of_two(cols), 512)
    wide = accumulate_dtype(source.tensor, factors)
    launch(
        segment_sum_kernel,
        (starts.shape[0] - 1, cdiv(cols, block)),
        source.tensor,
        order,
        starts,
        factors,
        out.tensor,
        cols,
        source.major,
        source.red,
        out.major,
        out.red,
        SCALE=scale,
        ROWS=tile,
        BLOCK=block,
        ACC=tl.float64 if wide == torch.float64 else tl.float32,
    )


def row_dots(a: Operand, b: Operand, cols: int, out: Tensor, a_rows: Tensor | None, b_rows: Tensor | None) -> Tensor:
    """Launch :func:`row_dot_kernel` for every element of ``out``."""
    tile, block = _tile(out.numel(), cols)
    strides = (a.major, a.red, b.major, b.red)
    args = (a.tensor, b.tensor, a_rows, b_rows, out, out.numel(), cols, *strides)
    launch(row_dot_kernel, (cdiv(out.numel(), tile),), *args, ROWS=tile, BLOCK=block)
    return out


def rowwise(x: Tensor) -> Operand:
    """A contiguous matrix [rows, cols]."""
    flat = x.reshape(rows(x), x.shape[-1]).contiguous()
    return Operand(flat, 0, flat.shape[1], 1)


def _fake_embedding(ids, table):
    return table.new_empty((*ids.shape, table.shape[1]))


@operation("embedding", _fake_embedding)
def _embedding(ids: Tensor, table: Tensor) -> Tensor:
    require_device(ids, table)
    return gather(ids, [table], _fake_embedding(ids, table))


def _fake_embedding_backward(de, ids, table):
    return table.new_empty(table.shape)


@operation("embedding_backward", _fake_embedding_backward)
def _embedding_backward(de: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    dtable = _fake_embedding_backward(de, ids, table)
    size, cols = table.shape
    segment_sum(rowwise(de), cols, segments(ids, size), Operand(dtable, 0, cols, 1))
    return dtable


def _setup_embedding(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate_embedding(ctx, de):
    return None, _embedding_backward(de, *ctx.saved_tensors)


_embedding.differentiate(_differentiate_embedding, _setup_embedding)


def check_ids(ids: Tensor, vocabulary: int, name: str = "ids") -> None:
    """Raise unless these are integers in 0 .. vocabulary - 1."""
    require_integer(name, ids)
    require_range(name, ids, 0, vocabulary, "check the tokenizer against the vocabulary")


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table.

    Args:
        ids: integer [...].
        table: float [V, C].

    Returns:
        e [..., C] in the dtype of table.

    Raises:
        RangeError: an id outside 0 .. V-1. ShapeError, DTypeError: arguments that do not fit. BackendError: no machine.
    """
    require_float("table", table)
    require_shape("table", table, (None, None), "[V, C]")
    check_ids(ids, table.shape[0])
    result: Tensor = _embedding(ids, table)
    return result


def hash_indices(ids: Tensor, tables: int) -> Tensor:
    """Rows of the small tables that make up each token.

    Args:
        ids: integer [...].
        tables: 2 (t mod 1021, t div 1021) or 3 (t mod 1021, 1019, 1013).

    Returns:
        int64 [..., tables].

    Raises:
        ParameterError: another number of tables. RangeError: a negative id. DTypeError: ids are not integers.
    """
    if tables not in PRIMES:
        raise ParameterError(f"tables is {tables}: expected 2 or 3")
    require_integer("ids", ids)
    require_range("ids", ids, 0, 2**62, "token ids count from 0")
    ids = ids.to(torch.int64)
    if tables == 2:
        return torch.stack([ids % 1021, ids // 1021], dim=-1)
    return torch.stack([ids % prime for prime in PRIMES[3]], dim=-1)


def check_hash(tables: Sequence[Tensor], importance: Tensor, indices: Tensor | None) -> Tensor:
    """Validate and return contiguous indices int64 [V, tables]."""
    if not tables:
        raise ShapeError("tables is empty: expected at least one table [P_i, C]")
    for i, table in enumerate(tables):
        require_shape(f"tables.{i}", table, (None, tables[0].shape[-1]), "[P_i, C]")
    require_float("importance", importance)
    require_shape("importance", importance, (None, len(tables)), "[V, tables]")
    if indices is None:
        indices = hash_indices(torch.arange(importance.shape[0], device=importance.device), len(tables))
    require_integer("indices", indices)
    require_shape("indices", indices, tuple(importance.shape), "[V, tables]")
    for i, table in enumerate(tables):
        require_range(f"indices[:, {i}]", indices[:, i], 0, table.shape[0], f"tables.{i} has {table.shape[0]} rows")
    return indices.to(torch.int64).contiguous()


def _fake_hash(ids, tables, importance, indices, scale):
    return tables[0].new_empty((*ids.shape, tables[0].shape[1]))


@operation("hash_embedding", _fake_hash)
def _hash_embedding(ids: Tensor, tables: list[Tensor], importance: Tensor, indices: Tensor, scale: float) -> Tensor:
    require_device(ids, importance, indices, *tables)
    out = _fake_hash(ids, tables, importance, indices, scale)
    return gather(ids, tables, out, indices=indices, importance=importance.contiguous(), scale=scale)


def _fake_hash_backward(de, ids, tables, importance, indices, scale):
    return [table.new_empty(table.shape) for table in tables], importance.new_empty(importance.shape)


@operation("hash_embedding_backward", _fake_hash_backward)
def _hash_backward(
    de: Tensor, ids: Tensor, tables: list[Tensor], importance: Tensor, indices: Tensor, scale: float
) -> tuple[list[Tensor], Tensor]:
    """Gradients of every table and of the importance."""
    dtables, dimportance = _fake_hash_backward(de, ids, tables, importance, indices, scale)
    flat, cols = ids.reshape(-1), tables[0].shape[1]
    source, groups = rowwise(de), segments(ids, importance.shape[0])
    for i, (table, dtable) in enumerate(zip(tables, dtables, strict=True)):
        where = indices[flat, i].contiguous()
        factors = importance[flat, i].contiguous()
        segment_sum(source, cols, segments(where, table.shape[0]), Operand(dtable, 0, cols, 1), factors, scale)
        dots = importance.new_empty((flat.shape[0], 1), dtype=accumulate_dtype(de, table))
        row_dots(source, rowwise(table), cols, dots, None, where)
        target = Operand(dimportance[:, i], 0, dimportance.stride(0), 1)
        segment_sum(Operand(dots, 0, 1, 1), 1, groups, target, None, scale)
    return dtables, dimportance


def _setup_hash(ctx, inputs, output):
    ids, tables, importance, indices, ctx.scale = inputs
    ctx.save_for_backward(ids, importance, indices, *tables)


def _differentiate_hash(ctx, de):
    ids, importance, indices, *tables = ctx.saved_tensors
    dtables, dimportance = _hash_backward(de, ids, tables, importance, indices, ctx.scale)
    return None, dtables, dimportance, None, None


_hash_embedding.differentiate(_differentiate_hash, _setup_hash)


def hash_embedding(
    ids: Tensor, tables: Sequence[Tensor], importance: Tensor, indices: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Weighted sum of one row from each of several small tables.

    Args:
        ids: integer [...].
        tables: float [P_i, C] each.
        importance: float [V, tables].
        indices: integer [V, tables]; those of ``hash_indices`` if absent.
        scale: factor on the sum.

    Returns:
        e [..., C] in the dtype of the tables.

    Raises:
        RangeError: an id outside 0 .. V-1 or an index outside its table. ShapeError, DTypeError: arguments that do not
        fit. ParameterError: no default indices for this number of tables. BackendError: no machine for Triton.
    """
    indices = check_hash(tables, importance, indices)
    for i, table in enumerate(tables):
        require_float(f"tables.{i}", table)
    check_ids(ids, importance.shape[0])
    result: Tensor = _hash_embedding(ids, list(tables), importance, indices, float(scale))
    return result


def matrix_product(p: Operand, q: Operand, sizes: tuple[int, int, int], out: Tensor, *, add: bool = False) -> Tensor:
    """out [rows, cols] (+)= p q^T: the D = 1 form of the product kernel."""
    signed_xor_product(p, q, sizes, fast_forward(1), Operand(out, 0, out.stride(0), out.stride(1)), Scales(), add=add)
    return out


def _fake_head(x, table):
    return x.new_empty((*x.shape[:-1], table.shape[0]))


@operation("lm_head", _fake_head)
def _lm_head(x: Tensor, table: Tensor) -> Tensor:
    require_device(x, table)
    logits = _fake_head(x, table)
    count, (vocabulary, cols) = rows(x), table.shape
    matrix_product(
        rowwise(x), Operand(table, 0, *table.stride()), (count, vocabulary, cols), logits.view(count, vocabulary)
    )
    return logits


def _fake_head_backward(dlogits, x, table):
    return x.new_empty(x.shape), table.new_empty(table.shape)


@operation("lm_head_backward", _fake_head_backward)
def _lm_head_backward(dlogits: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    dx, dtable = _fake_head_backward(dlogits, x, table)
    count, (vocabulary, cols) = rows(x), table.shape
    upstream, source = rowwise(dlogits), rowwise(x)
    across = Operand(table, 0, table.stride(1), table.stride(0))
    matrix_product(upstream, across, (count, cols, vocabulary), dx.view(count, cols))
    down = Operand(upstream.tensor, 0, 1, vocabulary)
    matrix_product(down, Operand(source.tensor, 0, 1, cols), (vocabulary, cols, count), dtable)
    return dx, dtable


def _setup_head(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate_head(ctx, dlogits):
    return _lm_head_backward(dlogits, *ctx.saved_tensors)


_lm_head.differentiate(_differentiate_head, _setup_head)


def check_head(x: Tensor, table: Tensor) -> None:
    """Raise unless x [..., C] fits a table [V, C]."""
    require_shape("table", table, (None, None), "[V, C]")
    require_float("x", x)
    require_features("x", x, table.shape[1], "C")


def lm_head(x: Tensor, table: Tensor) -> Tensor:
    """Logits of every token: x table^T.

    Args:
        x: float [..., C].
        table: float [V, C].

    Returns:
        logits [..., V] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. BackendError: no machine for Triton.
    """
    require_float("table", table)
    check_head(x, table)
    result: Tensor = _lm_head(x, table)
    return result


def _fake_hash_head(x, tables, importance, indices):
    return x.new_empty((*x.shape[:-1], importance.shape[0]))


@operation("hash_lm_head", _fake_hash_head)
def _hash_head(x: Tensor, tables: list[Tensor], importance: Tensor, indices: Tensor) -> Tensor:
    require_device(x, importance, indices, *tables)
    logits = _fake_hash_head(x, tables, importance, indices)
    products = [_products(x, table) for table in tables]
    return combine(products, indices, importance.contiguous(), logits)


def _products(x: Tensor, table: Tensor) -> Tensor:
    """x . row for every row of one small table, [rows of x, P_i], wide."""
    count, (size, cols) = rows(x), table.shape
    out = x.new_empty((count, size), dtype=accumulate_dtype(x, table))
    return matrix_product(rowwise(x), Operand(table, 0, *table.stride()), (count, size, cols), out)


def combine(products: Sequence[Tensor], indices: Tensor, importance: Tensor, logits: Tensor) -> Tensor:
    """Launch :func:`combine_kernel` once per table, left to right."""
    count, vocabulary = rows(logits), logits.shape[-1]
    block = min(next_power_of_two(vocabulary), 1 << 14 if interpreting() else 1024)
    wide = torch.empty_like(logits, dtype=products[0].dtype) if len(products) > 1 else logits
    for which, product in enumerate(products):
        launch(
            combine_kernel,
            (cdiv(vocabulary, block), count),
            product,
            indices,
            importance,
            wide if which else None,
            logits if which == len(products) - 1 else wide,
            count,
            vocabulary,
            product.shape[1],
            len(products),
            which,
            fusion=False,
            FIRST=which == 0,
            BLOCK=block,
        )
    return logits


def _fake_hash_head_backward(dlogits, x, tables, importance, indices):
    dtables = [table.new_empty(table.shape) for table in tables]
    return x.new_empty(x.shape), dtables, importance.new_empty(importance.shape)


@operation("hash_lm_head_backward", _fake_hash_head_backward)
def _hash_head_backward(
    dlogits: Tensor, x: Tensor, tables: list[Tensor], importance: Tensor, indices: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Gradients of x, of every table and of the importance."""
    dx, dtables, dimportance = _fake_hash_head_backward(dlogits, x, tables, importance, indices)
    count, cols, vocabulary = rows(x), x.shape[-1], importance.shape[0]
    upstream, source = rowwise(dlogits), rowwise(x)
    wide = x.new_empty((count, cols), dtype=accumulate_dtype(x, *tables))
    for i, (table, dtable) in enumerate(zip(tables, dtables, strict=True)):
        size = table.shape[0]
        where = indices[:, i].contiguous()
        # What each row of the small table receives: the tokens that use it, weighted. [P_i, rows of x], so columns are
        # rows of x.
        received = x.new_empty((size, count), dtype=wide.dtype)
        by_token = Operand(upstream.tensor, 0, 1, vocabulary)
        target = Operand(received, 0, count, 1)
        segment_sum(by_token, count, segments(where, size), target, importance[:, i].contiguous())
        matrix_product(Operand(received, 0, count, 1), Operand(source.tensor, 0, 1, cols), (size, cols, count), dtable)
        across = Operand(table, 0, table.stride(1), table.stride(0))
        matrix_product(Operand(received, 0, 1, count), across, (count, cols, size), wide, add=i > 0)
        products = _products(x, table)
        dots = importance.new_empty((vocabulary,), dtype=wide.dtype)
        row_dots(by_token, Operand(products, 0, 1, size), count, dots, None, where)
        dimportance[:, i] = dots.to(importance.dtype)
    dx.view(count, cols).copy_(wide)
    return dx, dtables, dimportance


def _setup_hash_head(ctx, inputs, output):
    x, tables, importance, indices = inputs
    ctx.save_for_backward(x, importance, indices, *tables)


def _differentiate_hash_head(ctx, dlogits):
    x, importance, indices, *tables = ctx.saved_tensors
    dx, dtables, dimportance = _hash_head_backward(dlogits, x, tables, importance, indices)
    return dx, dtables, dimportance, None


_hash_head.differentiate(_differentiate_hash_head, _setup_hash_head)


def hash_lm_head(x: Tensor, tables: Sequence[Tensor], importance: Tensor, indices: Tensor | None = None) -> Tensor:
    """The tied head of a hash embedding, without its scale.

    Args:
        x: float [..., C].
        tables: float [P_i, C] each.
        importance: float [V, tables].
        indices: integer [V, tables]; those of ``hash_indices`` if absent.

    Returns:
        logits [..., V] in the dtype of x: one product with each small table, then a gather; never a [V, C] table.

    Raises:
        As :func:`hash_embedding`.
    """
    indices = check_hash(tables, importance, indices)
    for i, table in enumerate(tables):
        require_float(f"tables.{i}", table)
        check_head(x, table)
    result: Tensor = _hash_head(x, list(tables), importance, indices)
    return result
