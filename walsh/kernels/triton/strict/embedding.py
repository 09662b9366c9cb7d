"""Embeddings and heads in strict arithmetic (SPEC.md, sections *embedding* and *strict arithmetic*).

    embedding        e(t)     = f32(codes[t]) * scale[t]
    hash_embedding   e(t)     = (sum_i importance[t, i] * (f32(codes_i[h_i(t)]) * scales_i[h_i(t)])) * f32(scale)
    lm_head          logits_t = (f32(a . codes[t]) * r) * scale[t],                               a, r = quantise(x)
    hash_lm_head     logits_t = sum_i importance[t, i] * ((f32(a . codes_i[h_i(t)]) * r) * scales_i[h_i(t)])

Sums over tables run left to right, one launch per table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import require_features, require_range, require_shape
from walsh.kernels.triton._launch import require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.cayley_dickson import integer_linear
from walsh.kernels.triton.embedding import gather, hash_indices
from walsh.kernels.triton.embedding_head import combine
from walsh.kernels.triton.strict._check import as_integers, require_dtype, require_float32, require_last_axis
from walsh.kernels.triton.strict.layers import quantise


def _require_table(name: str, codes: Tensor, scale: Tensor) -> None:
    require_dtype(name, codes, torch.int8)
    require_shape(name, codes, (None, None), "[rows, C]")
    require_dtype(f"scale of {name}", scale, torch.float32)
    require_shape(f"scale of {name}", scale, (codes.shape[0],), "[rows]")


def _checked_ids(ids: Tensor, vocabulary: int) -> Tensor:
    ids = as_integers("ids", ids)
    require_range("ids", ids, 0, vocabulary, "use ids of this vocabulary")
    return ids


def _fake_embedding(ids: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty((*ids.shape, codes.shape[1]))


@operation("strict_embedding", _fake_embedding)
def _embedding(ids: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Rows of checked ids: one launch."""
    require_device(ids, codes, scale)
    return gather(ids, [codes], _fake_embedding(ids, codes, scale), scales=[scale])


