"""Keys and values of strict attention: int8 codes with one r per token and head (SPEC.md, *kv_cache*).

Quantising is per token and head, so a token's codes do not depend on when it was appended: any split of the appends
leaves the same cache. Slots at or past a sequence's length hold old codes that no query can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from walsh.errors import CapacityError, ParameterError, RangeError
from walsh.kernels.torch._check import require_range, require_shape
from walsh.kernels.torch.strict._arithmetic import quantise
from walsh.kernels.torch.strict._check import as_integers, require_float32
from walsh.kernels.torch.strict.attention import attend, quantise_queries, query_positions, require_cached
from walsh.reference.kv_cache import Container, run_script
from walsh.reference.strict.kv_cache import cache_sizes


class Int8KVCache:
    """Cache of one layer, with its own length for every sequence.

    Args:
        batch: B.
        capacity: most tokens that a sequence can hold.
        heads: H.
        head_dim: d.
        device: where the codes live; CPU by default.

    Raises:
        ParameterError: if a size is not an integer, or negative (heads and head_dim: below 1).
    """

    def __init__(
        self, batch: int, capacity: int, heads: int, head_dim: int, device: torch.device | str | None = None
    ) -> None:
        sizes = {"batch": (batch, 0), "capacity": (capacity, 0), "heads": (heads, 1), "head_dim": (head_dim, 1)}
        for name, (size, least) in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < least:
                raise ParameterError(f"{name} {size!r}: expected an integer from {least} up")
        self._codes = torch.zeros(2, batch, capacity, heads, head_dim, dtype=torch.int8, device=device)
        self._worth = torch.zeros(2, batch, capacity, heads, 1, dtype=torch.float32, device=device)
        self._lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def lengths(self) -> Tensor:
        """int64 [B], how many tokens each sequence holds; a copy."""
        return self._lengths.clone()

    @property
    def capacity(self) -> int:
        """Most tokens that a sequence can hold."""
        return int(self._codes.shape[2])

    def _used(self, lengths: Tensor) -> int:
        """Length of the longest sequence."""
        return int(lengths.max()) if lengths.numel() else 0

    def append(self, k: Tensor, v: Tensor, counts: Tensor | None = None) -> Tensor:
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
        require_float32(k=k, v=v)
        require_shape("k", k, (batch, None, heads, d), "[B, T, H, d]")
        require_shape("v", v, tuple(k.shape), "[B, T, H, d] of k")
        tokens = k.shape[1]
        counts = (
            torch.full_like(self._lengths, tokens)
            if counts is None
            else as_integers("counts", counts, self._lengths.device)
        )
        require_shape("counts", counts, (batch,), "[B]")
        require_range("counts", counts, 0, tokens + 1, "a sequence gains at most T tokens")
        after = self._lengths + counts
        if self._used(after) > capacity:
            raise CapacityError(
                f"{self._used(after)} tokens in a cache of capacity {capacity}: truncate, reset or enlarge it"
            )
        steps = torch.arange(tokens, device=after.device)
        added = steps < counts[:, None]
        keep = added[:, :, None, None]
        quantised = [quantise(name, torch.where(keep, x, 0.0)) for name, x in (("k", k), ("v", v))]
        positions = torch.where(added, self._lengths[:, None] + steps, -1)
        rows, columns = torch.nonzero(added, as_tuple=True)
        slots = positions[rows, columns]
        for side, (codes, worth) in enumerate(quantised):
            self._codes[side, rows, slots] = codes[rows, columns]
            self._worth[side, rows, slots] = worth[rows, columns]
        self._lengths = after
        return positions

    def attend(self, q: Tensor, positions: Tensor) -> Tensor:
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
        require_float32(q=q)
        require_shape("q", q, (batch, None, heads, d), "[B, T, H, d]")
        where = query_positions(positions, batch, q.shape[1], capacity, q.device)
        require_cached(where, self._lengths)
        used = self._used(self._lengths)
        k, v = ((self._codes[side, :, :used], self._worth[side, :, :used]) for side in (0, 1))
        return attend(quantise_queries(q, where), k, v, where)

    def truncate(self, lengths: Tensor) -> None:
        """Forget the last tokens.

        Args:
            lengths: integers [B], the new lengths.

        Raises:
            DTypeError, ShapeError, RangeError (negative, or more than a sequence holds).
        """
        lengths = as_integers("lengths", lengths, self._lengths.device)
        require_shape("lengths", lengths, tuple(self._lengths.shape), "[B]")
        wrong = (lengths < 0) | (lengths > self._lengths)
        if bool(wrong.any()):
            row = int(torch.nonzero(wrong)[0])
            raise RangeError(f"length {int(lengths[row])} of sequence {row}: expected 0 .. {int(self._lengths[row])}")
        self._lengths = lengths.clone()

    def _rows(self, rows: Tensor) -> Tensor:
        rows = as_integers("rows", rows, self._lengths.device)
        require_shape("rows", rows, (None,), "[rows]")
        require_range("rows", rows, 0, self._lengths.shape[0], "name sequences of this cache")
        return rows

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget all tokens of these sequences, or of all.

        Raises:
            DTypeError, ShapeError, RangeError (a row that does not exist).
        """
        self._lengths[slice(None) if rows is None else self._rows(rows)] = 0

    def fork(self, rows: Tensor) -> Int8KVCache:
        """A new, independent cache whose sequence i is a copy of sequence rows[i].

        Raises:
            DTypeError, ShapeError, RangeError (a row that does not exist).
        """
        rows = self._rows(rows)
        _, _, capacity, heads, d = self._codes.shape
        forked = Int8KVCache(rows.shape[0], capacity, heads, d, self._codes.device)
        forked._codes, forked._worth = self._codes[:, rows], self._worth[:, rows]
        forked._lengths = self._lengths[rows]
        return forked


def kv_cache(
    k: Container, v: Container, q: Container | None = None, *, script: Sequence[Any], capacity: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A whole life of a cache, as conformance vectors describe it (SPEC.md, *kv_cache*).

    Args:
        k, v: float32 [B, T, H, d] by key, those of the first append giving B, H, d and the device.
        q: float32 [B, T, H, d] by key, for ``attend``.
        script: the steps.
        capacity: of the cache.

    Returns:
        lengths int64 [B], and o by key.

    Raises:
        As the methods of :class:`Int8KVCache`; ParameterError for a step that cannot be followed.
    """
    sizes, first = cache_sizes(k, script, capacity)
    cache, o = run_script(Int8KVCache(*sizes, device=first.device), k, v, q, script)
    return cache.lengths, o
