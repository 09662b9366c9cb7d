"""Embeddings and the tied heads (SPEC.md, section *embedding*).

    embedding       e(t) = E[t]                                                     ids [...], E [V, C], e [..., C]
    hash_embedding  e(t) = scale * sum_i importance[t, i] E_i[indices[t, i]]        E_i [P_i, C], importance [V, tables]
    lm_head         logits_t = x . E[t]                                             x [..., C], logits [..., V]
    hash_lm_head    logits_t = sum_i importance[t, i] (x . E_i[indices[t, i]])

Source: Svenstrup et al., *Hash Embeddings for Efficient Word Representations* (arXiv 1709.03933), with hashes that are
injective: quotient and remainder, or residues modulo pairwise coprime numbers (Chinese remainder theorem). Tied heads:
Press and Wolf (arXiv 1608.05859).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from walsh.errors import ParameterError, ShapeError
from walsh.reference._check import (
    Float,
    Int,
    as_float,
    as_indices,
    as_integer,
    as_upstream,
    ieee,
    require_axes,
    require_number,
    require_shape,
    rows,
)

MODULI = (1021, 1019, 1013)
"""Moduli of the three-table hash; the first is also the divisor of the two-table one."""


def _tokens(ids: ArrayLike, vocabulary: int) -> Int:
    return as_indices("ids", ids, 0, vocabulary, "ids are rows of the table")


def _table(name: str, table: ArrayLike) -> Float:
    table = as_float(name, table)
    require_shape(name, table, (None, None), "[V, C]")
    return table


def embedding(ids: ArrayLike, table: ArrayLike) -> Float:
    """Rows of a table.

    Args:
        ids: integer [...] in 0 .. V-1.
        table: float [V, C].

    Returns:
        e float64 [..., C].

    Raises:
        RangeError: an id outside the table. ShapeError, DTypeError: arguments that do not fit.
    """
    table = _table("table", table)
    return np.take(table, _tokens(ids, len(table)), axis=0)


def embedding_backward(ids: ArrayLike, table: ArrayLike, de: ArrayLike) -> tuple[Float]:
    """From de float [..., C] to (dtable [V, C],): each row gathers the gradients of its ids.

    Raises:
        As :func:`embedding`; ShapeError: de has not the shape of e.
    """
    table = _table("table", table)
    tokens = _tokens(ids, len(table))
    dtable = np.zeros_like(table)
    np.add.at(dtable, tokens, as_upstream("de", de, (*tokens.shape, table.shape[1])))
    return (dtable,)


def hash_indices(ids: ArrayLike, tables: int) -> Int:
    """The row of each table that an id uses.

    Args:
        ids: integer [...], not negative.
        tables: 2 for (t mod 1021, t div 1021), 3 for t modulo 1021, 1019 and 1013.

    Returns:
        int64 [..., tables].

    Raises:
        ParameterError: another number of tables. RangeError: a negative id. DTypeError: ids are not integer.
    """
    if isinstance(tables, bool) or tables not in (2, 3):
        raise ParameterError(f"tables is {tables!r}: expected 2 or 3; other hashes need stored indices")
    t = as_indices("ids", ids, 0, 2**63, "ids count from 0")
    parts = [t % MODULI[0], t // MODULI[0]] if tables == 2 else [t % modulus for modulus in MODULI]
    return np.stack(parts, axis=-1)


def _hash_parts(
    tables: Sequence[ArrayLike], importance: ArrayLike, indices: ArrayLike | None
) -> tuple[list[Float], Float, Int]:
    """Validate; tables, importance [V, tables] and indices [V, tables]."""
    if len(tables) == 0:
        raise ParameterError("tables is empty: expected at least one table [P, C]")
    parts = [_table(f"tables.{i}", table) for i, table in enumerate(tables)]
    for i, part in enumerate(parts):
        require_shape(f"tables.{i}", part, (None, parts[0].shape[1]), "[P, C] with the C of tables.0")
    importance = as_float("importance", importance)
    require_shape("importance", importance, (None, len(parts)), "[V, tables]")
    if indices is None:
        indices = hash_indices(np.arange(len(importance)), len(parts))
    indices = as_integer("indices", indices)
    require_shape("indices", indices, importance.shape, "[V, tables], like importance")
    columns = [
        as_indices(f"column {i} of indices", indices[:, i], 0, len(part), f"they are rows of tables.{i}")
        for i, part in enumerate(parts)
    ]
    return parts, importance, np.stack(columns, axis=-1)


@ieee
def hash_embedding(
    ids: ArrayLike,
    tables: Sequence[ArrayLike],
    importance: ArrayLike,
    indices: ArrayLike | None = None,
    scale: float = 1.0,
) -> Float:
    """A weighted sum of one row from each of several small tables.

    Args:
        ids: integer [...] in 0 .. V-1.
        tables: a list of float [P_i, C].
        importance: float [V, tables].
        indices: integer [V, tables], rows of the tables; ``hash_indices`` of 0 .. V-1 if None.
        scale: of the sum.

    Returns:
        e float64 [..., C].

    Raises:
        RangeError: an id or an index outside its table. ShapeError, DTypeError: arguments that do not fit.
        ParameterError: no tables; a number of them that needs indices; scale is not finite.
    """
    scale = require_number("scale", scale, -np.inf)
    parts, importance, indices = _hash_parts(tables, importance, indices)
    tokens = _tokens(ids, len(importance))
    e = np.zeros((*tokens.shape, parts[0].shape[1]))
    for i, part in enumerate(parts):
        e += importance[tokens, i, None] * part[indices[tokens, i]]
    return scale * e


@ieee
def hash_embedding_backward(
    ids: ArrayLike,
    tables: Sequence[ArrayLike],
    importance: ArrayLike,
    indices: ArrayLike | None,
    de: ArrayLike,
    scale: float = 1.0,
) -> tuple[list[Float], Float]:
    """Gradients (dtables, a list of [P_i, C], and dimportance [V, tables]) from de float [..., C].

    Raises:
        As :func:`hash_embedding`; ShapeError: de has not the shape of e.
    """
    scale = require_number("scale", scale, -np.inf)
    parts, importance, indices = _hash_parts(tables, importance, indices)
    tokens = _tokens(ids, len(importance))
    de = scale * as_upstream("de", de, (*tokens.shape, parts[0].shape[1]))
    dtables, dimportance = [np.zeros_like(part) for part in parts], np.zeros_like(importance)
    for i, part in enumerate(parts):
        row = indices[tokens, i]
        np.add.at(dtables[i], row, importance[tokens, i, None] * de)
        np.add.at(dimportance[:, i], tokens, (part[row] * de).sum(axis=-1))
    return dtables, dimportance


def _features(x: ArrayLike, features: int) -> Float:
    x = as_float("x", x)
    require_axes("x", x, 1, "[..., C]")
    if x.shape[-1] != features:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., {features}], C features as in the table")
    return x


@ieee
def lm_head(x: ArrayLike, table: ArrayLike) -> Float:
    """Logits of the tied head: x float [..., C], table float [V, C], logits float64 [..., V].

    Raises:
        ShapeError, DTypeError: arguments that do not fit.
    """
    table = _table("table", table)
    return np.asarray(_features(x, table.shape[1]) @ table.T)


@ieee
def lm_head_backward(x: ArrayLike, table: ArrayLike, dlogits: ArrayLike) -> tuple[Float, Float]:
    """Gradients (dx [..., C], dtable [V, C]) from dlogits float [..., V].

    Raises:
        As :func:`lm_head`; ShapeError: dlogits has not the shape of the logits.
    """
    table = _table("table", table)
    x = _features(x, table.shape[1])
    dlogits = as_upstream("dlogits", dlogits, (*x.shape[:-1], len(table)))
    m = rows(x.shape[:-1])
    return dlogits @ table, dlogits.reshape(m, len(table)).T @ x.reshape(m, table.shape[1])


@ieee
def hash_lm_head(
    x: ArrayLike, tables: Sequence[ArrayLike], importance: ArrayLike, indices: ArrayLike | None = None
) -> Float:
    """Logits of the head tied to a hash embedding, without its scale.

    Args:
        x: float [..., C].
        tables, importance, indices: as in :func:`hash_embedding`.

    Returns:
        logits float64 [..., V].

    Raises:
        As :func:`hash_embedding`.
    """
    parts, importance, indices = _hash_parts(tables, importance, indices)
    x = _features(x, parts[0].shape[1])
    logits = np.zeros((*x.shape[:-1], len(importance)))
    for i, part in enumerate(parts):
        logits += importance[:, i] * (x @ part[indices[:, i]].T)
    return logits


@ieee
def hash_lm_head_backward(
    x: ArrayLike,
    tables: Sequence[ArrayLike],
    importance: ArrayLike,
    indices: ArrayLike | None,
    dlogits: ArrayLike,
) -> tuple[Float, list[Float], Float]:
    """Gradients (dx [..., C], dtables, dimportance [V, tables]) from dlogits float [..., V].

    Raises:
        As :func:`hash_lm_head`; ShapeError: dlogits has not the shape of the logits.
    """
    parts, importance, indices = _hash_parts(tables, importance, indices)
    features, vocabulary = parts[0].shape[1], len(importance)
    x = _features(x, features)
    dlogits = as_upstream("dlogits", dlogits, (*x.shape[:-1], vocabulary))
    m = rows(x.shape[:-1])
    # correlation_t = sum over tokens of dlogits_t x: what row t of a plain table would get.
    correlation = dlogits.reshape(m, vocabulary).T @ x.reshape(m, features)
    dx, dtables, dimportance = np.zeros_like(x), [np.zeros_like(part) for part in parts], np.zeros_like(importance)
    for i, part in enumerate(parts):
        row, weight = indices[:, i], importance[:, i, None]
        dx += dlogits @ (weight * part[row])
        np.add.at(dtables[i], row, weight * correlation)
        dimportance[:, i] = (part[row] * correlation).sum(axis=-1)
    return dx, dtables, dimportance
