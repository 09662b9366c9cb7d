"""A KV cache whose memory grows with its sequences: storage doubles when it is full, up to a limit.

The static cache of ``walsh.kernels`` takes all its memory at once, and every new token looks over all of it. It is what
a captured graph needs; for a short answer from a long context this one is smaller and faster. Results are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from walsh.kernels import torch as kernels

FIRST = 64
"""Tokens that a new cache has room for; fewer only if its limit is lower."""


class GrowingKVCache(kernels.KVCache):
    """Keys and values [B, storage, H, d], storage between ``FIRST`` and the limit; see ``walsh.kernels.torch.KVCache``.

    Args:
        batch, limit, heads, head_dim: B, the most tokens of a sequence, H and d.
        dtype, device: of the storage.
    """

    def __init__(
        self,
        batch: int,
        limit: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(batch, min(limit, FIRST), heads, head_dim, dtype, device)
        self.limit = limit

    @property
    def capacity(self) -> int:
        """The most tokens that a sequence can hold, storage for which need not exist yet."""
        return self.limit

    def append(self, k: Tensor, v: Tensor, counts: Tensor | None = None) -> Tensor:
        """As ``KVCache.append``, after making room."""
        longest = int(self.lengths.max()) if self.batch else 0
        if k.ndim == 4:
            self._reserve(longest + k.shape[1])
        return super().append(k, v, counts)

    def fork(self, rows: Tensor | list[int]) -> GrowingKVCache:
        """As ``KVCache.fork``; the copy grows too."""
        plain = super().fork(rows)
        heads, d = plain.keys.shape[2:]
        other = GrowingKVCache(0, self.limit, heads, d, plain.keys.dtype, plain.keys.device)
        other.keys, other.values, other.lengths = plain.keys, plain.values, plain.lengths
        return other

    def _reserve(self, tokens: int) -> None:
        """Storage for so many tokens in each sequence, or all that the limit allows."""
        held = self.keys.shape[1]
        if tokens > held and held < self.limit:
            more = min(max(tokens, 2 * held), self.limit) - held
            self.keys, self.values = (pad(x, (0, 0, 0, 0, 0, more)) for x in (self.keys, self.values))
