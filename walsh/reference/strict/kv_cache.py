"""Keys and values of strict attention: int8 codes with one r per token and head (SPEC.md, *kv_cache*).

Quantising is per token and head, so a token's codes do not depend on when it was appended: any split of the appends
leaves the same cache. Slots at or past a sequence's length hold old codes that no query can see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import CapacityError, ParameterError, RangeError, ShapeError
from walsh.reference.kv_cache import Container, run_script
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import ZERO, Float32, quantise
from walsh.reference.strict._check import Array
from walsh.reference.strict.attention import attend, query_positions, require_cached


class Int8KVCache:
    """Cache of one layer, with its own length for every sequence.

    Args:
        batch: B.
        capacity: most tokens that a sequence can hold.
        heads: H.
        head_dim: d.

    Raises:
        ParameterError: if one is not an integer, or negative (heads and head_dim: below 1).
    """

    def __init__(self, batch: int, capacity: int, heads: int, head_dim: int) -> None:
        sizes = {"batch": (batch, 0), "capacity": (capacity, 0), "heads": (heads, 1), "head_dim": (head_dim, 1)}
        for name, (size, least) in sizes.items():
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < least:
                raise ParameterError(f"{name} {size!r}: expected an integer from {least} up")
        self._codes = np.zeros((2, batch, capacity, heads, head_dim), dtype=np.int8)
        self._worth = np.zeros((2, batch, capacity, heads, 1), dtype=np.float32)
        self._lengths = np.zeros(batch, dtype=np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [B], how many tokens each sequence holds; a copy."""
        return self._lengths.copy()

    @property
    def capacity(self) -> int:
        """Most tokens that a sequence can hold."""
        return int(self._codes.shape[2])

    def append(self, k: Array, v: Array, counts: Array | None = None) -> NDArray[np.int64]:
        """Add tokens: sequence b gains the first counts[b] of the T.

        Args:
            k, v: float32 [B, T, H, d]; tokens that are not added are never looked at.
            counts: integers [B] in 0 .. T; all T by default.

        Returns:
            int64 [B, T], the positions of the new tokens, -1 where t >= counts[b].

        Raises:
            DTypeError, ShapeError, RangeError (counts), NonFiniteError, CapacityError; the cache is then unchanged.
        """
        _, batch, capacity, heads, d = self._codes.shape
        k, v = _check.typed("k", k, "float32"), _check.typed("v", v, "float32")
        _check.shaped("k", k, (batch, None, heads, d), "[B, T, H, d]")
        _check.shaped("v", v, k.shape, "[B, T, H, d] of k")
        tokens = k.shape[1]
        counts = np.full(batch, tokens) if counts is None else _check.typed("counts", counts, "integer")
        _check.shaped("counts", counts, (batch,), "[B]")
        _check.within("counts", counts, 0, tokens + 1, "a sequence gains at most T tokens")
        after = self._lengths + counts
        if (after > capacity).any():
            raise CapacityError(
                f"{after.max()} tokens in a cache of capacity {capacity}: truncate, reset or enlarge it"
            )
        added = np.arange(tokens) < counts[:, None]
        keep = added[:, :, None, None]
        quantised = [quantise("k", np.where(keep, k, ZERO)), quantise("v", np.where(keep, v, ZERO))]
        positions = np.where(added, self._lengths[:, None] + np.arange(tokens), -1)
        rows = np.broadcast_to(np.arange(batch)[:, None], added.shape)[added]
        for side, (codes, worth) in enumerate(quantised):
            self._codes[side, rows, positions[added]] = codes[added]
            self._worth[side, rows, positions[added]] = worth[added]
        self._lengths = after
        return positions

    def attend(self, q: Array, positions: Array) -> Float32:
        """Strict attention over the cached tokens.

        Args:
            q: float32 [B, T, H, d]; a padding query (position -1) is never looked at.
            positions: integers [B, T] as :meth:`append` returns them, or [T].

        Returns:
            float32 [B, T, H, d].

        Raises:
            DTypeError, ShapeError, NonFiniteError, RangeError (a position at or past the sequence's length).
        """
        _, batch, capacity, heads, d = self._codes.shape
        q = _check.shaped("q", _check.typed("q", q, "float32"), (batch, None, heads, d), "[B, T, H, d]")
        where = query_positions(positions, batch, q.shape[1], capacity)
        require_cached(where, self._lengths)
        used = int(self._lengths.max(initial=0))
        k, v = ((self._codes[side, :, :used], self._worth[side, :, :used]) for side in (0, 1))
        return attend(quantise("q", np.where((where >= 0)[:, :, None, None], q, ZERO)), k, v, where)

    def truncate(self, lengths: Array) -> None:
        """Forget the last tokens.

        Args:
            lengths: integers [B], the new lengths.

        Raises:
            DTypeError, ShapeError, RangeError (negative, or more than a sequence holds).
        """
        lengths = _check.shaped("lengths", _check.typed("lengths", lengths, "integer"), self._lengths.shape, "[B]")
        wrong = (lengths < 0) | (lengths > self._lengths)
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise RangeError(f"length {lengths[row]} of sequence {row}: expected 0 .. {self._lengths[row]}")
        self._lengths = lengths.astype(np.int64)

    def _rows(self, rows: Array) -> Array:
        rows = _check.shaped("rows", _check.typed("rows", rows, "integer"), (None,), "[rows]")
        return _check.within("rows", rows, 0, self._lengths.shape[0], "name sequences of this cache")

    def reset(self, rows: Array | None = None) -> None:
        """Forget all tokens of these sequences, or of all.

        Raises:
            DTypeError, ShapeError, RangeError (a row that does not exist).
        """
        self._lengths[slice(None) if rows is None else self._rows(rows)] = 0

    def fork(self, rows: Array) -> Int8KVCache:
        """A new, independent cache whose sequence i is a copy of sequence rows[i].

        Raises:
            DTypeError, ShapeError, RangeError (a row that does not exist).
        """
        rows = self._rows(rows)
        _, _, capacity, heads, d = self._codes.shape
        forked = Int8KVCache(len(rows), capacity, heads, d)
        forked._codes[:], forked._worth[:] = self._codes[:, rows], self._worth[:, rows]
        forked._lengths[:] = self._lengths[rows]
        return forked


