"""Causal attention in strict arithmetic (SPEC.md, *attention* and *Strict arithmetic*).

    q, k, v  -> int8 codes with one r per token and head
    score    = ((f32(sum_d q k) * r_q) * r_k) * f32(1 / sqrt(d))
    e        = exp(score - max over visible keys),   +0 for the others
    o        = psum_s((e * r_v) * f32(v)) / psum_s(e)

q [B, T, H, d], k and v [B, S, H, d], o [B, T, H, d]. Blocks of ``psum`` are counted from position 0, so a query gets
the same bits from a full pass and from a cache. ``psum`` needs its addends [B, H, T, S, d] side by side: queries are
taken in tiles that keep them small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from walsh.errors import RangeError, ShapeError
from walsh.kernels.torch._check import require_range, require_shape
from walsh.kernels.torch.integer import integer_bmm
from walsh.kernels.torch.strict._arithmetic import divide, exp, psum, quantise, reciprocal_root
from walsh.kernels.torch.strict._check import as_integers, require_float32, require_last_axis

_TILE = 1 << 22
"""Most addends held at once: 16 MiB."""

Quantised = tuple[Tensor, Tensor]
"""Codes int8 [B, S, H, d] and r float32 [B, S, H, 1]."""


def query_positions(positions: Tensor | None, batch: int, queries: int, keys: int, device: torch.device) -> Tensor:
    """Positions as int64 [B, T]; the default makes the queries the last T of the keys.

    Raises:
        DTypeError, ShapeError, RangeError (below -1, or from S up).
    """
    if positions is None:
        positions = torch.arange(queries, device=device) + (keys - queries)
    positions = as_integers("positions", positions, device)
    if positions.shape not in ((queries,), (batch, queries)):
        raise ShapeError(f"positions have shape {list(positions.shape)}: expected [T] or [B, T] = [{batch}, {queries}]")
    require_range("positions", positions, -1, keys, "-1 is padding, others name the last key that is seen")
    return positions.expand(batch, queries)


def _attend_tile(q: Quantised, k: Quantised, v: Quantised, positions: Tensor) -> Tensor:
    """:func:`attend` for queries few enough; heads stand before tokens: q [B, H, T, d], k and v [B, H, S, d]."""
    (q_codes, q_worth), (k_codes, k_worth), (v_codes, v_worth) = q, k, v
    sums = integer_bmm(q_codes, k_codes).to(torch.float32)  # [B, H, T, S]
    score = ((sums * q_worth) * k_worth.mT) * reciprocal_root(q_codes.shape[-1])
    keys = torch.arange(k_codes.shape[2], device=positions.device)
    visible = keys <= positions[:, None, :, None]
    largest = torch.amax(torch.where(visible, score, -math.inf), dim=-1, keepdim=True)
    e = torch.where(visible, exp(score - largest), 0.0)
    addends = (e * v_worth.mT)[..., None] * v_codes.to(torch.float32)[:, :, None]  # [B, H, T, S, d]
    mean = divide(psum(addends, 3), psum(e, 3)[..., None])
    return torch.where((positions < 0)[:, None, :, None], 0.0, mean)


def attend(q: Quantised, k: Quantised, v: Quantised, positions: Tensor) -> Tensor:
    """Attention over codes: the part that a full pass and a cache share. positions int64 [B, T]."""
    batch, queries, heads, d = q[0].shape
    keys = k[0].shape[1]
    if 0 in (batch, queries, heads, keys):
        return torch.zeros(batch, queries, heads, d, dtype=torch.float32, device=positions.device)
    key, value = ((codes.transpose(1, 2), worth.transpose(1, 2)) for codes, worth in (k, v))
    step = max(_TILE // (batch * heads * keys * d), 1)
    tiles = []
    for start in range(0, queries, step):
        tile = slice(start, start + step)
        query = (q[0][:, tile].transpose(1, 2), q[1][:, tile].transpose(1, 2))
        tiles.append(_attend_tile(query, key, value, positions[:, tile]))
    return torch.cat(tiles, dim=2).transpose(1, 2)


def quantise_queries(q: Tensor, positions: Tensor) -> Quantised:
    """Codes of the queries; padding (position -1) is never looked at, whatever it holds."""
    return quantise("q", torch.where((positions >= 0)[:, :, None, None], q, 0.0))


def attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None = None) -> Tensor:
    """Causal attention by positions.

    Args:
        q: float32 [B, T, H, d].
        k, v: float32 [B, S, H, d]. A key that no query sees is never looked at, whatever it holds.
        positions: integers [T] or [B, T]: query t sees keys 0 .. positions[t]; -1 sees nothing and gives +0. Default
            S - T + t.

    Returns:
        float32 [B, T, H, d].

    Raises:
        DTypeError, ShapeError, RangeError (positions), NonFiniteError (q, or a visible k or v).
    """
    require_float32(q=q, k=k, v=v)
    require_shape("q", q, (None, None, None, None), "[B, T, H, d]")
    require_last_axis("q", q, "d")
    batch, queries, heads, d = q.shape
    require_shape("k", k, (batch, None, heads, d), "[B, S, H, d]")
    require_shape("v", v, tuple(k.shape), "[B, S, H, d] of k")
    where = query_positions(positions, batch, queries, k.shape[1], q.device)
    last = torch.amax(where, dim=1, keepdim=True) if queries else where.new_full((batch, 1), -1)
    seen = (torch.arange(k.shape[1], device=q.device) <= last)[:, :, None, None]
    key, value = (quantise(name, torch.where(seen, x, 0.0)) for name, x in (("k", k), ("v", v)))
    return attend(quantise_queries(q, where), key, value, where)


def require_cached(positions: Tensor, lengths: Tensor) -> None:
    """Raise RangeError if a query of [B, T] would look at or past its sequence's length [B]."""
    beyond = positions >= lengths[:, None]
    if bool(beyond.any()):
        row, query = torch.nonzero(beyond)[0].tolist()
        found, length = int(positions[row, query]), int(lengths[row])
        raise RangeError(f"position {found} of sequence {row}: expected below its length {length}; append first")
