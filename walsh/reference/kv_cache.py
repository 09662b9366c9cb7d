"""Keys and values of past tokens (SPEC.md, section *kv_cache*).

    keys, values [B, capacity, H, d], lengths [B]; append writes token t of sequence b at position lengths[b] + t

Every sequence has its own length. Appending in any split leaves the same cache; a slot at or past the length is never
seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from walsh.errors import CapacityError, ParameterError, RangeError, ShapeError
from walsh.reference._check import Float, Int, as_float, as_indices, as_integer, require_integer, require_shape
from walsh.reference.attention import attention


class KVCache:
    """Cache of one layer.

    Args:
        batch: B.
        capacity: most tokens that a sequence can hold.
        heads: H.
        head_dim: d.

    Attributes:
        keys, values: float64 [B, capacity, H, d].
        lengths: int64 [B].

    Raises:
        ParameterError: one is not an integer of at least 0.
    """

    def __init__(self, batch: int, capacity: int, heads: int, head_dim: int) -> None:
        sizes = {"batch": batch, "capacity": capacity, "heads": heads, "head_dim": head_dim}
        shape = tuple(require_integer(name, size, 0) for name, size in sizes.items())
        self.keys: Float = np.zeros(shape)
        self.values: Float = np.zeros(shape)
        self.lengths: Int = np.zeros(shape[0], dtype=np.int64)

    @property
    def capacity(self) -> int:
        """Most tokens that a sequence can hold."""
        return int(self.keys.shape[1])

    def append(self, k: ArrayLike, v: ArrayLike, counts: ArrayLike | None = None) -> Int:
        """Add the first counts[b] of the T new tokens to sequence b.

        Args:
            k, v: float [B, T, H, d].
            counts: integer [B] in 0 .. T; all T if None.

        Returns:
            positions int64 [B, T] of the new tokens, -1 where t >= counts[b].

        Raises:
            CapacityError: a sequence would pass the capacity. ShapeError, DTypeError: arguments that do not fit.
            RangeError: a count outside 0 .. T. The cache is then unchanged.
        """
        batch, capacity, heads, d = self.keys.shape
        k, v = as_float("k", k), as_float("v", v)
        require_shape("k", k, (batch, None, heads, d), "[B, T, H, d] with the B, H, d of the cache")
        require_shape("v", v, k.shape, "[B, T, H, d], like k")
        t = k.shape[1]
        counts = as_integer("counts", np.full(batch, t) if counts is None else counts)
        require_shape("counts", counts, (batch,), "[B]")
        counts = as_indices("counts", counts, 0, t + 1, "a sequence gains at most the T tokens given")
        after = self.lengths + counts
        if (after > capacity).any():
            needed = int(after.max())
            raise CapacityError(f"{needed} tokens in a cache of capacity {capacity}: truncate, reset or make it larger")
        positions = np.full((batch, t), -1, dtype=np.int64)
        for b in range(batch):
            new = np.arange(self.lengths[b], after[b])
            self.keys[b, new], self.values[b, new] = k[b, : counts[b]], v[b, : counts[b]]
            positions[b, : counts[b]] = new
        self.lengths = after
        return positions

    def attend(self, q: ArrayLike, positions: ArrayLike) -> Float:
        """:func:`attention` of q float [B, T, H, d] over the cache, positions as :meth:`append` returns them.

        Raises:
            As :func:`attention`; RangeError: a position at or past the length of its sequence.
        """
        positions = as_integer("positions", positions)
        if positions.ndim == 2 and len(positions) == len(self.lengths) and (positions >= self.lengths[:, None]).any():
            raise RangeError(f"positions reach {positions.max()}: expected less than the lengths {list(self.lengths)}")
        return attention(q, self.keys, self.values, positions)

    def truncate(self, lengths: ArrayLike) -> None:
        """Forget the tokens at and past these lengths, integer [B].

        Raises:
            RangeError: a length below 0 or above the present one. ShapeError, DTypeError: not integer [B].
        """
        lengths = as_integer("lengths", lengths)
        require_shape("lengths", lengths, self.lengths.shape, "[B]")
        if (lengths < 0).any() or (lengths > self.lengths).any():
            raise RangeError(f"lengths {lengths.tolist()}: expected 0 up to the present {self.lengths.tolist()}")
        self.lengths = lengths.astype(np.int64)

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Forget all tokens of these sequences, integer [rows], or of all.

        Raises:
            RangeError: no such sequence. ShapeError, DTypeError: not integer [rows].
        """
        self.lengths = self.lengths.copy()
        self.lengths[slice(None) if rows is None else self._rows(rows)] = 0

    def fork(self, rows: ArrayLike) -> KVCache:
        """A new, independent cache whose sequence i is a copy of sequence rows[i].

        Raises:
            RangeError: no such sequence. ShapeError, DTypeError: not integer [rows].
        """
        chosen = self._rows(rows)
        copy = KVCache(len(chosen), *self.keys.shape[1:])
        copy.keys, copy.values, copy.lengths = self.keys[chosen], self.values[chosen], self.lengths[chosen]
        return copy

    def _rows(self, rows: ArrayLike) -> Int:
        # An empty list is float to NumPy.
        rows = as_integer("rows", rows if np.size(rows) else np.zeros(np.shape(rows), dtype=np.int64))
        require_shape("rows", rows, (None,), "[rows]")
        return as_indices("rows", rows, 0, len(self.lengths), "rows are sequences of this cache")


