"""A-priori error bounds of the non-linear calls, by first-order propagation; see `walsh.suite.generate.bounds`.

The rules used, with u the unit roundoff and every constant gathered into ``terms``:

    exp, silu   relative error (1 + |argument|) u: an argument that is off by one rounding moves exp by |argument| u
    softmax     relative error (1 + 2 max|score error|): one share for the numerator, one for the sum
    cos, sin    absolute error (1 + angle) u, for angles formed in working precision
    root        halves the relative error of its argument, which is a sum of squares and so has no cancellation
"""

from __future__ import annotations

import math

import numpy as np

from walsh import reference
from walsh.suite.generate.bounds import LINEAR, Bounds, Inputs, Params, Real, absolute


def _ternary(inputs: Inputs, _: Params) -> Bounds:
    """gamma: a mean of absolute values."""
    w = absolute(inputs["w"])
    return {"gamma": (np.asarray(w.mean() + 1e-8), w.size + 4)}


def _ternary_ste_backward(inputs: Inputs, _: Params) -> Bounds:
    """A copy or a zero: no rounding at all, only the sign of the zero is free."""
    return {"dw": (np.zeros(inputs["dq"].shape), 0)}


def _quantize_activations(inputs: Inputs, _: Params) -> Bounds:
    """Scale = 127 / max: exact maximum, one constant, one division."""
    return {"scale": (127.0 / np.maximum(absolute(inputs["x"]).max(axis=-1, keepdims=True), 1e-5), 4)}


def _fake_quantize(inputs: Inputs, _: Params) -> Bounds:
    a, scale = reference.quantize_activations(np.asarray(inputs["x"]).astype(np.float64))
    return {"v": (absolute(a / scale), 6)}


def _rms(inputs: Inputs, params: Params) -> tuple[Real, Real]:
    x = np.asarray(inputs["x"]).astype(np.float64)
    return x, np.sqrt((x * x).mean(axis=-1, keepdims=True) + params.get("eps", 1e-6))


def _rms_norm(inputs: Inputs, params: Params) -> Bounds:
    x, rms = _rms(inputs, params)
    return {"y": (absolute(x / rms) * absolute(inputs["weight"]), x.shape[-1] + 8)}


def _rms_norm_backward(inputs: Inputs, params: Params) -> Bounds:
    """Dx is a difference of two positive shares: their sum is the magnitude."""
    x, rms = _rms(inputs, params)
    dy, width = absolute(inputs["dy"]), x.shape[-1]
    xhat, g = absolute(x / rms), dy * absolute(inputs["weight"])
    dx = (g + xhat * (g * xhat).mean(axis=-1, keepdims=True)) / rms
    tokens = x.size // width
    return {
        "dx": (dx, 3 * width + 16),
        "dweight": ((dy * xhat).reshape(-1, width).sum(axis=0), tokens + width + 8),
    }


def rope_angles(x: Real, positions: Real | None, theta: float) -> Real:
    """Angles [..., T, 1, d/2] of the pairs."""
    tokens, d = x.shape[-3], x.shape[-1]
    where = np.arange(tokens, dtype=np.float64) if positions is None else np.asarray(positions).astype(np.float64)
    angles: Real = where[..., None, None] * theta ** (-2.0 * np.arange(d // 2) / d)
    return angles


def _rope(inputs: Inputs, params: Params) -> Bounds:
    x = absolute(inputs["x"])
    angle = rope_angles(x, inputs.get("positions"), params.get("theta", 10000.0))
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).sum(axis=-1)
    return {"y": (np.repeat(pairs * (1 + angle), 2, axis=-1), 8)}


def _rope_backward(inputs: Inputs, params: Params) -> Bounds:
    return {"dx": _rope({**inputs, "x": inputs["dy"]}, params)["y"]}


def _attention_parts(inputs: Inputs) -> tuple[Real, Real, Real, Real, Real, int]:
    """|q|, |k|, |v| and the probabilities p [B, H, T, S], their relative error factor [B, H, T, 1] and its terms."""
    q, k, v = (np.asarray(inputs[name]).astype(np.float64) for name in "qkv")
    (batch, tokens, _, d), length = q.shape, k.shape[1]
    given = inputs.get("positions")
    last = np.arange(length - tokens, length) if given is None else np.asarray(given)
    visible = np.arange(length) <= np.broadcast_to(last, (batch, tokens))[..., None]
    scores = np.einsum("bthd,bshd->bhts", q, k) / math.sqrt(d)
    scores = np.where(visible[:, None], scores, -np.inf)
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    p = e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)
    size = np.einsum("bthd,bshd->bhts", np.abs(q), np.abs(k)) / math.sqrt(d)
    worst = np.where(visible[:, None], size, 0.0).max(axis=-1, keepdims=True, initial=0.0)
    # NaN that a query sees makes its result NaN, which needs no magnitude; NaN that none sees must not spread here.
    q, k, v = (np.nan_to_num(np.abs(side), posinf=0.0) for side in (q, k, v))
    return q, k, v, np.nan_to_num(p), np.nan_to_num(1 + 2 * worst, posinf=1.0), length + d + 16