def embedding(ids: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Look up rows of an int8 table.

    Args:
        ids: integers [...] in 0 .. V-1.
        codes: int8 [V, C].
        scale: float32 [V].

    Returns:
        float32 [..., C].

    Raises:
        DTypeError, ShapeError, RangeError (an id outside the table), BackendError.
    """
    _require_table("codes", codes, scale)
    ids = _checked_ids(ids, codes.shape[0])
    e: Tensor = _embedding(ids, codes, scale)
    return e


def _checked_indices(
    tables: Sequence[Tensor], scales: Sequence[Tensor], importance: Tensor, indices: Tensor | None
) -> Tensor:
    """The indices, contiguous int64 [V, tables], once all parts of a hash embedding fit each other."""
    if not tables or len(tables) != len(scales):
        raise ShapeError(f"{len(tables)} tables with {len(scales)} scales: expected one scale vector per table")
    for i, (codes, scale) in enumerate(zip(tables, scales, strict=True)):
        _require_table(f"tables.{i}", codes, scale)
        require_shape(f"tables.{i}", codes, (None, tables[0].shape[1]), "[P, C] with the C of tables.0")
    require_float32(importance=importance)
    require_shape("importance", importance, (None, len(tables)), "[V, tables]")
    require_device(importance, *tables, *scales)
    if indices is None:
        indices = hash_indices(torch.arange(importance.shape[0], device=importance.device), len(tables))
    indices = as_integers("indices", indices)
    require_shape("indices", indices, tuple(importance.shape), "[V, tables]")
    for i, codes in enumerate(tables):
        remedy = "use a taller table or other indices"
        require_range(f"indices of tables.{i}", indices[:, i], 0, codes.shape[0], remedy)
    return indices.contiguous()


def _fake_hash(
    ids: Tensor, tables: list[Tensor], scales: list[Tensor], importance: Tensor, indices: Tensor, scale: float
) -> Tensor:
    del scales, indices, scale  # they say nothing of shapes
    return importance.new_empty((*ids.shape, tables[0].shape[1]))


@operation("strict_hash_embedding", _fake_hash)
def _hash_embedding(
    ids: Tensor, tables: list[Tensor], scales: list[Tensor], importance: Tensor, indices: Tensor, scale: float
) -> Tensor:
    """Sums of rows for checked arguments: one launch per table."""
    require_device(ids, importance, indices, *tables, *scales)
    out = _fake_hash(ids, tables, scales, importance, indices, scale)
    return gather(ids, tables, out, indices=indices, importance=importance.contiguous(), scales=scales, scale=scale)


def hash_embedding(
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    importance: Tensor,
    indices: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Sum rows of several small int8 tables, weighted per token.

    Args:
        ids: integers [...] in 0 .. V-1.
        tables: int8 [P_i, C] each.
        scales: float32 [P_i] each.
        importance: float32 [V, tables].
        indices: integers [V, tables], which row of each table belongs to a token; ``hash_indices`` by default.
        scale: a factor on the result, rounded to float32.

    Returns:
        float32 [..., C].

    Raises:
        DTypeError, ShapeError, RangeError (ids, indices), ParameterError (scale not finite), BackendError.
    """
    indices = _checked_indices(tables, scales, importance, indices)
    factor = torch.tensor(scale, dtype=torch.float64).to(torch.float32).item()
    if not math.isfinite(factor):
        raise ParameterError(f"scale {scale!r}: expected a finite float32")
    ids = _checked_ids(ids, importance.shape[0])
    e: Tensor = _hash_embedding(ids, list(tables), list(scales), importance, indices, factor)
    return e


def _products(quantised: tuple[Tensor, Tensor], codes: Tensor, scale: Tensor) -> Tensor:
    a, r = quantised
    result: Tensor = integer_linear(a, codes[None], scale, r, True, True)
    return result


def lm_head(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Logits by an int8 table.

    Args:
        x: float32 [..., C].
        codes: int8 [V, C].
        scale: float32 [V].

    Returns:
        float32 [..., V].

    Raises:
        DTypeError, ShapeError, NonFiniteError (x), BackendError.
    """
    _require_table("codes", codes, scale)
    require_float32(x=x)
    require_last_axis("x", x, "C")
    require_features("x", x, codes.shape[1], "C")
    return _products(quantise("x", x), codes, scale)


def _fake_combine(products: list[Tensor], indices: Tensor, importance: Tensor, shape: list[int]) -> Tensor:
    del products, indices  # they say nothing of shapes
    return importance.new_empty((*shape, importance.shape[0]))


@operation("strict_hash_combine", _fake_combine)
def _combine(products: list[Tensor], indices: Tensor, importance: Tensor, shape: list[int]) -> Tensor:
    """Logits [*shape, V] from the products [rows, P_i] with every table: one launch per table."""
    require_device(indices, importance, *products)
    return combine(products, indices, importance.contiguous(), _fake_combine(products, indices, importance, shape))


def hash_lm_head(
    x: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    importance: Tensor,
    indices: Tensor | None = None,
) -> Tensor:
    """Logits of the tied head of a hash embedding: one product per table row, gathered per token.

    Args:
        x: float32 [..., C].
        tables: int8 [P_i, C] each.
        scales: float32 [P_i] each.
        importance: float32 [V, tables].
        indices: integers [V, tables]; ``hash_indices`` by default.

    Returns:
        float32 [..., V].

    Raises:
        DTypeError, ShapeError, RangeError (indices), NonFiniteError (x), BackendError.
    """
    indices = _checked_indices(tables, scales, importance, indices)
    require_float32(x=x)
    require_last_axis("x", x, "C")
    require_features("x", x, tables[0].shape[1], "C")
    quantised = quantise("x", x)
    flat = [
        _products(quantised, codes, scale).reshape(-1, codes.shape[0])
        for codes, scale in zip(tables, scales, strict=True)
    ]
    logits: Tensor = _combine(flat, indices, importance, list(x.shape[:-1]))
    return logits
