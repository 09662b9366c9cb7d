# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Kernels of attention: one pass over the keys with a running maximum, and its gradient.

    o_t = sum_{s <= positions[t]} softmax_s(scale q_t . k_s) v_s

after Dao, *FlashAttention-2* (arXiv 2307.08691): scores are never stored; the backward forms them again from the
stored log-sum of each query. Queries of one sequence and head share a program; a long list of keys can be split over
programs (decoding), whose parts are joined in a fixed order. Keys and values are float, or int8 codes with one factor
per token and head.
"""

import triton
import triton.language as tl

from walsh.kernels.triton._device import exponential, narrow, widen
from walsh.kernels.triton._gemm import multiply, operand


@triton.jit
def load_tokens(
    x, worth, token, feature, x_token, w_token, tokens, features, QUANTIZED: tl.constexpr, ACC: tl.constexpr
):
    """The tile [tokens, features] of one sequence and head; codes times their worth if QUANTIZED."""
    inside = (token[:, None] < tokens) & (feature[None, :] < features)
    value = widen(tl.load(x + token.to(tl.int64)[:, None] * x_token + feature[None, :], mask=inside, other=0))
    if QUANTIZED:
        unit = tl.load(worth + token.to(tl.int64) * w_token, mask=token < tokens, other=0.0)
        value = value.to(ACC) * unit[:, None].to(ACC)
    return value


@triton.jit
def nonfinite_part(p, visible, v):
    """What NaN and infinity among the values add: only to queries that see them, where 0 * NaN would reach all."""
    # Counts of zeros and ones: exact in float16, which tensor cores multiply.
    bad = operand(v != v, tl.float16)
    high = operand(v == float("inf"), tl.float16)
    low = operand(v == float("-inf"), tl.float16)
    lost = tl.dot(operand(visible, tl.float16), bad)
    lost = tl.dot(operand(visible & (p == 0.0), tl.float16), high + low, lost)
    weight = operand(p > 0.0, tl.float16)
    result = tl.where(tl.dot(weight, high) > 0.0, float("inf"), 0.0)
    result += tl.where(tl.dot(weight, low) > 0.0, float("-inf"), 0.0)
    return tl.where(lost > 0.0, float("nan"), result)


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    k_worth,
    v_worth,
    positions,
    o,
    lse,
    parts,
    tokens,
    keys,
    heads,
    features,
    scale,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    w_batch,
    w_token,
    w_head,
    p_batch,
    share,
    SPLIT: tl.constexpr,
    QUANTIZED: tl.constexpr,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    BT: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """o [B, T, H, d] and the log-sums lse [B, H, T] of every query.

    If SPLIT, o is parts [split, B, T, H, d], not yet divided, lse the sums [split, B, H, T] and ``parts`` the maxima.
    """
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    feature = tl.arange(0, BD)
    position = tl.load(positions + batch * p_batch + token, mask=token < tokens, other=-1).to(tl.int32)
    query = load_tokens(
        q + batch * q_batch + head * q_head, None, token, feature, q_token, 0, tokens, features, False, ACC
    )
    first = tl.program_id(2) * share
    last = tl.minimum(tl.minimum(first + share, keys), tl.max(position, 0) + 1)
    largest = tl.full((BT,), float("-inf"), ACC)
    total = tl.zeros((BT,), ACC)
    acc = tl.zeros((BT, BD), ACC)
    for start in range(first, last, BS):
        slot = start + tl.arange(0, BS)
        where = k + batch * k_batch + head * k_head
        worth = k_worth + batch * w_batch + head * w_head if QUANTIZED else None
        key = load_tokens(where, worth, slot, feature, k_token, w_token, last, features, QUANTIZED, ACC)
        where = v + batch * v_batch + head * v_head
        worth = v_worth + batch * w_batch + head * w_head if QUANTIZED else None
        value = load_tokens(where, worth, slot, feature, v_token, w_token, last, features, QUANTIZED, ACC)
        zero = tl.zeros((BT, BS), ACC)
        score = multiply(operand(query, DOT), tl.trans(operand(key, DOT)), zero, ACC) * scale
        visible = (slot[None, :] <= position[:, None]) & (slot[None, :] < last)
        new = tl.maximum(largest, tl.max(tl.where(visible & (score == score), score, float("-inf")), 1))
        anchor = tl.where(new == float("-inf"), 0.0, new)
        p = tl.where(visible, exponential(score - anchor[:, None]), 0.0)
        shrink = tl.where(largest == float("-inf"), 0.0, exponential(largest - anchor))
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        finite = tl.abs(value) < float("inf")
        clean = tl.where(finite, value, 0.0)
        acc = multiply(operand(p, DOT), operand(clean, DOT), acc, ACC)
        if tl.min(tl.min(finite.to(tl.int32), 1), 0) == 0:
            acc += nonfinite_part(p, visible, value).to(ACC)
        largest = new
    inside = (token[:, None] < tokens) & (feature[None, :] < features)
    batches = tl.num_programs(1) // heads
    row = (tl.program_id(2).to(tl.int64) * batches + batch) * heads + head
    seen = position >= 0
    o_token = ((tl.program_id(2).to(tl.int64) * batches + batch) * tokens + token)[:, None] * heads + head
    if SPLIT:
        tl.store(o + o_token * features + feature[None, :], acc, mask=inside)
        tl.store(lse + row * tokens + token, total, mask=token < tokens)
        tl.store(parts + row * tokens + token, largest, mask=token < tokens)
    else:
        result = tl.where(seen[:, None], acc / tl.where(seen, total, 1.0)[:, None], 0.0)
        tl.store(o + o_token * features + feature[None, :], narrow(result, o.dtype.element_ty), mask=inside)
        logs = tl.where(seen, largest + tl.log(total), float("inf"))
        tl.store(lse + row * tokens + token, logs, mask=token < tokens)


@triton.jit
def join_kernel(
    parts, sums, maxima, positions, o, lse, batches, tokens, heads, features, splits, p_batch, BD: tl.constexpr
):
    """Join the parts of one query and head, first split first."""
    index = tl.program_id(0).to(tl.int64)
    head, token, batch = index % heads, index // heads % tokens, index // heads // tokens
    feature = tl.arange(0, BD)
    rows = index * 0 + batches * heads * tokens
    row = (batch * heads + head) * tokens + token
    kind = sums.dtype.element_ty
    largest = tl.full((), float("-inf"), kind)
    for split in range(splits):
        largest = tl.maximum(largest, tl.load(maxima + split * rows + row))
    anchor = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.zeros((), kind)
    acc = tl.zeros((BD,), kind)
    for split in range(splits):
        part = split * rows
        most = tl.load(maxima + part + row)
        shrink = tl.where(most == float("-inf"), 0.0, exponential(most - anchor))
        total += tl.load(sums + part + row) * shrink
        value = tl.load(parts + (part + index) * features + feature, mask=feature < features, other=0.0)
        acc += tl.where(most == float("-inf"), value, value * shrink)
    seen = tl.load(positions + batch * p_batch + token) >= 0
    result = tl.where(seen, acc / tl.where(seen, total, 1.0), 0.0)
    tl.store(o + index * features + feature, narrow(result, o.dtype.element_ty), mask=feature < features)
    tl.store(lse + row, tl.where(seen, largest + tl.log(total), float("inf")))


@triton.jit
def probabilities(query, key, value, upstream, logs, visible, scale, DOT: tl.constexpr, ACC: tl.constexpr):
    """p and dp [queries, keys] of one tile."""
    zero = tl.zeros((query.shape[0], key.shape[0]), ACC)
    score = multiply(operand(query, DOT), tl.trans(operand(key, DOT)), zero, ACC) * scale
    p = tl.where(visible, exponential(score - logs[:, None]), 0.0)
    return p, multiply(operand(upstream, DOT), tl.trans(operand(value, DOT)), zero, ACC)


@triton.jit
def attention_dq_kernel(
    q,
    k,
    v,
    do,
    positions,
    lse,
    delta,
    dq,
    tokens,
    keys,
    heads,
    features,
    scale,
    p_batch,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    BT: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """dq of BT queries of one sequence and head, and delta [B, H, T] = sum over keys of p dp; tensors contiguous.

    delta is also o . do, but o is stored rounded: at 16 bits that would cost the gradients of q and k three digits.
    """
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    feature = tl.arange(0, BD)
    stride = heads * features
    position = tl.load(positions + batch * p_batch + token, mask=token < tokens, other=-1).to(tl.int32)
    row = (batch * heads + head) * tokens + token
    logs = tl.load(lse + row, mask=token < tokens, other=float("inf"))
    base = batch * tokens * stride + head * features
    query = load_tokens(q + base, None, token, feature, stride, 0, tokens, features, False, ACC)
    upstream = load_tokens(do + base, None, token, feature, stride, 0, tokens, features, False, ACC)
    key_base = batch * keys * stride + head * features
    slope = tl.zeros((BT,), ACC)
    for start in range(0, tl.max(position, 0) + 1, BS):
        slot = start + tl.arange(0, BS)
        key = load_tokens(k + key_base, None, slot, feature, stride, 0, keys, features, False, ACC)
        value = load_tokens(v + key_base, None, slot, feature, stride, 0, keys, features, False, ACC)
        visible = slot[None, :] <= position[:, None]
        p, dp = probabilities(query, key, value, upstream, logs, visible, scale, DOT, ACC)
        slope += tl.sum(p * dp, 1)
    tl.store(delta + row, slope, mask=token < tokens)
    acc = tl.zeros((BT, BD), ACC)
    for start in range(0, tl.max(position, 0) + 1, BS):
        slot = start + tl.arange(0, BS)
        key = load_tokens(k + key_base, None, slot, feature, stride, 0, keys, features, False, ACC)
        value = load_tokens(v + key_base, None, slot, feature, stride, 0, keys, features, False, ACC)
        visible = slot[None, :] <= position[:, None]
        p, dp = probabilities(query, key, value, upstream, logs, visible, scale, DOT, ACC)
        ds = p * (dp - slope[:, None]) * scale
        acc = multiply(operand(ds, DOT), operand(key, DOT), acc, ACC)
    inside = (token[:, None] < tokens) & (feature[None, :] < features)
    where = dq + base + token.to(tl.int64)[:, None] * stride + feature[None, :]
    tl.store(where, narrow(acc, dq.dtype.element_ty), mask=inside)


@triton.jit
def attention_dkv_kernel(
    q,
    k,
    v,
    do,
    positions,
    lse,
    delta,
    dk,
    dv,
    tokens,
    keys,
    heads,
    features,
    scale,
    p_batch,
    DOT: tl.constexpr,
    ACC: tl.constexpr,
    BT: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """dk and dv of BS keys of one sequence and head, over all queries; all tensors contiguous [B, ., H, d]."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    slot = tl.program_id(0) * BS + tl.arange(0, BS)
    feature = tl.arange(0, BD)
    stride = heads * features
    key_base = batch * keys * stride + head * features
    key = load_tokens(k + key_base, None, slot, feature, stride, 0, keys, features, False, ACC)
    value = load_tokens(v + key_base, None, slot, feature, stride, 0, keys, features, False, ACC)
    base = batch * tokens * stride + head * features
    dkey = tl.zeros((BS, BD), ACC)
    dvalue = tl.zeros((BS, BD), ACC)
    for start in range(0, tokens, BT):
        token = start + tl.arange(0, BT)
        position = tl.load(positions + batch * p_batch + token, mask=token < tokens, other=-1).to(tl.int32)
        row = (batch * heads + head) * tokens + token
        logs = tl.load(lse + row, mask=token < tokens, other=float("inf"))
        slope = tl.load(delta + row, mask=token < tokens, other=0.0)
        query = load_tokens(q + base, None, token, feature, stride, 0, tokens, features, False, ACC)
        upstream = load_tokens(do + base, None, token, feature, stride, 0, tokens, features, False, ACC)
        visible = slot[None, :] <= position[:, None]
        p, dp = probabilities(query, key, value, upstream, logs, visible, scale, DOT, ACC)
        ds = p * (dp - slope[:, None]) * scale
        dvalue = multiply(tl.trans(operand(p, DOT)), operand(upstream, DOT), dvalue, ACC)
        dkey = multiply(tl.trans(operand(ds, DOT)), operand(query, DOT), dkey, ACC)
    inside = (slot[:, None] < keys) & (feature[None, :] < features)
    where = key_base + slot.to(tl.int64)[:, None] * stride + feature[None, :]
    tl.store(dk + where, narrow(dkey, dk.dtype.element_ty), mask=inside)
    tl.store(dv + where, narrow(dvalue, dv.dtype.element_ty), mask=inside)
