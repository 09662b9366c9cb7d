"""Embeddings, heads and losses of the engine in ordinary arithmetic (SPEC.md, *embedding*, *cross_entropy*), float32.

hash tables   one under the other, [sum P_i, C]; index i of an id becomes a row of that
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from walsh.engine.host import Array, Arrays
from walsh.engine.operations import Operations
from walsh.reference._check import require_number
from walsh.reference.cross_entropy import _linear as check_linear
from walsh.reference.cross_entropy import _logits as check_logits
from walsh.reference.embedding import _features as check_features
from walsh.reference.embedding import _hash_parts as check_hash
from walsh.reference.embedding import _table as check_table
from walsh.reference.embedding import _tokens as check_ids

Float32 = NDArray[np.float32]


def float32(x: Array) -> Float32:
    """A checked argument, which is float64 by now, as it came."""
    return np.asarray(x, dtype=np.float32, order="C")


class Tables:
    """Functions on one instance of the engine; the classes of errors are those of ``walsh.reference``."""

    def __init__(self, operations: Operations) -> None:
        self._operations, self._instance = operations, operations.instance

    def embedding(self, ids: Array, table: Array) -> Float32:
        """Ids [...], table [V, C] to [..., C]."""
        rows = check_table("table", table)
        where, (v, c) = check_ids(ids, len(rows)), rows.shape
        with self._instance.arrays() as arrays:
            e = arrays.room(4 * where.size * c)
            self._instance.call("float_embedding", arrays.put(where), where.size, self._put(arrays, rows), v, c, e)
            return arrays.get(e, (*where.shape, c), "float32")

    @staticmethod
    def _put(arrays: Arrays, x: Array) -> int:
        return arrays.put(float32(x))

    def lm_head(self, x: Array, table: Array) -> Float32:
        """X [..., C], table [V, C] to [..., V]."""
        rows = check_table("table", table)
        v, c = rows.shape
        features = check_features(x, c)
        tokens = features.size // max(c, 1)
        with self._instance.arrays() as arrays:
            logits = arrays.room(4 * tokens * v)
            self._instance.call(
                "float_lm_head", self._put(arrays, features), tokens, self._put(arrays, rows), v, c, logits
            )
            return arrays.get(logits, (*features.shape[:-1], v), "float32")

    def cross_entropy(self, logits: Array, targets: Array) -> Float32:
        """Logits [..., V], targets [...] to the mean loss."""
        flat, ids = check_logits(logits, targets)
        with self._instance.arrays() as arrays:
            loss = arrays.room(8)
            given = self._put(arrays, flat), arrays.put(ids.astype(np.int64)), len(flat), flat.shape[1]
            self._instance.call("float_cross_entropy", *given, loss)
            return arrays.get(loss, (), "float64").astype(np.float32)

    def linear_cross_entropy(self, x: Array, table: Array, targets: Array, chunk_size: int = 1024) -> Float32:
        """X [..., C], table [V, C], targets [...] to the mean loss; the engine holds the logits of one token."""
        flat, rows, ids = check_linear(x, table, targets, chunk_size)
        with self._instance.arrays() as arrays:
            loss = arrays.room(8)
            given = self._put(arrays, flat), self._put(arrays, rows), arrays.put(ids.astype(np.int64))
            self._instance.call("float_linear_cross_entropy", *given, len(flat), *rows.shape, loss)
            return arrays.get(loss, (), "float64").astype(np.float32)

    def _hash(
        self, arrays: Arrays, tables: Sequence[Array], importance: Array, indices: Array | None
    ) -> tuple[tuple[int, ...], int, int]:
        """What the engine is told of hash tables, C and V."""
        parts, factors, columns = check_hash(tables, importance, indices)
        below = np.cumsum([0, *(len(part) for part in parts)])
        (v, count), c = factors.shape, parts[0].shape[1]
        table = self._put(arrays, np.concatenate(parts))
        rows = arrays.put(np.ascontiguousarray(columns + below[:-1], dtype=np.int64))
        return (table, int(below[-1]), c, self._put(arrays, factors), rows, v, count), c, v

    def hash_embedding(
        self,
        ids: Array,
        tables: Sequence[Array],
        importance: Array,
        indices: Array | None = None,
        scale: float = 1.0,
    ) -> Float32:
        """Ids [...], tables [P_i, C], importance and indices [V, tables] to [..., C]."""
        scale = require_number("scale", scale, -np.inf)
        with self._instance.arrays() as arrays:
            hashed, c, v = self._hash(arrays, tables, importance, indices)
            where = check_ids(ids, v)
            e = arrays.room(4 * where.size * c)
            self._instance.call("float_hash_embedding", arrays.put(where), where.size, *hashed, scale, e)
            return arrays.get(e, (*where.shape, c), "float32")

    def hash_lm_head(
        self, x: Array, tables: Sequence[Array], importance: Array, indices: Array | None = None
    ) -> Float32:
        """X [..., C], tables [P_i, C], importance and indices [V, tables] to [..., V]."""
        with self._instance.arrays() as arrays:
            hashed, c, v = self._hash(arrays, tables, importance, indices)
            features = check_features(x, c)
            tokens = features.size // max(c, 1)
            logits = arrays.room(4 * tokens * v)
            self._instance.call("float_hash_lm_head", self._put(arrays, features), tokens, *hashed, logits)
            return arrays.get(logits, (*features.shape[:-1], v), "float32")
