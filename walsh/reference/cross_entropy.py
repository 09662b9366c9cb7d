"""Cross-entropy, plain and without its logits (SPEC.md, section *cross_entropy*).

    loss    = mean of log(sum_v exp(l_v)) - l_target  over targets that are not -1          logits [..., V], scalar loss
    dl_v    = dloss (softmax(l)_v - [v = target]) / count                                       0 where the target is -1
    linear: l = x table^T,  dx = dl table,  dtable = sum over tokens of dl^T x                  x [..., C], table [V, C]

The linear form goes through the tokens in chunks and computes each chunk's logits again in the backward: neither holds
more than [chunk, V]. Source: Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models* (arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Iterator

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
    require_axes,
    require_integer,
    require_shape,
    rows,
)


def _check(name: str, x: Float, targets: ArrayLike, vocabulary: int) -> tuple[Float, Int]:
    """Validate; the tokens as [m, features] and their targets [m]."""
    targets = as_integer("targets", targets)
    require_shape("targets", targets, x.shape[:-1], f"the leading axes of {name}")
    targets = as_indices("targets", targets, -1, vocabulary, "targets are ids, or -1 for a token that does not count")
    m = rows(x.shape[:-1])
    return x.reshape(m, x.shape[-1]), targets.reshape(m)


def _losses(logits: Float, targets: Int) -> Float:
    """``log(sum(exp(l))) - l_target`` of each token: logits [m, V], targets [m] in 0 .. V-1."""
    if len(logits) == 0:
        return np.zeros(0)
    largest = logits.max(axis=-1)
    logsumexp = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=-1))
    return np.asarray(logsumexp - logits[np.arange(len(targets)), targets])


def _gradient(logits: Float, targets: Int) -> Float:
    """``softmax(l) - [v = target]`` of each token."""
    if len(logits) == 0:
        return np.zeros_like(logits)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    gradient = np.asarray(e / e.sum(axis=-1, keepdims=True))
    gradient[np.arange(len(targets)), targets] -= 1
    return gradient


def _logits(logits: ArrayLike, targets: ArrayLike) -> tuple[Float, Int]:
    logits = as_float("logits", logits)
    require_axes("logits", logits, 1, "[..., V]")
    return _check("logits", logits, targets, logits.shape[-1])


@ieee
def cross_entropy(logits: ArrayLike, targets: ArrayLike) -> np.float64:
    """Mean loss over the tokens that count.

    Args:
        logits: float [..., V].
        targets: integer [...], -1 for a token that does not count.

    Returns:
        loss, a scalar; 0 if no token counts.

    Raises:
        RangeError: a target below -1 or from V up. ShapeError, DTypeError: arguments that do not fit.
    """
    flat, ids = _logits(logits, targets)
    counted = ids >= 0
    return np.float64(_losses(flat[counted], ids[counted]).sum() / max(int(counted.sum()), 1))


@ieee
def cross_entropy_backward(logits: ArrayLike, targets: ArrayLike, dloss: ArrayLike) -> tuple[Float]:
    """From dloss, a float scalar, to (dlogits [..., V],).

    Raises:
        As :func:`cross_entropy`; ShapeError: dloss is not a scalar.
    """
    flat, ids = _logits(logits, targets)
    dloss = as_upstream("dloss", dloss, ())
    counted = ids >= 0
    dlogits = np.zeros_like(flat)
    dlogits[counted] = _gradient(flat[counted], ids[counted]) * (dloss / max(int(counted.sum()), 1))
    return (dlogits.reshape(np.shape(logits)),)


def _linear(x: ArrayLike, table: ArrayLike, targets: ArrayLike, chunk_size: int) -> tuple[Float, Float, Int]:
    require_integer("chunk_size", chunk_size, 1)
    x, table = as_float("x", x), as_float("table", table)
    require_shape("table", table, (None, None), "[V, C]")
    require_axes("x", x, 1, "[..., C]")
    if x.shape[-1] != table.shape[1]:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., {table.shape[1]}], C features as in the table")
    flat, ids = _check("x", x, targets, len(table))
    return flat, table, ids


def _chunks(targets: Int, chunk_size: int) -> Iterator[Int]:
    """Indices of the tokens that count, so many at a time."""
    counted = np.flatnonzero(targets >= 0)
    for start in range(0, len(counted), chunk_size):
        yield counted[start : start + chunk_size]


@ieee
def linear_cross_entropy(x: ArrayLike, table: ArrayLike, targets: ArrayLike, chunk_size: int = 1024) -> np.float64:
    """``cross_entropy(lm_head(x, table), targets)``, holding at most [chunk_size, V] logits.

    Args:
        x: float [..., C].
        table: float [V, C].
        targets: integer [...], -1 for a token that does not count.
        chunk_size: tokens at a time, at least 1.

    Returns:
        loss, a scalar; 0 if no token counts.

    Raises:
        As :func:`cross_entropy`; ParameterError: chunk_size is not an integer of at least 1.
    """
    flat, weights, ids = _linear(x, table, targets, chunk_size)
    total = sum(_losses(flat[chunk] @ weights.T, ids[chunk]).sum() for chunk in _chunks(ids, chunk_size))
    return np.float64(total / max(int((ids >= 0).sum()), 1))


@ieee
def linear_cross_entropy_backward(
    x: ArrayLike, table: ArrayLike, targets: ArrayLike, dloss: ArrayLike, chunk_size: int = 1024
) -> tuple[Float, Float]:
    """Gradients (dx [..., C], dtable [V, C]) from dloss, a float scalar.

    Raises:
        As :func:`linear_cross_entropy`; ShapeError: dloss is not a scalar.
    """
    flat, weights, ids = _linear(x, table, targets, chunk_size)
    factor = as_upstream("dloss", dloss, ()) / max(int((ids >= 0).sum()), 1)
    dx, dtable = np.zeros_like(flat), np.zeros_like(weights)
    for chunk in _chunks(ids, chunk_size):
        dlogits = _gradient(flat[chunk] @ weights.T, ids[chunk]) * factor
        dx[chunk] = dlogits @ weights
        dtable += dlogits.T @ flat[chunk]
    return dx.reshape(np.shape(x)), dtable
