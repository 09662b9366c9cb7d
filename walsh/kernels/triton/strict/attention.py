# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Causal attention in strict arithmetic, and its cache (SPEC.md, *attention*, *kv_cache* and *strict arithmetic*).

    q, k, v  -> int8 codes with one r per token and head
    score    = ((f32(sum_d q k) * r_q) * r_k) * f32(1 / sqrt(d))
    e        = exp(score - max over visible keys),   +0 for the others
    o        = psum_s((e * r_v) * f32(v)) / psum_s(e)

A program owns a few queries of one sequence and head. It goes over the visible keys twice, for the maximum and for the
sums, in blocks of 32 counted from position 0: the blocks of ``psum``, so a query gets the same bits from a full pass
and from a cache.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.kernels.torch.strict._check import as_integers
from walsh.kernels.torch.strict.attention import query_positions, require_cached
from walsh.kernels.triton._check import require_shape
from walsh.kernels.triton._device import divide, hsum, strict_exp
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, require_device, synchronous
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.kv_cache import KVCache
from walsh.kernels.triton.strict._check import require_finite_rows, require_float32, require_last_axis
from walsh.kernels.triton.strict.layers import quantise


@triton.jit
def strict_scores(
    query, r_q, position, k, k_worth, slot, last, k_token, w_token, features, NORM: tl.constexpr, BD: tl.constexpr
):
    """Scores [queries, 32] of one block of keys and whether each is visible."""
    feature = tl.arange(0, BD)
    inside = (slot[:, None] < last) & (feature[None, :] < features)
    key = tl.load(k + slot.to(tl.int64)[:, None] * k_token + feature[None, :], mask=inside, other=0).to(tl.int32)
    r_k = tl.load(k_worth + slot.to(tl.int64) * w_token, mask=slot < last, other=0.0)
    sums = tl.sum(query[:, None, :] * key[None, :, :], 2)
    score = ((sums.to(tl.float32) * r_q[:, None]) * r_k[None, :]) * NORM
    return score, (slot[None, :] <= position[:, None]) & (slot[None, :] < last)


@triton.jit
def strict_attention_kernel(
    q,
    q_worth,
    k,
    k_worth,
    v,
    v_worth,
    positions,
    o,
    tokens,
    keys,
    heads,
    features,
    k_batch,
    k_token,
    k_head,
    w_batch,
    w_token,
    w_head,
    NORM: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """o of BT queries; q and q_worth contiguous [B, T, H, .], k and v with one set of strides, worths with another."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    feature = tl.arange(0, BD)
    valid = token < tokens
    inside = valid[:, None] & (feature[None, :] < features)
    row = (batch * tokens + token) * heads + head
    query = tl.load(q + row[:, None] * features + feature[None, :], mask=inside, other=0).to(tl.int32)
    r_q = tl.load(q_worth + row, mask=valid, other=0.0)
    position = tl.load(positions + batch * tokens + token, mask=valid, other=-1).to(tl.int32)
    last = tl.minimum(keys, tl.max(position, 0) + 1)
    k_base = k + batch * k_batch + head * k_head
    v_base = v + batch * k_batch + head * k_head
    kw_base = k_worth + batch * w_batch + head * w_head
    vw_base = v_worth + batch * w_batch + head * w_head
    largest = tl.full((BT,), float("-inf"), tl.float32)
    for start in range(0, last, 32):
        slot = start + tl.arange(0, 32)
        score, visible = strict_scores(
            query, r_q, position, k_base, kw_base, slot, last, k_token, w_token, features, NORM, BD
        )
        largest = tl.maximum(largest, tl.max(tl.where(visible, score, float("-inf")), 1))
    largest = tl.where(position >= 0, largest, 0.0)
    total = tl.zeros((BT,), tl.float32)
    acc = tl.zeros((BT * BD,), tl.float32)
    for start in range(0, last, 32):
        slot = start + tl.arange(0, 32)
        score, visible = strict_scores(
            query, r_q, position, k_base, kw_base, slot, last, k_token, w_token, features, NORM, BD
        )
        e = tl.where(visible, strict_exp(tl.where(visible, score - largest[:, None], 0.0)), 0.0)
        total += hsum(tl.reshape(e, (BT * 32,)), BT, 32, 1)
        here = (slot[:, None] < last) & (feature[None, :] < features)
        value = tl.load(v_base + slot.to(tl.int64)[:, None] * k_token + feature[None, :], mask=here, other=0)
        r_v = tl.load(vw_base + slot.to(tl.int64) * w_token, mask=slot < last, other=0.0)
        addends = (e * r_v[None, :])[:, :, None] * value.to(tl.float32)[None, :, :]
        acc += hsum(tl.reshape(addends, (BT * 32 * BD,)), BT, 32, BD)
    seen = (position >= 0)[:, None]
    divisor = tl.broadcast_to(tl.where(seen, total[:, None], 1.0), (BT, BD))
    result = tl.where(seen, divide(tl.reshape(acc, (BT, BD)), divisor), 0.0)
    tl.store(o + row[:, None] * features + feature[None, :], result, mask=inside)


def _fake(q, q_worth, k, k_worth, v, v_worth, positions):
    return q_worth.new_empty(q.shape)


@operation("strict_attention", _fake)
def attend(
    q: Tensor, q_worth: Tensor, k: Tensor, k_worth: Tensor, v: Tensor, v_worth: Tensor, positions: Tensor
) -> Tensor:
    """o of codes [B, T or S, H, d] with worths [B, T or S, H, 1] and positions int64 [B, T]: one launch."""
    require_device(q, q_worth, k, k_worth, v, v_worth, positions)
    o = _fake(q, q_worth, k, k_worth, v, v_worth, positions)
    batch, tokens, heads, features = q.shape
    size = next_power_of_two(features)
    tile = min(next_power_of_two(tokens), 32) if interpreting() else max(1, min(next_power_of_two(tokens), 256 // size))
    launch(
        strict_attention_kernel,
        (cdiv(tokens, tile), batch * heads),
        q.contiguous(),
        q_worth.contiguous(),
        k,
        k_worth,
        v,
        v_worth,
        positions.contiguous(),
        o,
        tokens,
        k.shape[1],
        heads,
        features,
        *k.stride()[:3],
        *k_worth.stride()[:3],
        warps=4,
        stages=1,
        fusion=False,
        NORM=1 / math.sqrt(features),
        BT=tile,
        BD=size,
    )
    return o


def quantise_queries(q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the queries; padding (position -1) is never looked at, whatever it holds."""
    return quantise("q", torch.where((positions >= 0)[:, :, None, None], q, 0.0))


def attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None = None) -> Tensor:
    """Attention of every query to the keys up to its position.

    Args:
        q: float32 [B, T, H, d].
        k, v: float32 [B, S, H, d]; a slot that no query of its sequence sees is never looked at, whatever it holds.
        positions: integers [T] or [B, T]: query t sees keys 0 .. positions[t]; -1 sees nothing and gives +0. Default
            S - T + t.

    Returns:
        float32 [B, T, H, d].

    Raises:
        DTypeError, ShapeError, RangeError (positions), NonFiniteError (q, or a visible k or v), BackendError.
    """
    require_float32(q=q, k=k, v=v)
    require_shape("q", q, (None, None, None, None), "[B, T, H, d]")
    require_last_axis("q", q, "d")
    require_device(q, k, v)
    batch, queries, heads, d = q.shape
    require_shape("k", k, (batch, None, heads, d), "[B, S, H, d]")
    require_shape("v", v, tuple(k.shape), "[B, S, H, d] of k")
    where = query_positions(positions, batch, queries, k.shape[1], q.device)
    last = torch.amax(where, dim=1, keepdim=True) if queries else where.new_full((batch, 1), -1)
    seen = (torch.arange(k.shape[1], device=q.device) <= last)[:, :, None, None]
    key, value = (quantise(name, torch.where(seen, x, 0.0)) for name, x in (("k", k), ("v", v)))
    result: Tensor = attend(*quantise_queries(q, where), *key, *value, where)
    return result


