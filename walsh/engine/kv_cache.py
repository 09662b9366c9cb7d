"""The engine's caches with the interface of ``walsh.reference.KVCache`` and ``walsh.reference.strict.Int8KVCache``.

A cache in the engine is of one sequence; a batch is one handle per sequence, each with its own length.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from walsh.engine.host import Array, Instance
from walsh.errors import CapacityError, RangeError
from walsh.reference.strict import _check
from walsh.reference.strict.attention import query_positions

Float32 = NDArray[np.float32]


class Int8KVCache:
    """The engine's cache with the interface of ``walsh.reference.strict.Int8KVCache``; one handle per sequence."""

    _ordinary = False

    def __init__(self, instance: Instance, handles: list[int], capacity: int, heads: int, head_dim: int) -> None:
        self._instance, self._handles = instance, handles
        self.capacity, self._shape = capacity, (heads, head_dim)

    def grow(self, batch: int) -> Self:
        """Add empty sequences."""
        for _ in range(batch):
            sizes = self.capacity, *self._shape
            self._handles.append(int(self._instance.call("op_cache_new", *sizes, int(self._ordinary))))
        return self

    def close(self) -> None:
        """Let go of every sequence."""
        for handle in self._handles:
            self._instance.call("op_cache_drop", handle)
        self._handles = []

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [B]."""
        return np.array([self._instance.call("op_cache_length", handle) for handle in self._handles], dtype=np.int64)

    def append(self, k: Array, v: Array, counts: Array | None = None) -> NDArray[np.int64]:
        """Add the first counts[b] of k, v [B, T, H, d] to sequence b; positions [B, T]."""
        batch, (heads, d) = len(self._handles), self._shape
        k, v = _check.typed("k", k, "float32"), _check.typed("v", v, "float32")
        _check.shaped("k", k, (batch, None, heads, d), "[B, T, H, d]")
        _check.shaped("v", v, k.shape, "[B, T, H, d] of k")
        tokens = k.shape[1]
        counts = np.full(batch, tokens) if counts is None else _check.typed("counts", counts, "integer")
        _check.shaped("counts", counts, (batch,), "[B]")
        _check.within("counts", counts, 0, tokens + 1, "a sequence gains at most T tokens")
        before = self.lengths
        if (before + counts > self.capacity).any():
            raise CapacityError(f"{(before + counts).max()} tokens in a cache of capacity {self.capacity}")
        try:
            for b, handle in enumerate(self._handles):
                with self._instance.arrays() as arrays:
                    count = int(counts[b])
                    given = arrays.put(k[b, :count]), arrays.put(v[b, :count])
                    self._instance.call("op_cache_append", handle, *given, count)
        except Exception:
            # Half of the sequences must not keep what the others never got.
            for handle, length in zip(self._handles, before, strict=True):
                self._instance.call("op_cache_truncate", handle, int(length))
            raise
        added = np.arange(tokens) < counts[:, None]
        return np.where(added, before[:, None] + np.arange(tokens), -1)

    def attend(self, q: Array, positions: Array) -> Float32:
        """Q [B, T, H, d] at positions [B, T] to [B, T, H, d]."""
        batch, (heads, d) = len(self._handles), self._shape
        q = _check.shaped("q", _check.typed("q", q, "float32"), (batch, None, heads, d), "[B, T, H, d]")
        where = query_positions(positions, batch, q.shape[1], self.capacity)
        o = np.zeros(q.shape, dtype=np.float32)
        if o.size == 0:
            return o
        for b, handle in enumerate(self._handles):
            for t in range(q.shape[1]):
                with self._instance.arrays() as arrays:
                    out = arrays.room(o[b, t].nbytes)
                    self._instance.call("op_cache_attend", handle, arrays.put(q[b, t]), int(where[b, t]), out)
                    o[b, t] = arrays.get(out, (heads, d), "float32")
        return o

    def truncate(self, lengths: Array) -> None:
        """Forget the last tokens: lengths [B]."""
        lengths = _check.typed("lengths", lengths, "integer")
        _check.shaped("lengths", lengths, (len(self._handles),), "[B]")
        wrong = (lengths < 0) | (lengths > self.lengths)
        if wrong.any():
            raise RangeError(f"length {lengths[wrong][0]}: expected at most what the sequence holds")
        for handle, length in zip(self._handles, lengths, strict=True):
            self._instance.call("op_cache_truncate", handle, int(length))

    def _rows(self, rows: Array) -> Array:
        rows = _check.shaped("rows", _check.typed("rows", rows, "integer"), (None,), "[rows]")
        return _check.within("rows", rows, 0, len(self._handles), "name sequences of this cache")

    def reset(self, rows: Array | None = None) -> None:
        """Forget all tokens of these sequences, or of all."""
        for row in range(len(self._handles)) if rows is None else self._rows(rows):
            self._instance.call("op_cache_truncate", self._handles[row], 0)

    def fork(self, rows: Array) -> Self:
        """A new cache whose sequence i is a copy of sequence rows[i]."""
        copies = [int(self._instance.call("op_cache_fork", self._handles[row])) for row in self._rows(rows)]
        return type(self)(self._instance, copies, self.capacity, *self._shape)


class KVCache(Int8KVCache):
    """The engine's cache of float32 keys and values, with the interface of ``walsh.reference.KVCache``."""

    _ordinary = True

    def read(self) -> tuple[Float32, Float32]:
        """Keys and values [B, capacity, H, d], 0 past the lengths."""
        keys = np.zeros((len(self._handles), self.capacity, *self._shape), dtype=np.float32)
        values = np.zeros_like(keys)
        for b, (handle, length) in enumerate(zip(self._handles, self.lengths, strict=True)):
            shape = (int(length), *self._shape)
            with self._instance.arrays() as arrays:
                places = [arrays.room(4 * int(np.prod(shape))) for _ in range(2)]
                self._instance.call("op_cache_read", handle, *places)
                keys[b, :length], values[b, :length] = (arrays.get(place, shape, "float32") for place in places)
        return keys, values