Container = Mapping[str, Any] | Sequence[Any]
"""Inputs of a script: a list if their keys are 0, 1, 2, ..., else a mapping."""


def _member(container: Container | None, key: str) -> Any:
    """Input ``key``, such as ``k.key``."""
    try:
        return container[key] if isinstance(container, Mapping) else (container or [])[int(key)]
    except (KeyError, IndexError, ValueError):
        raise ParameterError(f"the script uses input {key!r}, which is missing: add it to k, v or q") from None


def run_script(cache: Any, k: Container, v: Container, q: Container | None, script: Sequence[Any]) -> tuple[Any, Any]:
    """Follow a script on a cache; see SPEC.md for its steps.

    Args:
        cache: a KVCache, or anything with its methods.
        k, v, q: inputs by key.
        script: the steps.

    Returns:
        the cache that is left, and the output of each ``attend`` by its key.

    Raises:
        ParameterError: a step that does not exist, a missing input, or ``attend`` before any ``append``.
    """
    positions: Any = None
    o: dict[str, Any] = {}
    for action, argument, *more in script:
        if action == "append":
            counts = None if not more or more[0] is None else np.asarray(more[0], dtype=np.int64)
            positions = cache.append(_member(k, str(argument)), _member(v, str(argument)), counts)
        elif action == "attend" and positions is not None:
            o[str(argument)] = cache.attend(_member(q, str(argument)), positions)
        elif action == "truncate":
            cache.truncate(np.asarray(argument, dtype=np.int64))
        elif action == "reset":
            cache.reset(None if argument is None else np.asarray(argument, dtype=np.int64))
        elif action == "fork":
            cache = cache.fork(np.asarray(argument, dtype=np.int64))
            positions = None if positions is None else positions[np.asarray(argument, dtype=np.int64)]
        else:
            raise ParameterError(f"step {action!r}: expected append, then attend, truncate, reset or fork")
    return cache, o


def kv_cache(
    k: Container, v: Container, q: Container | None = None, *, script: Sequence[Any], capacity: int
) -> tuple[Float, Float, NDArray[np.int64], dict[str, Float]]:
    """A whole life of a cache, as conformance vectors describe it.

    Args:
        k, v: float [B, T, H, d] by key, those of the first append giving B, H and d.
        q: float [B, T, H, d] by key, for ``attend``.
        script: steps ``["append", key, counts | null]``, ``["truncate", lengths]``, ``["reset", rows | null]``,
            ``["fork", rows]`` and ``["attend", key]``.
        capacity: of the cache.

    Returns:
        keys and values float64 [B, capacity, H, d] with 0 past the lengths, lengths int64 [B], and o by key.

    Raises:
        As the methods of :class:`KVCache` and :func:`run_script`.
    """
    first = next((str(step[1]) for step in script if step[0] == "append"), None)
    if first is None:
        raise ParameterError("the script has no append: expected one, which gives the cache its shape")
    shape = np.shape(_member(k, first))
    if len(shape) != 4:
        raise ShapeError(f"k.{first} has shape {list(shape)}: expected [B, T, H, d]")
    cache, o = run_script(KVCache(shape[0], capacity, *shape[2:]), k, v, q, script)
    held = (np.arange(capacity) < cache.lengths[:, None])[:, :, None, None]
    return np.where(held, cache.keys, 0.0), np.where(held, cache.values, 0.0), cache.lengths, o
