# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Causal attention over new or cached keys (SPEC.md, section *attention*).

    o_t = sum_{s <= positions[t]} softmax_s(q_t . k_s / sqrt(d)) v_s       q [B, T, H, d], k, v [B, S, H, d]

Batch and heads are in the grid and every query has its own last key, so prefill, padding and decoding over a cache of
sequences of different lengths are the same launch. Where one query per sequence would leave a GPU idle, the keys are
split over programs. Gradients take two launches.
"""

import math
from typing import Any

import torch
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.triton._attention import (
    attention_dkv_kernel,
    attention_dq_kernel,
    attention_kernel,
    join_kernel,
)
from walsh.kernels.triton._check import (
    accumulate_dtype,
    require_float,
    require_integer,
    require_range,
    require_shape,
)
from walsh.kernels.triton._config import Tile, configured, shape_of
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, processors, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.gemm import _TRITON_TYPES, accumulator, dot_dtype


def _unit_features(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def _tile(op: str, q: Tensor, keys: int, dot: torch.dtype) -> Tile:
    """Queries and keys per tile and warps: measured on this device, or by rule."""
    tokens, features = q.shape[1], q.shape[3]
    if interpreting():
        # Few keys, so that short sequences too take several tiles and their sums are rescaled.
        return Tile(max(1, min(128, next_power_of_two(tokens))), max(1, min(16, next_power_of_two(keys))))
    wide = dot in (torch.float32, torch.float64)
    side = 16 if wide else 32
    if op == "attention":
        rule = Tile(max(16, min(side, next_power_of_two(tokens))), 32)
    else:
        # Two tiles of scores and up to four of features are live at once.
        rule = Tile(side, side, 8 if wide else 4)
    return configured(shape_of(op, (tokens, keys, features), 1, dot), q.device, rule)


def _splits(batch: int, tokens: int, heads: int, keys: int, tile: Tile, device: torch.device) -> int:
    """Programs that share the keys of one query: only while decoding, and only to fill the device."""
    if tokens > tile.queries or tokens > 16:
        return 1
    if interpreting():
        return 2 if keys >= 48 else 1
    return max(1, min(cdiv(2 * processors(device), max(1, batch * heads)), cdiv(keys, 2 * tile.keys), 32))


def _fake(q, k, v, k_worth, v_worth, positions):
    batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, tokens), dtype=accumulate_dtype(q))


@operation("attention", _fake)
def attend(
    q: Tensor, k: Tensor, v: Tensor, k_worth: Tensor | None, v_worth: Tensor | None, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """O and the log-sum of every query, for checked arguments; int8 k and v with factors [B, S, H, 1]."""
    require_device(q, k, v, k_worth, v_worth, positions)
    o, lse = _fake(q, k, v, k_worth, v_worth, positions)
    batch, tokens, heads, features = q.shape
    keys = k.shape[1]
    q, k, v, positions = _unit_features(q), _unit_features(k), _unit_features(v), positions.contiguous()
    dot = dot_dtype(q, k, v)
    tile = _tile("attention", q, keys, dot)
    splits = _splits(batch, tokens, heads, keys, tile, q.device)
    share = cdiv(cdiv(keys, splits), tile.keys) * tile.keys
    maxima = None
    target, sums = o, lse
    if splits > 1:
        target = q.new_empty((splits, *q.shape), dtype=lse.dtype)
        sums, maxima = lse.new_empty((splits, *lse.shape)), lse.new_empty((splits, *lse.shape))
    p_batch = 0 if positions.ndim == 1 else tokens
    size = max(16, next_power_of_two(features))
    launch(
        attention_kernel,
        (cdiv(tokens, tile.queries), batch * heads, splits),
        q,
        k,
        v,
        k_worth,
        v_worth,
        positions,
        target,
        sums,
        maxima,
        tokens,
        keys,
        heads,
        features,
        1 / math.sqrt(features),
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *((0, 0, 0) if k_worth is None else k_worth.stride()[:3]),
        p_batch,
        share,
        warps=tile.warps,
        stages=tile.stages,
        SPLIT=splits > 1,
        QUANTIZED=k_worth is not None,
        DOT=_TRITON_TYPES[dot],
        ACC=_TRITON_TYPES[accumulator(dot)],
        BT=tile.queries,
        BS=tile.keys,
        BD=size,
    )
    if splits > 1:
        sizes = (batch, tokens, heads, features, splits, p_batch)
        launch(join_kernel, (batch * tokens * heads,), target, sums, maxima, positions, o, lse, *sizes, BD=size)
    return o, lse


def _fake_backward(do, q, k, v, positions, lse):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@operation("attention_backward", _fake_backward)
def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _fake_backward(do, q, k, v, positions, lse)
    do, q, k, v, positions = (x.contiguous() for x in (do, q, k, v, positions))
    batch, tokens, heads, features = q.shape
    keys = k.shape[1]
    size = max(16, next_power_of_two(features))
    delta = torch.empty_like(lse)
    dot = dot_dtype(q, k, v)
    scalars = (tokens, keys, heads, features, 1 / math.sqrt(features), 0 if positions.ndim == 1 else tokens)
    types: dict[str, Any] = {"DOT": _TRITON_TYPES[dot], "ACC": _TRITON_TYPES[accumulator(dot)], "BD": size}
    shared = (q, k, v, do, positions, lse, delta)
    tile = _tile("attention_dq", q, keys, dot)
    chosen: dict[str, Any] = {"warps": tile.warps, "stages": tile.stages, "BT": tile.queries, "BS": tile.keys}
    launch(attention_dq_kernel, (cdiv(tokens, tile.queries), batch * heads), *shared, dq, *scalars, **types, **chosen)
    tile = _tile("attention_dkv", q, keys, dot)
    chosen = {"warps": tile.warps, "stages": tile.stages, "BT": tile.queries, "BS": tile.keys}
    launch(attention_dkv_kernel, (cdiv(keys, tile.keys), batch * heads), *shared, dk, dv, *scalars, **types, **chosen)
    return dq, dk, dv


def _setup(ctx, inputs, output):
    q, k, v, _, _, positions = inputs
    ctx.save_for_backward(q, k, v, positions, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, do, _):
    return (*_backward(do, *ctx.saved_tensors), None, None, None)


attend.differentiate(_differentiate, _setup)


def query_positions(q: Tensor, keys: int, positions: Tensor | None) -> Tensor:
    """Validate and return the last key that each query sees, [T] or [B, T]."""
    batch, tokens = q.shape[:2]
    if positions is None:
        positions = torch.arange(keys - tokens, keys, device=q.device)
    require_integer("positions", positions)
    if tuple(positions.shape) not in {(tokens,), (batch, tokens)}:
        raise ShapeError(
            f"positions have shape {list(positions.shape)}: expected [{tokens}] or [{batch}, {tokens}], T or B, T of q"
        )
    require_range("positions", positions, -1, keys, "a query sees keys 0 .. position, or nothing at -1")
    return positions


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
        BackendError: no machine for Triton.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_float(name, x)
    require_shape("q", q, (None, None, None, None), "[B, T, H, d]")
    batch, _, heads, d = q.shape
    require_shape("k", k, (batch, None, heads, d), "[B, S, H, d]")
    require_shape("v", v, (batch, k.shape[1], heads, d), "[B, S, H, d], like k")
    o: Tensor = attend(q, k, v, None, None, query_positions(q, k.shape[1], positions))[0]
    return o


def decode_attention(
    q: Tensor, k: Tensor, k_worth: Tensor, v: Tensor, v_worth: Tensor, positions: Tensor | None = None
) -> Tensor:
    """:func:`attention` over keys and values kept as int8 codes; no gradient.

    Args:
        q: float [B, T, H, d].
        k, v: int8 [B, S, H, d].
        k_worth, v_worth: float32 [B, S, H, 1], what one unit of a code is worth: ``1 / scale`` of the quantizer.
        positions: as in :func:`attention`.

    Returns:
        o [B, T, H, d] in the dtype of q.

    Raises:
        As :func:`attention`.
    """
    require_float("q", q)
    require_shape("q", q, (None, None, None, None), "[B, T, H, d]")
    batch, _, heads, d = q.shape
    for name, x, worth in (("k", k, k_worth), ("v", v, v_worth)):
        require_integer(name, x)
        require_shape(name, x, (batch, k.shape[1], heads, d), "[B, S, H, d]")
        require_shape(f"{name}_worth", worth, (batch, k.shape[1], heads, 1), "[B, S, H, 1]")
    last = query_positions(q, k.shape[1], positions)
    with torch.no_grad():
        o: Tensor = attend(q, k, v, k_worth.float().contiguous(), v_worth.float().contiguous(), last)[0]
    return o
