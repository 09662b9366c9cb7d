"""Keys and values of the tokens seen so far, for sequences of different lengths (SPEC.md, section *kv_cache*).

    keys, values [B, capacity, H, d],   lengths int64 [B]

Memory is taken once. A cache holds values only: gradients do not flow through it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from walsh.errors import CapacityError, ParameterError, RangeError
from walsh.kernels.torch._check import require_float, require_integer, require_range, require_shape
from walsh.kernels.torch.attention import attention


class KVCache:
    """Preallocated keys and values with one length per sequence.

    Args:
        batch, capacity, heads, head_dim: B, the most tokens of a sequence, H and d.
        dtype, device: of the storage.

    Attributes:
        keys, values: [B, capacity, H, d]; slots at or past a sequence's length are meaningless.
        lengths: int64 [B].
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        for name, size in (("batch", batch), ("capacity", capacity), ("heads", heads), ("head_dim", head_dim)):
            if size < 0:
                raise ParameterError(f"{name} is {size}: expected at least 0")
        self.keys = torch.zeros(batch, capacity, heads, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def batch(self) -> int:
        """B."""
        return self.keys.shape[0]

    @property
    def capacity(self) -> int:
        """The most tokens that a sequence can hold."""
        return self.keys.shape[1]

    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor, counts: Tensor | None = None) -> Tensor:
        """Add tokens to the end of each sequence.

        Args:
            k, v: float [B, T, H, d].
            counts: integer [B], how many of the T tokens sequence b gains; all if None.

        Returns:
            int64 [B, T], the position of each new token, -1 where t >= counts[b].

        Raises:
            ShapeError, DTypeError: arguments that do not fit. RangeError: a count outside 0 .. T.
            CapacityError: a sequence would pass the capacity; nothing has changed.
        """
        batch, capacity, heads, d = self.keys.shape
        for name, x in (("k", k), ("v", v)):
            require_float(name, x)
            require_shape(name, x, (batch, k.shape[1] if k.ndim > 1 else None, heads, d), "[B, T, H, d] of this cache")
        tokens = k.shape[1]
        whole = counts is None
        if counts is None:
            counts = torch.full_like(self.lengths, tokens)
        require_integer("counts", counts)
        require_shape("counts", counts, (batch,), "[B]")
        require_range("counts", counts, 0, tokens + 1, "a sequence gains at most the T tokens given")
        lengths = self.lengths + counts.to(self.lengths)
        least, most = (int(v) for v in torch.aminmax(lengths)) if batch else (0, 0)
        if most > capacity:
            row = int(lengths.argmax())
            raise CapacityError(
                f"sequence {row} would hold {int(lengths[row])} tokens: expected at most {capacity}; "
                "truncate it or make a larger cache"
            )
        step = torch.arange(tokens, device=self.keys.device)
        if whole and batch and least == most:
            self.keys[:, most - tokens : most], self.values[:, most - tokens : most] = k, v
            self.lengths = lengths
            return step.expand(batch, tokens) + (most - tokens)
        gained = step < counts.to(self.lengths)[:, None]
        positions = torch.where(gained, self.lengths[:, None] + step, -1)
        sequence, column = gained.nonzero(as_tuple=True)
        slot = positions[sequence, column]
        self.keys[sequence, slot] = k[sequence, column].to(self.keys.dtype)
        self.values[sequence, slot] = v[sequence, column].to(self.values.dtype)
        self.lengths = lengths
        return positions

    def attend(self, q: Tensor, positions: Tensor) -> Tensor:
        """:func:`attention` of q [B, T, H, d] over the cache.

        Args:
            q: float [B, T, H, d].
            positions: integer [B, T] as :meth:`append` returns them, or [T].

        Returns:
            o [B, T, H, d] in the dtype of q.

        Raises:
            As :func:`attention`; RangeError: a position at or past the length of its sequence.
        """
        if (
            positions.ndim == 2
            and positions.shape[0] == self.batch
            and bool((positions >= self.lengths[:, None]).any())
        ):
            raise RangeError(
                f"positions reach {int(positions.max())}: expected less than the lengths {self.lengths.tolist()}"
            )
        return attention(q, self.keys, self.values, positions)

    def truncate(self, lengths: Tensor) -> None:
        """Forget the end of each sequence.

        Args:
            lengths: integer [B], each at most the present length.

        Raises:
            ShapeError, DTypeError: lengths do not fit. RangeError: a length below 0 or past the present one.
        """
        require_integer("lengths", lengths)
        require_shape("lengths", lengths, (self.batch,), "[B]")
        wanted = lengths.to(self.lengths)
        wrong = (wanted < 0) | (wanted > self.lengths)
        if bool(wrong.any()):
            row = int(wrong.to(torch.int64).argmax())
            raise RangeError(
                f"lengths holds {int(wanted[row])} for sequence {row}: expected 0 .. {int(self.lengths[row])}"
            )
        self.lengths = wanted.clone()

    def reset(self, rows: Tensor | list[int] | None = None) -> None:
        """Empty these sequences, or all.

        Raises:
            RangeError: a row outside 0 .. B-1.
        """
        lengths = torch.zeros_like(self.lengths)
        if rows is not None:
            lengths = self.lengths.clone()
            lengths[self._rows(rows)] = 0
        self.lengths = lengths

    def fork(self, rows: Tensor | list[int]) -> KVCache:
        """A new, independent cache whose sequence i is a copy of sequence rows[i].

        Raises:
            RangeError: a row outside 0 .. B-1.
        """
        index = self._rows(rows)
        _, capacity, heads, d = self.keys.shape
        other = KVCache(0, capacity, heads, d, self.keys.dtype, self.keys.device)
        other.keys, other.values, other.lengths = self.keys[index], self.values[index], self.lengths[index]
        return other

    def _rows(self, rows: Tensor | list[int]) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.keys.device)
        require_shape("rows", index, (None,), "a list of sequences")
        require_range("rows", index, 0, self.batch, "a row is a sequence of this cache")
        return index