def cache_sizes(k: Container, script: Sequence[Any], capacity: int) -> tuple[tuple[int, int, int, int], Any]:
    """What the cache of a script is made with, from the first tensor that it appends; and that tensor.

    Raises:
        ParameterError: if the script appends nothing, or a tensor that is missing.
        ShapeError: if that is not [B, T, H, d].
    """
    first = next((str(step[1]) for step in script if step[0] == "append"), "")
    members = k if isinstance(k, Mapping) else {str(i): member for i, member in enumerate(k)}
    if first not in members:
        raise ParameterError(f"the first append takes key {first!r} of k: expected one of {', '.join(members)}")
    shape = tuple(np.shape(members[first]))
    if len(shape) != 4:
        raise ShapeError(f"k.{first} has shape {list(shape)}: expected [B, T, H, d]")
    return (shape[0], capacity, shape[2], shape[3]), members[first]


def kv_cache(
    k: Container, v: Container, q: Container | None = None, *, script: Sequence[Any], capacity: int
) -> tuple[NDArray[np.int64], dict[str, Float32]]:
    """A whole life of a cache, as conformance vectors describe it (SPEC.md, *kv_cache*).

    Args:
        k, v: float32 [B, T, H, d] by key, those of the first append giving B, H and d.
        q: float32 [B, T, H, d] by key, for ``attend``.
        script: the steps.
        capacity: of the cache.

    Returns:
        lengths int64 [B], and o by key.

    Raises:
        As the methods of :class:`Int8KVCache`; ParameterError for a step that cannot be followed.
    """
    sizes, _ = cache_sizes(k, script, capacity)
    cache, o = run_script(Int8KVCache(*sizes), k, v, q, script)
    return cache.lengths, o
