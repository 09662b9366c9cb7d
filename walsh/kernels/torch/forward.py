"""The whole model (SPEC.md, section *forward*).

    x   = embedding(ids)                                                                    ids [B, T], x [B, T, C]
    x   = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)            per block
    x   = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))                                                              logits [B, T, V]

The Llama block (Touvron et al., arXiv 2302.13971) with hyper-complex ternary linear layers. Everything is a function of
the weights by name, so autograd differentiates it for each of them; a cache cuts the gradient at the cached keys and
values.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh.errors import CapacityError, ShapeError, WalshError
from walsh.kernels.torch._check import accumulate_dtype, require_integer, require_shape
from walsh.kernels.torch.attention import attention
from walsh.kernels.torch.cayley_dickson import cayley_dickson_bit_linear, cayley_dickson_linear
from walsh.kernels.torch.embedding import embedding, hash_embedding, hash_lm_head, lm_head
from walsh.kernels.torch.hadamard import hadamard_bit_linear, hadamard_linear
from walsh.kernels.torch.head_mixer import head_mixer
from walsh.kernels.torch.kv_cache import KVCache
from walsh.kernels.torch.rms_norm import rms_norm
from walsh.kernels.torch.rope import rotate, rotation
from walsh.kernels.torch.swiglu import swiglu
from walsh.reference.config import check_weights as check_arrays
from walsh.reference.config import complete_config

Weights = Mapping[str, Tensor]


def check_weights(weights: Weights, config: Mapping[str, Any]) -> None:
    """Raise unless these are the weights of a configuration, as ``walsh.reference.config.check_weights`` does.

    Names and shapes alone decide, so those that were right once are remembered; the tensors are not.
    """
    outlines = tuple((name, tuple(w.shape), w.dtype == torch.uint8) for name, w in weights.items())
    # 8 and 8.0 are equal, and only one of them is right; a list is never right, and the check itself says so.
    settings = tuple((key, type(value), value) for key, value in config.items())
    known = all(isinstance(value, Hashable) for value in config.values())
    (_check_outlines if known else _check_outlines.__wrapped__)(outlines, settings)


@lru_cache(maxsize=32)
def _check_outlines(
    outlines: tuple[tuple[str, tuple[int, ...], bool], ...], settings: tuple[tuple[str, type, Any], ...]
) -> None:
    """Names, shapes and whether packed; the definition is given arrays of these shapes without memory."""
    stand_ins = {
        name: np.broadcast_to(np.zeros((), np.uint8 if packed else np.float32), shape)
        for name, shape, packed in outlines
    }
    check_arrays(stand_ins, {key: value for key, _, value in settings})


def _linear(name: str, x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    w, beta = weights[f"{name}.weight"], weights[f"{name}.beta"]
    rounding = {key: config[key] for key in ("activation_bits", "rule", "ste_clip")}
    if config["algebra"] == "hadamard":
        alpha = weights[f"{name}.alpha"]
        if config["ternary"]:
            return hadamard_bit_linear(x, w, alpha, beta, **rounding)
        return hadamard_linear(x, w, alpha, beta)
    if config["ternary"]:
        return cayley_dickson_bit_linear(x, w, beta, **rounding)
    return cayley_dickson_linear(x, w, beta)


def _hash_parts(weights: Weights, config: Mapping[str, Any]) -> tuple[list[Tensor], Tensor, Tensor | None]:
    tables = [weights[f"embedding.tables.{i}"] for i in range(config["hash_embeddings"])]
    return tables, weights["embedding.importance"], weights.get("embedding.indices")


def embed(ids: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """The embedding [B, T, C] of ids [B, T]; config is complete, here and below."""
    if not config["hash_embeddings"]:
        return embedding(ids, weights["embedding.weight"])
    scale = math.sqrt(config["n_embd"]) if config["hash_scale"] else 1.0
    return hash_embedding(ids, *_hash_parts(weights, config), scale=scale)


def head(x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """Logits [..., V] of the normed features x [..., C]."""
    if not config["tied_head"]:
        return lm_head(x, weights["head.weight"])
    if config["hash_embeddings"]:
        return hash_lm_head(x, *_hash_parts(weights, config))
    return lm_head(x, weights["embedding.weight"])


def head_table(weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """The table [V, C] with ``head(x) = x table^T``, for a loss that never holds the logits.

    For a hashed head it is formed from the small tables, and gradients flow through it to them.
    """
    if not config["tied_head"]:
        return weights["head.weight"]
    if not config["hash_embeddings"]:
        return weights["embedding.weight"]
    ids = torch.arange(config["vocab_size"], device=weights["embedding.importance"].device)
    return hash_embedding(ids, *_hash_parts(weights, config))


def _attention_half(
    block: str, x: Tensor, weights: Weights, config: Mapping[str, Any], positions: Tensor, cache: KVCache | None
) -> Tensor:
    """``x + wo(mix(attention(...)))``."""
    h = rms_norm(x, weights[f"{block}.attention_norm.weight"])
    shape = (*x.shape[:2], config["n_head"], config["n_embd"] // config["n_head"])
    q, k, v = (_linear(f"{block}.attention.{name}", h, weights, config).reshape(shape) for name in ("wq", "wk", "wv"))
    angles = rotation(positions, shape[-1], accumulate_dtype(q))
    q, k = rotate(q, angles), rotate(k, angles)
    o = attention(q, k, v) if cache is None else cache.attend(q, cache.append(k, v))
    if config["head_mixing"]:
        o = head_mixer(o, weights[f"{block}.mixer.weight"], weights[f"{block}.mixer.beta"], config["algebra"])
    return x + _linear(f"{block}.attention.wo", o.reshape(x.shape), weights, config)


def _ffn_half(block: str, x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """``x + down(swiglu(gate h, up h))``."""
    h = rms_norm(x, weights[f"{block}.ffn_norm.weight"])
    gate, up = (_linear(f"{block}.ffn.{name}", h, weights, config) for name in ("gate", "up"))
    return x + _linear(f"{block}.ffn.down", swiglu(gate, up), weights, config)


def block(
    name: str, x: Tensor, weights: Weights, config: Mapping[str, Any], positions: Tensor, cache: KVCache | None
) -> Tensor:
    """One block: attention half, then feed-forward half.

    Args:
        name: of the block among the weights, such as ``blocks.0``.
        x: float [B, T, C].
        weights: at least those of this block.
        config: complete.
        positions: integer [T] or [B, T], of these tokens in their sequences.
        cache: of this layer, appended to; None if there are no earlier tokens.

    Returns:
        [B, T, C] in the dtype of x.
    """
    return _ffn_half(name, _attention_half(name, x, weights, config, positions, cache), weights, config)


def start(cache: Sequence[KVCache] | None, ids: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Tokens that each sequence holds already, int64 [B], if T more fit everywhere.

    Raises:
        ShapeError: a cache of other sequences. CapacityError: T more tokens do not fit.
    """
    batch, tokens = ids.shape
    caches = [] if cache is None else list(cache)
    lengths = caches[0].lengths if caches else torch.zeros(batch, dtype=torch.int64, device=ids.device)
    if cache is not None and len(caches) != config["n_layer"]:
        raise ShapeError(f"cache has {len(caches)} layers: expected one KVCache for each of {config['n_layer']}")
    if any(layer.batch != batch or not torch.equal(layer.lengths, lengths) for layer in caches):
        raise ShapeError(f"cache is not of {batch} sequences, equally long in every layer: use it for one batch only")
    total = (int(lengths.max()) if batch else 0) + tokens
    room = min([config["block_size"], *(layer.capacity for layer in caches)])
    if total > room:
        raise CapacityError(f"{total} tokens, cached ones counted in, where {room} fit: shorten the sequence")
    return lengths