def _attention(inputs: Inputs, _: Params) -> Bounds:
    v, p, factor, terms = _attention_parts(inputs)[2:]
    return {"o": (np.einsum("bhts,bshd->bthd", p * factor, v), terms)}


def _attention_backward(inputs: Inputs, _: Params) -> Bounds:
    """With dv = p^T do;  ds = p (do v^T - sum p do v^T);  dq = ds k / sqrt(d);  dk = ds^T q / sqrt(d)."""
    q, k, v, p, factor, terms = _attention_parts(inputs)
    do, root = absolute(inputs["do"]), math.sqrt(q.shape[-1])
    tokens = q.shape[1]
    share = np.einsum("bthd,bshd->bhts", do, v)
    ds = p * factor * (share + (p * factor * share).sum(axis=-1, keepdims=True))
    return {
        "dq": (np.einsum("bhts,bshd->bthd", ds, k) / root, 3 * terms),
        "dk": (np.einsum("bhts,bthd->bshd", ds, q) / root, 3 * terms + tokens),
        "dv": (np.einsum("bhts,bthd->bshd", p * factor, do), terms + tokens),
    }


def _sigmoid(x: Real) -> Real:
    e = np.exp(-np.abs(x))
    result: Real = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return result


def _swiglu(inputs: Inputs, _: Params) -> Bounds:
    gate, up = np.asarray(inputs["gate"]).astype(np.float64), absolute(inputs["up"])
    gate = np.maximum(gate, -1e4)  # silu(-inf) is 0, which is not to become infinity times 0 here
    # exp(-gate) enters 1 + exp(-gate) with the weight 1 - sigmoid(gate).
    factor = 1 + np.abs(gate) * _sigmoid(-gate)
    return {"h": (np.abs(gate) * _sigmoid(gate) * up * factor, 8)}


def _swiglu_backward(inputs: Inputs, params: Params) -> Bounds:
    gate, up, dh = np.asarray(inputs["gate"]).astype(np.float64), absolute(inputs["up"]), absolute(inputs["dh"])
    s = _sigmoid(gate)
    dgate = dh * up * (s + np.abs(gate) * s * (1 - s)) * (1 + np.abs(gate))
    return {"dgate": (dgate, 12), "dup": (_swiglu({**inputs, "up": inputs["dh"]}, params)["h"][0], 8)}


def _hash_rows(inputs: Inputs) -> tuple[list[Real], Real, list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]]:
    """|tables|, |importance| and per table the row of every token of the vocabulary."""
    count = sum(name.startswith("tables.") for name in inputs)
    tables = [absolute(inputs[f"tables.{i}"]) for i in range(count)]
    importance = absolute(inputs["importance"])
    given = inputs.get("indices")
    indices = reference.hash_indices(np.arange(len(importance)), count) if given is None else np.asarray(given)
    return tables, importance, [indices[:, i].astype(np.int64) for i in range(count)]


