"""Embeddings and heads in strict arithmetic (SPEC.md, *embedding* and *Strict arithmetic*).

    embedding        e(t)     = f32(codes[t]) * scale[t]
    hash_embedding   e(t)     = (sum_i importance[t, i] * (f32(codes_i[h_i(t)]) * scales_i[h_i(t)])) * f32(scale)
    lm_head          logits_t = (f32(a . codes[t]) * r) * scale[t],                               a, r = quantise(x)
    hash_lm_head     logits_t = sum_i importance[t, i] * ((f32(a . codes_i[h_i(t)]) * r) * scales_i[h_i(t)])

Sums over tables run left to right. ids [...], codes int8 [V, C], tables a list of int8 [P_i, C] with scales [P_i],
importance [V, tables], h_i(t) = indices[t, i], by default ``hash_indices``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from walsh.errors import ParameterError, ShapeError
from walsh.reference.embedding import hash_indices
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Float32, integer_product, quantise
from walsh.reference.strict._check import Array


def _table(name: str, codes: Array, scale: Array) -> tuple[Array, Array]:
    codes = _check.shaped(name, _check.typed(name, codes, "int8"), (None, None), "[rows, C]")
    scale = _check.typed(f"scale of {name}", scale, "float32")
    return codes, _check.shaped(f"scale of {name}", scale, (codes.shape[0],), "[rows]")


def embedding(ids: Array, codes: Array, scale: Array) -> Float32:
    """Look up rows of an int8 table.

    Args:
        ids: integers [...] in 0 .. V-1.
        codes: int8 [V, C].
        scale: float32 [V].

    Returns:
        float32 [..., C].

    Raises:
        DTypeError, ShapeError, RangeError (an id outside the table).
    """
    codes, scale = _table("codes", codes, scale)
    ids = _check.within("ids", _check.typed("ids", ids, "integer"), 0, codes.shape[0], "use ids of this vocabulary")
    return codes[ids].astype(np.float32) * scale[ids][..., None]


def _hash_tables(
    tables: Sequence[Array], scales: Sequence[Array], importance: Array, indices: Array | None
) -> tuple[list[tuple[Array, Array]], Array, Array]:
    """The checked (codes, scale) pairs, importance [V, tables] and indices [V, tables]."""
    if not tables or len(tables) != len(scales):
        raise ShapeError(f"{len(tables)} tables with {len(scales)} scales: expected one scale vector per table")
    pairs = [_table(f"tables.{i}", codes, scale) for i, (codes, scale) in enumerate(zip(tables, scales, strict=True))]
    width = pairs[0][0].shape[1]
    for i, (codes, _) in enumerate(pairs):
        _check.shaped(f"tables.{i}", codes, (None, width), "[P, C] with the C of tables.0")
    importance = _check.typed("importance", importance, "float32")
    _check.shaped("importance", importance, (None, len(pairs)), "[V, tables]")
    if indices is None:
        indices = hash_indices(np.arange(importance.shape[0]), len(pairs))
    indices = _check.shaped("indices", _check.typed("indices", indices, "integer"), importance.shape, "[V, tables]")
    for i, (codes, _) in enumerate(pairs):
        _check.within(f"indices of tables.{i}", indices[:, i], 0, codes.shape[0], "use a taller table or other indices")
    return pairs, importance, indices


@np.errstate(over="ignore", invalid="ignore")
def hash_embedding(
    ids: Array,
    tables: Sequence[Array],
    scales: Sequence[Array],
    importance: Array,
    indices: Array | None = None,
    scale: float = 1.0,
) -> Float32:
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
        DTypeError, ShapeError, RangeError (ids, indices), ParameterError (scale not finite).
    """
    pairs, importance, indices = _hash_tables(tables, scales, importance, indices)
    factor = np.float32(scale)
    if not np.isfinite(factor):
        raise ParameterError(f"scale {scale!r}: expected a finite float32")
    ids = _check.within("ids", _check.typed("ids", ids, "integer"), 0, len(importance), "use ids of this vocabulary")
    parts = []
    for i, (codes, row_scale) in enumerate(pairs):
        rows = indices[ids, i]
        parts.append(importance[ids, i][..., None] * (codes[rows].astype(np.float32) * row_scale[rows][..., None]))
    total = _left_to_right(parts)
    return total if factor == 1 else total * factor


def _left_to_right(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@np.errstate(over="ignore", invalid="ignore")
def lm_head(x: Array, codes: Array, scale: Array) -> Float32:
    """Logits by an int8 table.

    Args:
        x: float32 [..., C].
        codes: int8 [V, C].
        scale: float32 [V].

    Returns:
        float32 [..., V].

    Raises:
        DTypeError, ShapeError, NonFiniteError (x).
    """
    codes, scale = _table("codes", codes, scale)
    x = _check.featured("x", _check.typed("x", x, "float32"), codes.shape[1], "C")
    a, r = quantise("x", x)
    sums = integer_product(a.reshape(-1, x.shape[-1]), codes.T).reshape(*x.shape[:-1], len(codes))
    return (sums.astype(np.float32) * r) * scale


@np.errstate(over="ignore", invalid="ignore")
def hash_lm_head(
    x: Array,
    tables: Sequence[Array],
    scales: Sequence[Array],
    importance: Array,
    indices: Array | None = None,
) -> Float32:
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
        DTypeError, ShapeError, RangeError (indices), NonFiniteError (x).
    """
    pairs, importance, indices = _hash_tables(tables, scales, importance, indices)
    return _left_to_right([importance[:, i] * lm_head(x, *pair)[..., indices[:, i]] for i, pair in enumerate(pairs)])