def forward(
    ids: Tensor,
    weights: Weights,
    config: Mapping[str, Any],
    cache: Sequence[KVCache] | None = None,
    probes: MutableMapping[str, Any] | None = None,
) -> Tensor:
    """Logits of every token.

    Args:
        ids: integer [B, T] in 0 .. V-1.
        weights: tensors by the names and shapes of ``walsh.reference.config.weight_shapes``, all on the device of ids;
            a linear weight may be int8 codes or packed uint8.
        config: as SPEC.md lists it.
        cache: one KVCache per layer with the tokens before these, which are appended; None if there are none.
        probes: receives ``x.0`` after the embedding and ``x.{l+1}`` after block l, [B, T, C].

    Returns:
        logits [B, T, V] in the dtype of the embedding.

    Raises:
        ParameterError: a configuration that is wrong; a weight missing or superfluous. ShapeError, DTypeError: a
        weight, ids or cache that does not fit. RangeError: an id outside 0 .. V-1. CapacityError: more tokens than
        ``block_size`` or than the cache holds. The cache is then unchanged.
    """
    config = complete_config(config)
    check_weights(weights, config)
    require_integer("ids", ids)
    require_shape("ids", ids, (None, None), "[B, T]")
    held_before = start(cache, ids, config)
    positions = held_before[:, None] + torch.arange(ids.shape[1], device=ids.device)
    probes = {} if probes is None else probes
    try:
        x = probes["x.0"] = embed(ids, weights, config)
        for layer in range(config["n_layer"]):
            held = None if cache is None else cache[layer]
            x = probes[f"x.{layer + 1}"] = block(f"blocks.{layer}", x, weights, config, positions, held)
        return head(rms_norm(x, weights["norm.weight"]), weights, config)
    except WalshError:
        # No layer may keep tokens that the others have not seen.
        for held in cache or ():
            held.truncate(held_before)
        raise