def _hash_embedding(inputs: Inputs, params: Params) -> Bounds:
    tables, importance, rows = _hash_rows(inputs)
    ids = np.asarray(inputs["ids"])
    parts = (importance[ids, i][..., None] * tables[i][rows[i][ids]] for i in range(len(tables)))
    return {"e": (np.asarray(sum(parts)) * abs(params.get("scale", 1.0)), len(tables) + 3)}


def _hash_embedding_backward(inputs: Inputs, params: Params) -> Bounds:
    tables, importance, rows = _hash_rows(inputs)
    ids = np.asarray(inputs["ids"]).ravel()
    de = absolute(inputs["de"]).reshape(ids.size, -1) * abs(params.get("scale", 1.0))
    bounds: Bounds = {}
    dimportance = np.zeros_like(importance)
    for i, table in enumerate(tables):
        dtable = np.zeros_like(table)
        np.add.at(dtable, rows[i][ids], de * importance[ids, i][:, None])
        np.add.at(dimportance[:, i], ids, (de * table[rows[i][ids]]).sum(axis=1))
        bounds[f"dtables.{i}"] = (dtable, ids.size + 3)
    return bounds | {"dimportance": (dimportance, ids.size * tables[0].shape[1] + 3)}


def _embedding_backward(inputs: Inputs, _: Params) -> Bounds:
    ids, table = np.asarray(inputs["ids"]).ravel(), absolute(inputs["table"])
    dtable = np.zeros_like(table)
    np.add.at(dtable, ids, absolute(inputs["de"]).reshape(ids.size, table.shape[1]))
    return {"dtable": (dtable, ids.size + 1)}


def _lm_head(inputs: Inputs, _: Params) -> Bounds:
    x, table = absolute(inputs["x"]), absolute(inputs["table"])
    return {"logits": (x @ table.T, table.shape[1] + 2)}


def _lm_head_backward(inputs: Inputs, _: Params) -> Bounds:
    x, table, dlogits = absolute(inputs["x"]), absolute(inputs["table"]), absolute(inputs["dlogits"])
    width, size = table.shape[1], table.shape[0]
    tokens = x.size // width
    dtable = dlogits.reshape(tokens, size).T @ x.reshape(tokens, width)
    return {"dx": (dlogits @ table, size + 2), "dtable": (dtable, tokens + 2)}


def _hash_lm_head(inputs: Inputs, _: Params) -> Bounds:
    tables, importance, rows = _hash_rows(inputs)
    x = absolute(inputs["x"])
    parts = (importance[:, i] * (x @ table[rows[i]].T) for i, table in enumerate(tables))
    return {"logits": (np.asarray(sum(parts)), x.shape[-1] + len(tables) + 3)}


def _hash_lm_head_backward(inputs: Inputs, _: Params) -> Bounds:
    tables, importance, rows = _hash_rows(inputs)
    width, size = tables[0].shape[1], len(importance)
    x = absolute(inputs["x"]).reshape(-1, width)
    dlogits = absolute(inputs["dlogits"]).reshape(-1, size)
    dx, dimportance, bounds = np.zeros_like(x), np.zeros_like(importance), {}
    for i, table in enumerate(tables):
        dx += dlogits @ (importance[:, i : i + 1] * table[rows[i]])
        dtable = np.zeros_like(table)
        np.add.at(dtable, rows[i], importance[:, i : i + 1] * (dlogits.T @ x))
        dimportance[:, i] = (dlogits * (x @ table[rows[i]].T)).sum(axis=0)
        bounds[f"dtables.{i}"] = (dtable, len(x) + size + 3)
    bounds["dx"] = (dx.reshape(inputs["x"].shape), size * len(tables) + len(tables) + 3)
    bounds["dimportance"] = (dimportance, len(x) + width + 3)
    return bounds


