# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Embeddings, plain and hashed (SPEC.md, section *embedding*); their tied heads are in ``embedding_head.py``.

    e(t) = E[t];     e(t) = scale * sum_i importance[t, i] E_i[indices[t, i]]                   ids [...], e [..., C]

The gradient of a table adds the rows of all tokens with one id. Ids are sorted first (a stable sort), then one program
per row adds its tokens in their order: no atomics, the same bits in every run.
"""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import (
    accumulate_dtype,
    require_float,
    require_integer,
    require_range,
    require_shape,
)
from walsh.kernels.triton._embedding import gather_kernel, row_dot_kernel, segment_sum_kernel
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.gemm import Operand, rowwise

PRIMES = {2: (1021,), 3: (1021, 1019, 1013)}


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
