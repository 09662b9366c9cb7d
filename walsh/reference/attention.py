"""Causal attention over cached keys and values (SPEC.md, section *attention*).

    p_t = softmax_s(q_t . k_s / sqrt(d)),   o_t = sum_s p_ts v_s                         s = 0 .. positions[t]

    q [B, T, H, d], k and v [B, S, H, d], positions [T] or [B, T], o [B, T, H, d]

    dv_s = sum_t p_ts do_t;   dscore_ts = p_ts (do_t . v_s - do_t . o_t);   dq_t, dk_s from dscore / sqrt(d)

Source: Vaswani et al., *Attention Is All You Need* (arXiv 1706.03762). One query at a time, and of the keys only those
it sees: what it does not see cannot leak, not even as 0 * NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from walsh.errors import ShapeError
from walsh.reference._check import (
    Float,
    Int,
    as_float,
    as_indices,
    as_integer,
    as_upstream,
    ieee,
    require_shape,
)


def _check(q: ArrayLike, k: ArrayLike, v: ArrayLike, positions: ArrayLike | None) -> tuple[Float, Float, Float, Int]:
    """Validate; q, k, v and positions [B, T]."""
    q, k, v = as_float("q", q), as_float("k", k), as_float("v", v)
    require_shape("q", q, (None, None, None, None), "[B, T, H, d]")
    batch, t, heads, d = q.shape
    require_shape("k", k, (batch, None, heads, d), "[B, S, H, d] with the B, H, d of q")
    require_shape("v", v, k.shape, "[B, S, H, d], like k")
    s = k.shape[1]
    if positions is None:
        positions = np.arange(s - t, s)
    positions = as_integer("positions", positions)
    if positions.shape not in ((t,), (batch, t)):
        raise ShapeError(
            f"positions has shape {list(positions.shape)}: expected [T] = [{t}] or [B, T] = [{batch}, {t}]"
        )
    remedy = f"k holds S = {s} positions, and -1 means that nothing is seen"
    return q, k, v, np.broadcast_to(as_indices("positions", positions, -1, s, remedy), (batch, t))


def _softmax(q: Float, k: Float) -> Float:
    """Probabilities [H, S] of one query [H, d] over the keys [S, H, d] that it sees; S at least 1."""
    score = np.einsum("hd,shd->hs", q, k) / math.sqrt(q.shape[-1])
    e = np.exp(score - score.max(axis=-1, keepdims=True))
    p: Float = e / e.sum(axis=-1, keepdims=True)
    return p


@ieee
def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, positions: ArrayLike | None = None) -> Float:
    """Each query's average of the values it sees, weighted by softmax.

    Args:
        q: float [B, T, H, d].
        k, v: float [B, S, H, d].
        positions: integer [T] or [B, T]: query t sees keys 0 .. positions[t]; S - T + t if None. -1 sees nothing.

    Returns:
        o float64 [B, T, H, d], zeros where nothing is seen.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. RangeError: a position below -1 or from S up.
    """
    q, k, v, last = _check(q, k, v, positions)
    o = np.zeros_like(q)
    for b, t in np.argwhere(last >= 0):
        seen = slice(last[b, t] + 1)
        o[b, t] = np.einsum("hs,shd->hd", _softmax(q[b, t], k[b, seen]), v[b, seen])
    return o


@ieee
def attention_backward(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, positions: ArrayLike | None, do: ArrayLike
) -> tuple[Float, Float, Float]:
    """Gradients (dq [B, T, H, d], dk [B, S, H, d], dv [B, S, H, d]) from do float [B, T, H, d].

    Raises:
        As :func:`attention`; ShapeError: do has not the shape of o.
    """
    q, k, v, last = _check(q, k, v, positions)
    do = as_upstream("do", do, q.shape)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, t in np.argwhere(last >= 0):
        seen = slice(last[b, t] + 1)
        p = _softmax(q[b, t], k[b, seen])
        dp = np.einsum("hd,shd->hs", do[b, t], v[b, seen])
        dscore = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])
        dq[b, t] = np.einsum("hs,shd->hd", dscore, k[b, seen])
        dk[b, seen] += np.einsum("hs,hd->shd", dscore, q[b, t])
        dv[b, seen] += np.einsum("hs,hd->shd", p, do[b, t])
    return dq, dk, dv