def _loss_parts(logits: Real, error: Real, targets: Real) -> tuple[Real, Real, Real]:
    """Per token that counts: |loss| error factor [N], softmax [N, V] and its relative error factor [N, 1]."""
    counted = targets.ravel() >= 0
    rows = logits.reshape(-1, logits.shape[-1])[counted]
    size = error.reshape(-1, logits.shape[-1])[counted].max(axis=-1, keepdims=True)
    e = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return 2 * size[:, 0] + 2 + math.log(rows.shape[-1]), e / e.sum(axis=-1, keepdims=True), 1 + 2 * size


def _cross_entropy(inputs: Inputs, _: Params) -> Bounds:
    logits, targets = np.asarray(inputs["logits"]).astype(np.float64), np.asarray(inputs["targets"])
    loss = _loss_parts(logits, np.abs(logits), targets)[0]
    return {"loss": (np.asarray(loss.mean() if loss.size else 0.0), logits.shape[-1] + targets.size + 16)}


def _dlogits(logits: Real, error: Real, targets: Real, dloss: float) -> Real:
    """|p - onehot| with both shares counted, over the number of counted tokens: [tokens, V]."""
    result = np.zeros((targets.size, logits.shape[-1]))
    counted = np.flatnonzero(targets.ravel() >= 0)
    if counted.size:
        _, p, factor = _loss_parts(logits, error, targets)
        share = p * factor
        share[np.arange(counted.size), targets.ravel()[counted]] += 1
        result[counted] = share * abs(dloss) / counted.size
    return result


def _cross_entropy_backward(inputs: Inputs, _: Params) -> Bounds:
    logits, targets = np.asarray(inputs["logits"]).astype(np.float64), np.asarray(inputs["targets"])
    magnitude = _dlogits(logits, np.abs(logits), targets, float(inputs["dloss"]))
    return {"dlogits": (magnitude.reshape(logits.shape), logits.shape[-1] + 16)}


def _linear_parts(inputs: Inputs) -> tuple[Real, Real, Real, Real, Real]:
    x, table = (np.asarray(inputs[name]).astype(np.float64) for name in ("x", "table"))
    flat = x.reshape(-1, table.shape[1])
    return flat, table, flat @ table.T, 2 * np.abs(flat) @ np.abs(table).T, np.asarray(inputs["targets"]).ravel()


def _linear_cross_entropy(inputs: Inputs, _: Params) -> Bounds:
    table, logits, error, targets = _linear_parts(inputs)[1:]
    loss = _loss_parts(logits, error, targets)[0]
    terms = sum(table.shape) + targets.size + 16
    return {"loss": (np.asarray(loss.mean() if loss.size else 0.0), terms)}


def _linear_cross_entropy_backward(inputs: Inputs, _: Params) -> Bounds:
    flat, table, logits, error, targets = _linear_parts(inputs)
    dlogits = _dlogits(logits, error, targets, float(inputs["dloss"]))
    terms = sum(table.shape) + 16
    return {
        "dx": ((dlogits @ np.abs(table)).reshape(inputs["x"].shape), terms + table.shape[0]),
        "dtable": (dlogits.T @ np.abs(flat), terms + targets.size),
    }


BOUNDS = LINEAR | {
    "ternary": _ternary,
    "ternary_ste.backward": _ternary_ste_backward,
    "quantize_activations": _quantize_activations,
    "fake_quantize_activations": _fake_quantize,
    "rms_norm": _rms_norm,
    "rms_norm.backward": _rms_norm_backward,
    "rope": _rope,
    "rope.backward": _rope_backward,
    "attention": _attention,
    "attention.backward": _attention_backward,
    "swiglu": _swiglu,
    "swiglu.backward": _swiglu_backward,
    "embedding.backward": _embedding_backward,
    "hash_embedding": _hash_embedding,
    "hash_embedding.backward": _hash_embedding_backward,
    "lm_head": _lm_head,
    "lm_head.backward": _lm_head_backward,
    "hash_lm_head": _hash_lm_head,
    "hash_lm_head.backward": _hash_lm_head_backward,
    "cross_entropy": _cross_entropy,
    "cross_entropy.backward": _cross_entropy_backward,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_cross_entropy.backward": _linear_cross_entropy_backward,
}
"""Bounds by call name."""
