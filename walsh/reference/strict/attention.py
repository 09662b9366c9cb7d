"""Causal attention in strict arithmetic (SPEC.md, *attention* and *Strict arithmetic*).

    q, k, v  -> int8 codes with one r per token and head
    score    = ((f32(sum_d q k) * r_q) * r_k) * f32(1 / sqrt(d))
    e        = exp(score - max over visible keys),   +0 for the others
    o        = psum_s((e * r_v) * f32(v)) / psum_s(e)

q [B, T, H, d], k and v [B, S, H, d], o [B, T, H, d]. Blocks of ``psum`` are counted from position 0, so a query gets
the same bits from a full pass and from a cache.
"""

from __future__ import annotations

import numpy as np

from walsh.errors import RangeError, ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import (
    ZERO,
    Codes,
    Float32,
    exp,
    integer_product,
    psum,
    quantise,
    reciprocal_root,
)
from walsh.reference.strict._check import Array

Quantised = tuple[Codes, Float32]
"""Codes int8 [B, S, H, d] and r float32 [B, S, H, 1]."""


def query_positions(positions: Array | None, batch: int, queries: int, keys: int) -> Array:
    """Positions as int64 [B, T]; the default makes the queries the last T of the keys.

    Raises:
        DTypeError, ShapeError, RangeError (below -1, or from S up).
    """
    if positions is None:
        positions = np.arange(queries) + (keys - queries)
    positions = _check.typed("positions", positions, "integer")
    if positions.shape not in ((queries,), (batch, queries)):
        raise ShapeError(f"positions have shape {list(positions.shape)}: expected [T] or [B, T] = [{batch}, {queries}]")
    _check.within("positions", positions, -1, keys, "-1 is padding, others name the last key that is seen")
    return np.broadcast_to(positions.astype(np.int64), (batch, queries))


@np.errstate(over="ignore", invalid="ignore")
def attend(q: Quantised, k: Quantised, v: Quantised, positions: Array) -> Float32:
    """Attention over codes: the part that a full pass and a cache share. positions int64 [B, T]."""
    (q_codes, q_worth), (k_codes, k_worth), (v_codes, v_worth) = q, k, v
    batch, queries, heads, d = q_codes.shape
    sums = integer_product(q_codes.transpose(0, 2, 1, 3), k_codes.transpose(0, 2, 3, 1))  # [B, H, T, S]
    by_query, by_key = q_worth.transpose(0, 2, 1, 3), k_worth.transpose(0, 2, 3, 1)
    score = ((sums.astype(np.float32) * by_query) * by_key) * reciprocal_root(d)
    visible = np.arange(k_codes.shape[1]) <= positions[:, None, :, None]
    largest = np.where(visible, score, np.float32(-np.inf)).max(axis=-1, keepdims=True, initial=-np.inf)
    e = np.where(visible, exp(score - largest), ZERO)
    o = np.zeros((batch, queries, heads, d), dtype=np.float32)
    values = v_codes.astype(np.float32).transpose(0, 2, 1, 3)  # [B, H, S, d]
    for t in range(queries):  # one query at a time: [B, H, T, S, d] would not fit
        weight = e[:, :, t, :, None] * v_worth.transpose(0, 2, 1, 3)
        mean = psum(weight * values, axis=2) / psum(e[:, :, t], axis=2)[..., None]
        o[:, t] = np.where(positions[:, t, None, None] < 0, ZERO, mean)
    return o


def attention(q: Array, k: Array, v: Array, positions: Array | None = None) -> Float32:
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
    q, k, v = (_check.typed(name, x, "float32") for name, x in (("q", q), ("k", k), ("v", v)))
    _check.featured("q", _check.shaped("q", q, (None, None, None, None), "[B, T, H, d]"), None, "d")
    batch, queries, heads, d = q.shape
    _check.shaped("k", k, (batch, None, heads, d), "[B, S, H, d]")
    _check.shaped("v", v, k.shape, "[B, S, H, d] of k")
    where = query_positions(positions, batch, queries, k.shape[1])
    seen = np.arange(k.shape[1]) <= where.max(axis=1, keepdims=True, initial=-1)
    seen = seen[:, :, None, None]
    return attend(
        quantise("q", np.where((where >= 0)[:, :, None, None], q, ZERO)),
        quantise("k", np.where(seen, k, ZERO)),
        quantise("v", np.where(seen, v, ZERO)),
        where,
    )


def require_cached(positions: Array, lengths: Array) -> None:
    """Raise RangeError if a query of [B, T] would look at or past its sequence's length [B]."""
    beyond = positions >= lengths[:, None]
    if beyond.any():
        row = int(np.argwhere(beyond)[0][0])
        found, length = int(positions[beyond][0]), int(lengths[row])
        raise RangeError(f"position {found} of sequence {row}: expected below its length {length}; append first")
