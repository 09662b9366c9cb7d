"""The whole model, its loss and its gradients (SPEC.md, section *forward*).

    x   = embedding(ids)                                                                    ids [B, T], x [B, T, C]
    x   = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)            per block
    x   = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))                                                              logits [B, T, V]

The backward keeps the input of each block and computes the block again: every piece of it is the ``NAME_backward`` of a
piece of the forward, in reverse order. Source: the Llama block (Touvron et al., arXiv 2302.13971) with hyper-complex
ternary linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from walsh.errors import CapacityError, ShapeError, WalshError
from walsh.reference._check import Array, Float, Int, as_array, as_integer, ieee, require_shape
from walsh.reference._model import Model
from walsh.reference.attention import attention, attention_backward
from walsh.reference.config import check_weights, complete_config, weight_shapes
from walsh.reference.cross_entropy import cross_entropy, cross_entropy_backward
from walsh.reference.kv_cache import KVCache
from walsh.reference.rope import rope, rope_backward
from walsh.reference.swiglu import swiglu, swiglu_backward

__all__ = ["complete_config", "forward", "forward_backward", "weight_shapes"]


def _heads(model: Model, block: str, h: Float, positions: Int) -> tuple[Float, Float, Float]:
    """q, k (rotated) and v [B, T, H, d] of the normed x."""
    shape = (*h.shape[:2], model.config["n_head"], model.config["n_embd"] // model.config["n_head"])
    q, k, v = (model.linear(f"{block}.attention.{name}", h).reshape(shape) for name in ("wq", "wk", "wv"))
    return rope(q, positions), rope(k, positions), v


def _attention_half(model: Model, block: str, x: Float, positions: Int, cache: KVCache | None) -> Float:
    """``x + wo(mix(attention(...)))``."""
    q, k, v = _heads(model, block, model.norm(f"{block}.attention_norm", x), positions)
    o = attention(q, k, v) if cache is None else cache.attend(q, cache.append(k, v))
    return x + model.linear(f"{block}.attention.wo", model.mix(block, o).reshape(x.shape))


def _attention_half_backward(model: Model, block: str, x: Float, positions: Int, dy: Float) -> Float:
    h = model.norm(f"{block}.attention_norm", x)
    q, k, v = _heads(model, block, h, positions)
    o = attention(q, k, v)
    dmixed = model.linear_backward(f"{block}.attention.wo", model.mix(block, o).reshape(x.shape), dy)
    do = model.mix_backward(block, o, dmixed.reshape(o.shape))
    dq, dk, dv = attention_backward(q, k, v, None, do)
    # The rotation is linear: its backward looks at the shape of its input only.
    (dq,), (dk,) = rope_backward(q, positions, dq), rope_backward(k, positions, dk)
    dh = np.zeros_like(h)
    for name, gradient in (("wq", dq), ("wk", dk), ("wv", dv)):
        dh += model.linear_backward(f"{block}.attention.{name}", h, gradient.reshape(x.shape))
    return dy + model.norm_backward(f"{block}.attention_norm", x, dh)


def _ffn_half(model: Model, block: str, x: Float) -> Float:
    """``x + down(swiglu(gate h, up h))``."""
    h = model.norm(f"{block}.ffn_norm", x)
    hidden = swiglu(model.linear(f"{block}.ffn.gate", h), model.linear(f"{block}.ffn.up", h))
    return x + model.linear(f"{block}.ffn.down", hidden)


def _ffn_half_backward(model: Model, block: str, x: Float, dy: Float) -> Float:
    h = model.norm(f"{block}.ffn_norm", x)
    gate, up = model.linear(f"{block}.ffn.gate", h), model.linear(f"{block}.ffn.up", h)
    dhidden = model.linear_backward(f"{block}.ffn.down", swiglu(gate, up), dy)
    dgate, dup = swiglu_backward(gate, up, dhidden)
    dh = model.linear_backward(f"{block}.ffn.gate", h, dgate) + model.linear_backward(f"{block}.ffn.up", h, dup)
    return dy + model.norm_backward(f"{block}.ffn_norm", x, dh)


def _model(ids: ArrayLike, weights: Mapping[str, ArrayLike], config: Mapping[str, Any]) -> tuple[Model, Array]:
    """Validate; the model and ids [B, T]."""
    config = complete_config(config)
    arrays = {name: as_array(f"weight {name!r}", weight) for name, weight in weights.items()}
    check_weights(arrays, config)
    tokens = as_integer("ids", ids)
    require_shape("ids", tokens, (None, None), "[B, T]")
    return Model(arrays, config), tokens


def _start(cache: Sequence[KVCache] | None, ids: Array, config: Mapping[str, Any]) -> Int:
    """Tokens that each sequence holds already, int64 [B], if T more fit everywhere."""
    batch, t = ids.shape
    caches = [] if cache is None else list(cache)
    lengths = caches[0].lengths if caches else np.zeros(batch, dtype=np.int64)
    if cache is not None and len(caches) != config["n_layer"]:
        raise ShapeError(f"cache has {len(caches)} layers: expected one KVCache for each of {config['n_layer']}")
    if any(layer.lengths.shape != (batch,) or (layer.lengths != lengths).any() for layer in caches):
        raise ShapeError(f"cache is not of {batch} sequences, equally long in every layer: use it for one batch only")
    total = int(lengths.max(initial=0)) + t
    room = min([config["block_size"], *(layer.capacity for layer in caches)])
    if total > room:
        raise CapacityError(f"{total} tokens, cached ones counted in, where {room} fit: shorten the sequence")
    return lengths


@ieee
def forward(
    ids: ArrayLike,
    weights: Mapping[str, ArrayLike],
    config: Mapping[str, Any],
    cache: Sequence[KVCache] | None = None,
    probes: MutableMapping[str, Any] | None = None,
) -> Float:
    """Logits of every token.

    Args:
        ids: integer [B, T] in 0 .. V-1.
        weights: tensors by name, of the shapes of :func:`weight_shapes`; ``embedding.indices`` besides, if wanted.
        config: as in :func:`complete_config`.
        cache: one KVCache per layer with the tokens before these, which are appended; None if there are none.
        probes: receives ``x.0`` after the embedding and ``x.{l+1}`` after block l, float64 [B, T, C].

    Returns:
        logits float64 [B, T, V].

    Raises:
        ParameterError: a configuration that is wrong; a weight missing or superfluous. ShapeError, DTypeError: a
        weight, ids or cache that does not fit. RangeError: an id outside 0 .. V-1. CapacityError: more tokens than
        ``block_size`` or than the cache holds. The cache is then unchanged.
    """
    model, tokens = _model(ids, weights, config)
    start = _start(cache, tokens, model.config)
    positions = start[:, None] + np.arange(tokens.shape[1])
    probes = {} if probes is None else probes
    try:
        x = probes["x.0"] = model.embed(tokens)
        for layer in range(model.config["n_layer"]):
            block = f"blocks.{layer}"
            x = _attention_half(model, block, x, positions, None if cache is None else cache[layer])
            x = probes[f"x.{layer + 1}"] = _ffn_half(model, block, x)
    except WalshError:
        # No layer may keep tokens that the others have not seen.
        for held in cache or ():
            held.truncate(start)
        raise
    return model.head(model.norm("norm", x))


@ieee
def forward_backward(
    ids: ArrayLike, weights: Mapping[str, ArrayLike], targets: ArrayLike, config: Mapping[str, Any]
) -> tuple[np.float64, dict[str, Float]]:
    """The loss ``cross_entropy(forward(ids), targets)`` and its gradient for every floating weight.

    Args:
        ids, weights, config: as in :func:`forward`.
        targets: integer [B, T], -1 for a token that does not count.

    Returns:
        loss, a scalar, and dweights by name, float64 of the shapes of the weights.

    Raises:
        As :func:`forward`; RangeError: a target below -1 or from V up.
    """
    model, tokens = _model(ids, weights, config)
    inputs: dict[str, Float] = {}
    logits = forward(tokens, model.weights, model.config, probes=inputs)
    loss = cross_entropy(logits, targets)
    (dlogits,) = cross_entropy_backward(logits, targets, np.float64(1.0))
    layers = model.config["n_layer"]
    last = inputs[f"x.{layers}"]
    dx = model.norm_backward("norm", last, model.head_backward(model.norm("norm", last), dlogits))
    positions = np.arange(tokens.shape[1])
    for layer in reversed(range(layers)):
        block, x = f"blocks.{layer}", inputs[f"x.{layer}"]
        middle = _attention_half(model, block, x, positions, None)
        dx = _ffn_half_backward(model, block, middle, dx)
        dx = _attention_half_backward(model, block, x, positions, dx)
    model.embed_backward(tokens, dx)
    return loss, model.gradients