class Int8KVCache(KVCache):
    """The cache of strict attention: int8 codes of k and v with r per token and head.

    A token's codes do not depend on when it was appended, so any split of the appends leaves the same cache.

    Args:
        batch, capacity, heads, head_dim: B, the most tokens of a sequence, H and d.
        device: where the codes live.

    Raises:
        ParameterError: a negative size.
    """

    def __init__(
        self, batch: int, capacity: int, heads: int, head_dim: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__(batch, capacity, heads, head_dim, torch.int8, device)

    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor, counts: Tensor | None = None) -> Tensor:
        """Add tokens: sequence b gains the first counts[b] of the T.

        Args:
            k, v: float32 [B, T, H, d]; tokens that are not added are never looked at.
            counts: integers [B] in 0 .. T; all T by default.

        Returns:
            int64 [B, T], the positions of the new tokens, -1 where t >= counts[b].

        Raises:
            As ``KVCache.append``; NonFiniteError: an added token holds NaN or infinity; the cache is then unchanged.
        """
        require_float32(k=k, v=v)
        before = self.lengths
        if counts is not None:
            counts = as_integers("counts", counts, self.lengths.device)
        positions = super().append(k, v, counts)
        if synchronous(k):
            added = (positions >= 0)[:, :, None]
            for name, x in (("k", k), ("v", v)):
                try:
                    require_finite_rows(name, torch.where(added, x.abs().amax(dim=-1), 0.0))
                except ValueError:
                    self.lengths = before
                    raise
        return positions

    def attend(self, q: Tensor, positions: Tensor) -> Tensor:
        """Strict attention over the cached tokens.

        Args:
            q: float32 [B, T, H, d]; a padding query (position -1) is never looked at.
            positions: integers [B, T] as :meth:`append` returns them, or [T].

        Returns:
            float32 [B, T, H, d].

        Raises:
            DTypeError, ShapeError, NonFiniteError; RangeError: a position at or past the sequence's length.
        """
        batch, capacity, heads, d = self.keys.shape
        require_float32(q=q)
        require_shape("q", q, (batch, None, heads, d), "[B, T, H, d]")
        require_device(self.keys, q)
        where = query_positions(positions, batch, q.shape[1], capacity, q.device)
        if synchronous(where):
            require_cached(where, self.lengths)
        codes, worth = quantise_queries(q, where)
        result: Tensor = attend(codes, worth, self.keys, self.key_worth, self.values, self.value_worth, where)
        return result

    def fork(self, rows: Tensor | list[int]) -> "Int8KVCache":
        """A new, independent cache whose sequence i is a copy of sequence rows[i].

        Raises:
            DTypeError, ShapeError, RangeError (a row that does not exist).
        """
        index = self._rows(rows)
        _, capacity, heads, d = self.keys.shape
        other = Int8KVCache(0, capacity, heads, d, self.keys.device)
        other.keys, other.values, other.lengths = self.keys[index], self.values[index], self.lengths[index]
        if self.key_worth is not None and self.value_worth is not None:
            other.key_worth, other.value_worth = self.key_worth[index], self.value_worth[index]
        return other
