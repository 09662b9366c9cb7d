# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Keys and values of the tokens seen so far, for sequences of different lengths (SPEC.md, section *kv_cache*).

    keys, values [B, capacity, H, d],   lengths int64 [B]

Memory is taken once. ``append`` is one launch that writes each new token to its slot and tells its position; with int8
storage the same launch rounds the token, per head. Gradients do not flow through a cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import CapacityError, ParameterError, RangeError
from walsh.kernels.triton._check import require_float, require_integer, require_range, require_shape
from walsh.kernels.triton._device import divide, narrow, widen
from walsh.kernels.triton._launch import launch, next_power_of_two, require_device, synchronous
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.activations import codes_of, scale_of
from walsh.kernels.triton.attention import attention, decode_attention


@triton.jit
def append_kernel(
    k,
    v,
    keys,
    values,
    key_worth,
    value_worth,
    lengths,
    counts,
    positions,
    tokens,
    capacity,
    heads,
    features,
    QUANTIZE: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
):
    """One new token of one sequence: its slot, or -1 where the sequence does not gain it."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0)
    added = tl.load(counts + batch)
    slot = tl.load(lengths + batch) + token
    tl.store(positions + batch * tokens + token, tl.where(token < added, slot, -1))
    head, feature = tl.arange(0, BH)[:, None], tl.arange(0, BD)[None, :]
    inside = (head < heads) & (feature < features) & (token + feature * 0 < added)
    source = (batch * tokens + token) * heads * features + head * features + feature
    row = (batch * capacity + slot) * heads + head
    for side in tl.static_range(2):
        incoming = k if side == 0 else v
        stored = keys if side == 0 else values
        x = widen(tl.load(incoming + source, mask=inside, other=0.0))
        if QUANTIZE:
            worths = key_worth if side == 0 else value_worth
            size = tl.abs(x)
            good = size < float("inf")
            finite = tl.min(good.to(tl.int32), 1) == 1
            scale = scale_of(tl.max(tl.where(good, size, 0.0), 1), finite)
            tl.store(stored + row * features + feature, codes_of(x, scale[:, None]), mask=inside)
            worth = divide(tl.full((BH,), 1.0, scale.dtype), scale)
            tl.store(worths + row, worth.to(tl.float32)[:, None], mask=(head < heads) & (token + head * 0 < added))
        else:
            tl.store(stored + row * features + feature, narrow(x, stored.dtype.element_ty), mask=inside)


def _fake_append(k, v, keys, values, key_worth, value_worth, lengths, counts):
    return lengths.new_empty(k.shape[:2])


@operation("kv_cache_append", _fake_append, ("keys", "values", "key_worth", "value_worth"))
def _append(
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    key_worth: Tensor | None,
    value_worth: Tensor | None,
    lengths: Tensor,
    counts: Tensor,
) -> Tensor:
    """Write checked tokens to their slots; positions [B, T]: one launch."""
    require_device(k, v, keys, values, key_worth, value_worth, lengths, counts)
    positions = _fake_append(k, v, keys, values, key_worth, value_worth, lengths, counts)
    (batch, tokens), (capacity, heads, d) = k.shape[:2], keys.shape[1:]
    launch(
        append_kernel,
        (tokens, batch),
        k.contiguous(),
        v.contiguous(),
        keys,
        values,
        key_worth,
        value_worth,
        lengths,
        counts,
        positions,
        tokens,
        capacity,
        heads,
        d,
        fusion=False,
        QUANTIZE=key_worth is not None,
        BH=next_power_of_two(heads),
        BD=next_power_of_two(d),
    )
    return positions


class KVCache:
    """Preallocated keys and values with one length per sequence.

    Args:
        batch, capacity, heads, head_dim: B, the most tokens of a sequence, H and d.
        dtype: of the storage, a float dtype or ``torch.int8`` (codes with one factor per token and head).
        device: where the storage lies.

    Attributes:
        keys, values: [B, capacity, H, d]; slots at or past a sequence's length are meaningless.
        key_worth, value_worth: float32 [B, capacity, H, 1], what a unit of a code is worth; only for int8.
        lengths: int64 [B].

    Raises:
        ParameterError: a negative size.
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
        self.key_worth: Tensor | None = None
        self.value_worth: Tensor | None = None
        if dtype == torch.int8:
            self.key_worth = torch.zeros(batch, capacity, heads, 1, device=device)
            self.value_worth = torch.zeros_like(self.key_worth)
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
            CapacityError: a sequence would pass the capacity; nothing has changed. BackendError: no machine for Triton.
        """
        batch, _, heads, d = self.keys.shape
        require_device(self.keys, k, v)
        for name, x in (("k", k), ("v", v)):
            require_float(name, x)
            require_shape(name, x, (batch, k.shape[1] if k.ndim > 1 else None, heads, d), "[B, T, H, d] of this cache")
        tokens = k.shape[1]
        counts = torch.full_like(self.lengths, tokens) if counts is None else counts
        require_integer("counts", counts)
        require_shape("counts", counts, (batch,), "[B]")
        require_range("counts", counts, 0, tokens + 1, "a sequence gains at most the T tokens given")
        counts = counts.to(self.lengths).contiguous()
        lengths = self.lengths + counts
        self._require_room(lengths)
        positions: Tensor = _append(
            k, v, self.keys, self.values, self.key_worth, self.value_worth, self.lengths, counts
        )
        self.lengths = lengths
        return positions

    def _require_room(self, lengths: Tensor) -> None:
        if self.batch and synchronous(lengths) and int(lengths.max()) > self.capacity:
            row = int(lengths.argmax())
            raise CapacityError(
                f"sequence {row} would hold {int(lengths[row])} tokens: expected at most {self.capacity}; "
                "truncate it or make a larger cache"
            )

    def attend(self, q: Tensor, positions: Tensor) -> Tensor:
        """Attention of q [B, T, H, d] over the cache.

        Args:
            q: float [B, T, H, d].
            positions: integer [B, T] as :meth:`append` returns them, or [T].

        Returns:
            o [B, T, H, d] in the dtype of q.

        Raises:
            As ``attention``; RangeError: a position at or past the length of its sequence.
        """
        cached = positions.ndim == 2 and positions.shape[0] == self.batch and synchronous(positions)
        if cached and bool((positions >= self.lengths[:, None]).any()):
            raise RangeError(
                f"positions reach {int(positions.max())}: expected less than the lengths {self.lengths.tolist()}"
            )
        if self.key_worth is not None and self.value_worth is not None:
            return decode_attention(q, self.keys, self.key_worth, self.values, self.value_worth, positions)
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
        self.lengths = wanted.contiguous().clone()

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

    def fork(self, rows: Tensor | list[int]) -> "KVCache":
        """A new, independent cache whose sequence i is a copy of sequence rows[i].

        Raises:
            RangeError: a row outside 0 .. B-1.
        """
        index = self._rows(rows)
        _, capacity, heads, d = self.keys.shape
        other = type(self)(0, capacity, heads, d, self.keys.dtype, self.keys.device)
        other.keys, other.values, other.lengths = self.keys[index], self.values[index], self.lengths[index]
        if self.key_worth is not None and self.value_worth is not None:
            other.key_worth, other.value_worth = self.key_worth[index], self.value_worth[index]
        return other

    def _rows(self, rows: Tensor | list[int]) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.keys.device)
        require_shape("rows", index, (None,), "a list of sequences")
        require_range("rows", index, 0, self.batch, "a row is a sequence of this cache")
        return index
