"""Causal attention over new or cached keys (SPEC.md, section *attention*).

    o_t = sum_{s <= positions[t]} softmax_s(q_t . k_s / sqrt(d)) v_s       q [B, T, H, d], k, v [B, S, H, d]

Vaswani et al., *Attention Is All You Need* (arXiv 1706.03762). Products go to PyTorch's fused kernels, which never hold
[T, S] scores in the causal case (Dao et al., *FlashAttention*, arXiv 2205.14135). On CPU 16-bit inputs are computed in
float32 throughout; on CUDA the fused kernels keep the softmax in float32 and multiply 16-bit probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from walsh.errors import ShapeError
from walsh.kernels.torch._check import (
    accumulate_dtype,
    all_finite,
    require_float,
    require_integer,
    require_range,
    require_shape,
    values_can_be_read,
)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_float(name, x)
    require_shape("q", q, (None, None, None, None), "[B, T, H, d]")
    batch, _, heads, d = q.shape
    require_shape("k", k, (batch, None, heads, d), "[B, S, H, d]")
    require_shape("v", v, (batch, k.shape[1], heads, d), "[B, S, H, d], like k")


def _positions(q: Tensor, keys: int, positions: Tensor | None) -> tuple[Tensor, tuple[int, int] | None]:
    """The last key that each query sees, [B, T] or [1, T]; the least and the greatest of them, where they are known."""
    batch, tokens = q.shape[:2]
    if positions is None:
        positions = torch.arange(keys - tokens, keys, device=q.device)
    require_integer("positions", positions)
    if positions.shape not in ((tokens,), (batch, tokens)):
        raise ShapeError(
            f"positions have shape {list(positions.shape)}: expected [{tokens}] or [{batch}, {tokens}], T or B, T of q"
        )
    extent = require_range("positions", positions, -1, keys, "a query sees keys 0 .. position, or nothing at -1")
    return positions if positions.ndim == 2 else positions[None], extent


def attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None = None) -> Tensor:
    """Softmax attention of each query over the keys up to its position.

    Args:
        q: float [B, T, H, d].
        k, v: float [B, S, H, d].
        positions: integer [T] or [B, T] from -1 to S - 1; S - T + t if None. At -1 a query sees nothing.

    Returns:
        o [B, T, H, d] in the dtype of q; zeros, and zero gradients, where the position is -1.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. RangeError: a position below -1 or from S up.
    """
    _check(q, k, v)
    tokens, keys = q.shape[1], k.shape[1]
    causal = positions is None and tokens == keys
    last, extent = _positions(q, keys, positions)
    if q.numel() == 0 or keys == 0:
        # Nothing is seen, but the result must hang on its inputs for autograd.
        nothing = torch.ones((), dtype=torch.bool, device=q.device)
        return q.masked_fill(nothing, 0) + (k.sum() + v.sum()).masked_fill(nothing, 0)
    work = accumulate_dtype(q, k, v)
    if q.device.type != "cpu" and q.dtype == k.dtype == v.dtype:
        work = q.dtype
    least, most = extent or (-1, keys - 1)
    # Slots past the last key that any query sees stay out of everything: what they hold is meaningless.
    end = max(most + 1, 1)
    k, v = k[:, :end], v[:, :end]
    q_, k_, v_ = (x.to(work).transpose(1, 2) for x in (q, k, v))
    if least == most >= 0:
        o = scaled_dot_product_attention(q_, k_, v_)
    else:
        o = _causal(q_, k_, v_) if causal else _masked(q_, k_, v_, last)
    return o.transpose(1, 2).to(q.dtype)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Query t sees keys 0 .. t; q, k, v [B, H, T, d]."""
    if values_can_be_read(q) and not (all_finite(k) and all_finite(v)):
        return _each_query(q, k, v, torch.arange(q.shape[2])[None])
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _masked(q: Tensor, k: Tensor, v: Tensor, last: Tensor) -> Tensor:
    """Query t sees keys 0 .. last[b, t]; q, k, v [B, H, ., d], last [B or 1, T]."""
    slots = torch.arange(k.shape[2], device=q.device)
    readable = values_can_be_read(q)
    if not readable or not (all_finite(k) and all_finite(v)):
        # Slots that no query sees are cleared: a stale NaN would survive its probability of 0.
        stale = (slots > last.amax(dim=1, keepdim=True))[:, None, :, None]
        k, v = k.masked_fill(stale, 0), v.masked_fill(stale, 0)
        if readable and not (all_finite(k) and all_finite(v)):
            return _each_query(q, k, v, last)
    # A row of the softmax needs one key: a query at -1 looks at key 0, and its result is dropped.
    seen = slots <= last.clamp(min=0)[:, :, None]
    o = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
    return o.masked_fill((last < 0)[:, None, :, None], 0)


def _each_query(q: Tensor, k: Tensor, v: Tensor, last: Tensor) -> Tensor:
    """One query at a time over the keys it sees: slow, and the only way that NaN in others cannot reach it."""
    ends = last.expand(q.shape[0], -1).tolist()
    sequences = []
    for b, row in enumerate(ends):
        outputs = [
            scaled_dot_product_attention(q[b, :, t : t + 1], k[b, :, : end + 1], v[b, :, : end + 1])
            if end >= 0
            else torch.zeros_like(q[b, :, t : t + 1])
            for t, end in enumerate(row)
        ]
        sequences.append(torch.cat(outputs, dim=1))
    return torch.stack(sequences)
