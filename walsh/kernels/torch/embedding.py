"""Token embeddings, plain and hashed, and the heads tied to them (SPEC.md, section *embedding*).

    e(t) = table[t],                 logits = x table^T                             table [V, C], x [..., C]
    e(t) = scale * sum_i importance[t, i] E_i[indices[t, i]]                                      hashed
    logits_t = sum_i importance[t, i] (x . E_i[indices[t, i]])

Hash embeddings after Svenstrup et al. (arXiv 1709.03933). A hash head multiplies x with the small tables and gathers
columns of the products: sum_i P_i C products per token instead of V C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.torch._check import (
    accumulate_dtype,
    require_features,
    require_float,
    require_integer,
    require_number,
    require_range,
    require_shape,
)

PRIMES = (1021, 1019, 1013)


def _add_rows(total: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """Add rows [..., C] to rows ids [...] of total [P, C]."""
    return total.index_add_(0, ids.reshape(-1), rows.reshape(ids.numel(), total.shape[1]).to(total.dtype))


def _chosen(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids] in new memory; whole rows at a time."""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])


class _Rows(torch.autograd.Function):
    """table[ids]; the gradients of a row are summed in at least float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype = table.shape, table.dtype
        return _chosen(table, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, de: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape, dtype=accumulate_dtype(de), device=de.device)
        return _add_rows(total, ids, de).to(ctx.dtype), None


class _HashRows(torch.autograd.Function):
    """``scale * sum_i importance[ids, i] tables_i[chosen[..., i]]``; saves indices, and forms the rows again."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, chosen: Tensor, scale: float, importance: Tensor, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(ids, chosen, importance, *tables)
        ctx.scale, ctx.work = scale, accumulate_dtype(importance, *tables)
        weights = _chosen(importance, ids).to(ctx.work)
        total = torch.zeros((), dtype=ctx.work, device=ids.device)
        for i, table in enumerate(tables):
            rows = _chosen(table, chosen[..., i]).to(ctx.work).mul_(weights[..., i, None])
            total = rows if i == 0 else total.add_(rows)
        return (total if scale == 1 else total.mul_(scale)).to(tables[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, de: Tensor) -> tuple[Tensor | None, ...]:
        ids, chosen, importance, *tables = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        de = de.to(ctx.work) * ctx.scale
        weights = _chosen(importance, ids).to(ctx.work)
        dweights = torch.empty_like(weights)
        dtables: list[Tensor | None] = []
        for i, table in enumerate(tables):
            if needs[0]:
                dweights[..., i] = (de * _chosen(table, chosen[..., i])).sum(dim=-1)
            if needs[1 + i]:
                total = torch.zeros(table.shape, dtype=ctx.work, device=de.device)
                dtables.append(_add_rows(total, chosen[..., i], de * weights[..., i, None]).to(table.dtype))
            else:
                dtables.append(None)
        dimportance = None
        if needs[0]:
            total = torch.zeros(importance.shape, dtype=ctx.work, device=de.device)
            dimportance = _add_rows(total, ids, dweights).to(importance.dtype)
        return None, None, None, dimportance, *dtables


def _check_ids(ids: Tensor, vocabulary: int) -> Tensor:
    require_integer("ids", ids)
    require_range("ids", ids, 0, vocabulary, "an id is a row of the table; is this its tokenizer?")
    return ids.to(torch.int64)


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table.

    Args:
        ids: integer [...].
        table: float [V, C].

    Returns:
        e [..., C] in the dtype of table.

    Raises:
        RangeError: an id outside 0 .. V-1. ShapeError, DTypeError: arguments that do not fit.
    """
    require_float("table", table)
    require_shape("table", table, (None, None), "[V, C]")
    result: Tensor = _Rows.apply(table, _check_ids(ids, table.shape[0]))
    return result


def hash_indices(ids: Tensor, tables: int) -> Tensor:
    """Row of each table that belongs to each id.

    Args:
        ids: integer [...], not negative.
        tables: 2, for (t mod 1021, t div 1021), or 3, for t modulo 1021, 1019 and 1013.

    Returns:
        int64 [..., tables]; injective for t below 1021^2, or below the product of the three primes.

    Raises:
        ParameterError: another number of tables. RangeError: a negative id. DTypeError: ids are not integers.
    """
    if tables not in (2, 3):
        raise ParameterError(f"tables is {tables!r}: expected 2 or 3")
    require_integer("ids", ids)
    require_range("ids", ids, 0, 1 << 62, "ids count from 0")
    ids = ids.to(torch.int64)
    if tables == 2:
        return torch.stack((ids % PRIMES[0], ids // PRIMES[0]), dim=-1)
    return torch.stack([ids % prime for prime in PRIMES], dim=-1)


def _check_hash(tables: Sequence[Tensor], importance: Tensor, indices: Tensor | None) -> Tensor:
    """Validate and return the indices int64 [V, tables]."""
    require_float("importance", importance)
    require_shape("importance", importance, (None, len(tables)), "[V, tables]")
    if indices is None:
        indices = hash_indices(torch.arange(importance.shape[0], device=importance.device), len(tables))
    require_integer("indices", indices)
    require_shape("indices", indices, tuple(importance.shape), "[V, tables], like importance")
    for i, table in enumerate(tables):
        name = f"tables.{i}"
        require_float(name, table)
        require_shape(name, table, (None, tables[0].shape[-1]), "[P_i, C], one C for all tables")
        require_range(f"indices of {name}", indices[:, i], 0, table.shape[0], "an index is a row of its table")
    return indices.to(torch.int64)


def hash_embedding(
    ids: Tensor,
    tables: Sequence[Tensor],
    importance: Tensor,
    indices: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Sum of one row of each small table, weighted per token.

    Args:
        ids: integer [...].
        tables: list of float [P_i, C].
        importance: float [V, tables].
        indices: integer [V, tables]; ``hash_indices`` of 0 .. V-1 if None.
        scale: of the sum.

    Returns:
        e [..., C] in the dtype of the first table.

    Raises:
        RangeError: an id outside 0 .. V-1 or an index outside its table. ShapeError, DTypeError: arguments that do not
        fit. ParameterError: a number of tables without default indices.
    """
    if not tables:
        raise ShapeError("tables is empty: expected at least one table [P_i, C]")
    require_number("scale", scale, -sys.float_info.max)
    indices = _check_hash(tables, importance, indices)
    ids = _check_ids(ids, importance.shape[0])
    result: Tensor = _HashRows.apply(ids, _chosen(indices, ids), scale, importance, *tables)
    return result


def _matmul_transposed(x: Tensor, table: Tensor, work: torch.dtype) -> Tensor:
    """X table^T with sums formed in at least float32."""
    if x.device.type != "cpu" and x.dtype == table.dtype:
        return linear(x, table)
    return linear(x.to(work), table.to(work))


def lm_head(x: Tensor, table: Tensor) -> Tensor:
    """Logits of every token: x table^T.

    Args:
        x: float [..., C].
        table: float [V, C].

    Returns:
        logits [..., V] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit.
    """
    require_float("x", x)
    require_float("table", table)
    require_shape("table", table, (None, None), "[V, C]")
    require_features("x", x, table.shape[1], "C")
    return _matmul_transposed(x, table, accumulate_dtype(x, table)).to(x.dtype)


def hash_lm_head(x: Tensor, tables: Sequence[Tensor], importance: Tensor, indices: Tensor | None = None) -> Tensor:
    """Logits tied to a hash embedding, without its scale.

    Args:
        x: float [..., C].
        tables, importance, indices: as in :func:`hash_embedding`.

    Returns:
        logits [..., V] in the dtype of x.

    Raises:
        As :func:`hash_embedding`.
    """
    if not tables:
        raise ShapeError("tables is empty: expected at least one table [P_i, C]")
    require_float("x", x)
    indices = _check_hash(tables, importance, indices)
    require_features("x", x, tables[0].shape[1], "C")
    work = accumulate_dtype(x, importance, *tables)
    # Widened once, outside the loop: autograd then sums the gradients of x in float32 and rounds once.
    wide = x.to(work)
    logits = wide.new_zeros(())
    for i, table in enumerate(tables):
        products = linear(wide, table.to(work))
        logits = logits + products[..., indices[:, i]] * importance[:, i].to(work)
    return logits.to(x.dtype)
