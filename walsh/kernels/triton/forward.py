"""The whole model over Triton kernels (SPEC.md, section *forward*).

    x   = embedding(ids)                                                                    ids [B, T], x [B, T, C]
    x   = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)            per block
    x   = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))                                                              logits [B, T, V]

A function of the weights by name, so autograd differentiates it for each of them; a cache cuts the gradient at the
cached keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from walsh.errors import WalshError
from walsh.kernels.torch.forward import check_weights, start
from walsh.kernels.triton._check import require_integer, require_shape
from walsh.kernels.triton._launch import require_device
from walsh.kernels.triton.attention import attention
from walsh.kernels.triton.cayley_dickson import cayley_dickson_bit_linear, cayley_dickson_linear
from walsh.kernels.triton.embedding import embedding, hash_embedding
from walsh.kernels.triton.embedding_head import hash_lm_head, lm_head
from walsh.kernels.triton.hadamard import hadamard_bit_linear, hadamard_linear
from walsh.kernels.triton.head_mixer import head_mixer
from walsh.kernels.triton.kv_cache import KVCache
from walsh.kernels.triton.rms_norm import rms_norm
from walsh.kernels.triton.rope import rope
from walsh.kernels.triton.swiglu import swiglu
from walsh.reference.config import complete_config

Weights = Mapping[str, Tensor]


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


def _embed(ids: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    if not config["hash_embeddings"]:
        return embedding(ids, weights["embedding.weight"])
    scale = math.sqrt(config["n_embd"]) if config["hash_scale"] else 1.0
    return hash_embedding(ids, *_hash_parts(weights, config), scale=scale)


def _head(x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    if not config["tied_head"]:
        return lm_head(x, weights["head.weight"])
    if config["hash_embeddings"]:
        return hash_lm_head(x, *_hash_parts(weights, config))
    return lm_head(x, weights["embedding.weight"])


def _attention_half(
    block: str, x: Tensor, weights: Weights, config: Mapping[str, Any], positions: Tensor, cache: KVCache | None
) -> Tensor:
    """``x + wo(mix(attention(...)))``."""
    h = rms_norm(x, weights[f"{block}.attention_norm.weight"])
    shape = (*x.shape[:2], config["n_head"], config["n_embd"] // config["n_head"])
    q, k, v = (_linear(f"{block}.attention.{name}", h, weights, config).reshape(shape) for name in ("wq", "wk", "wv"))
    q, k = rope(q, positions), rope(k, positions)
    o = attention(q, k, v) if cache is None else cache.attend(q, cache.append(k, v))
    if config["head_mixing"]:
        o = head_mixer(o, weights[f"{block}.mixer.weight"], weights[f"{block}.mixer.beta"], config["algebra"])
    return x + _linear(f"{block}.attention.wo", o.reshape(x.shape), weights, config)


def _ffn_half(block: str, x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """``x + down(swiglu(gate h, up h))``."""
    h = rms_norm(x, weights[f"{block}.ffn_norm.weight"])
    gate, up = (_linear(f"{block}.ffn.{name}", h, weights, config) for name in ("gate", "up"))
    return x + _linear(f"{block}.ffn.down", swiglu(gate, up), weights, config)


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
        cache: one KVCache of this backend per layer with the tokens before these, which are appended; None: none.
        probes: receives ``x.0`` after the embedding and ``x.{l+1}`` after block l, [B, T, C].

    Returns:
        logits [B, T, V] in the dtype of the embedding.

    Raises:
        ParameterError: a configuration that is wrong; a weight missing or superfluous. ShapeError, DTypeError: a
        weight, ids or cache that does not fit. RangeError: an id outside 0 .. V-1. CapacityError: more tokens than
        ``block_size`` or than the cache holds; the cache is then unchanged. BackendError: no machine for Triton.
    """
    config = complete_config(config)
    check_weights(weights, config)
    require_integer("ids", ids)
    require_shape("ids", ids, (None, None), "[B, T]")
    require_device(ids, *weights.values())
    held: Any = cache
    first = start(held, ids, config)
    positions = first[:, None] + torch.arange(ids.shape[1], device=ids.device)
    probes = {} if probes is None else probes
    try:
        x = probes["x.0"] = _embed(ids, weights, config)
        for layer in range(config["n_layer"]):
            block = f"blocks.{layer}"
            x = _attention_half(block, x, weights, config, positions, None if cache is None else cache[layer])
            x = probes[f"x.{layer + 1}"] = _ffn_half(block, x, weights, config)
        return _head(rms_norm(x, weights["norm.weight"]), weights, config)
    except WalshError:
        # No layer may keep tokens that the others have not seen.
        for member in cache or ():
            member.truncate(first)
        raise
