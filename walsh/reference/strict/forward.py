"""The whole model in strict arithmetic, and generation with it (SPEC.md, *forward* and *Strict arithmetic*).

    x = embedding(ids)
    x = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)          per block
    x = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))

ids [B, T], x float32 [B, T, C], logits float32 [B, T, V]. Residuals are float32 additions. A token's bits depend on the
tokens before it and on nothing else: not on the batch, and not on what came through a cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import CapacityError, ParameterError, ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Float32
from walsh.reference.strict._check import Array
from walsh.reference.strict.attention import attention
from walsh.reference.strict.cayley_dickson import cayley_dickson_linear
from walsh.reference.strict.embedding import embedding, hash_embedding, hash_lm_head, lm_head
from walsh.reference.strict.hadamard import hadamard_linear
from walsh.reference.strict.head_mixer import head_mixer
from walsh.reference.strict.kv_cache import Int8KVCache
from walsh.reference.strict.rms_norm import rms_norm
from walsh.reference.strict.rope import rope
from walsh.reference.strict.sampling import check_parameters, sample
from walsh.reference.strict.swiglu import swiglu
from walsh.reference.strict.weights import check_weights, hash_parts, strict_config

Weights = Mapping[str, Array]


def _linear(x: Array, weights: Weights, name: str) -> Float32:
    codes, beta = weights[f"{name}.codes"], weights[f"{name}.beta"]
    alpha = weights.get(f"{name}.alpha")
    return cayley_dickson_linear(x, codes, beta) if alpha is None else hadamard_linear(x, codes, alpha, beta)


def _attention_branch(
    h: Array, weights: Weights, block: str, config: Mapping[str, Any], positions: Array, cache: Int8KVCache | None
) -> Float32:
    heads = (*h.shape[:2], config["n_head"], config["n_embd"] // config["n_head"])
    q, k, v = (_linear(h, weights, f"{block}.attention.{name}").reshape(heads) for name in ("wq", "wk", "wv"))
    q, k = (rope(x, weights["rope.inv_freq"], positions) for x in (q, k))
    o = attention(q, k, v) if cache is None else cache.attend(q, cache.append(k, v))
    if config["head_mixing"]:
        codes, scale, beta = (weights[f"{block}.mixer.{name}"] for name in ("codes", "scale", "beta"))
        o = head_mixer(o, codes, scale, beta, config["algebra"])
    return _linear(o.reshape(h.shape), weights, f"{block}.attention.wo")


def _ffn_branch(h: Array, weights: Weights, block: str) -> Float32:
    gate, up = _linear(h, weights, f"{block}.ffn.gate"), _linear(h, weights, f"{block}.ffn.up")
    return _linear(swiglu(gate, up), weights, f"{block}.ffn.down")


def _embed(ids: Array, weights: Weights, config: Mapping[str, Any]) -> Float32:
    if not config["hash_embeddings"]:
        return embedding(ids, weights["embedding.codes"], weights["embedding.scale"])
    scale = math.sqrt(config["n_embd"]) if config["hash_scale"] else 1.0
    return hash_embedding(ids, *hash_parts(weights, config["hash_embeddings"]), scale)


def _head(x: Array, weights: Weights, config: Mapping[str, Any]) -> Float32:
    if not config["tied_head"]:
        return lm_head(x, weights["head.codes"], weights["head.scale"])
    if config["hash_embeddings"]:
        return hash_lm_head(x, *hash_parts(weights, config["hash_embeddings"]))
    return lm_head(x, weights["embedding.codes"], weights["embedding.scale"])


def _start(cache: Sequence[Int8KVCache] | None, batch: int, tokens: int, config: Mapping[str, Any]) -> Array:
    """How many tokens each sequence holds already, int64 [B], if T more fit everywhere."""
    lengths = np.zeros(batch, dtype=np.int64)
    if cache is not None:
        if len(cache) != config["n_layer"]:
            raise ShapeError(f"{len(cache)} caches for {config['n_layer']} layers: expected one Int8KVCache per layer")
        lengths = cache[0].lengths if cache else lengths
        if any(layer.lengths.shape != (batch,) or (layer.lengths != lengths).any() for layer in cache):
            raise ShapeError(f"caches of different lengths, or not of {batch} sequences: use them for one batch only")
    total = int(lengths.max(initial=0)) + tokens
    room = min([config["block_size"], *(layer.capacity for layer in cache or ())])
    if total > room:
        raise CapacityError(f"{total} tokens, cached ones counted in, where {room} fit: shorten the sequence")
    return lengths


def forward(
    ids: Array,
    weights: Weights,
    config: Mapping[str, Any],
    cache: Sequence[Int8KVCache] | None = None,
    probes: MutableMapping[str, Array] | None = None,
) -> Float32:
    """Logits of every token.

    Args:
        ids: integers [B, T] in 0 .. V-1.
        weights: strict weights by name, as ``export`` makes them.
        config: the model's configuration.
        cache: one Int8KVCache per layer, with the tokens before these; it gains these. None: ids are all there is.
        probes: receives ``x.0`` after the embedding and ``x.{l+1}`` after block l, float32 [B, T, C].

    Returns:
        float32 [B, T, V].

    Raises:
        ParameterError, StrictError: a configuration or weights that are wrong.
        DTypeError, ShapeError, RangeError, NonFiniteError: as the functions that it calls.
        CapacityError: more tokens than ``block_size`` or the cache holds. A cache is then as it was.
    """
    config = strict_config(config)
    check_weights(weights, config)
    ids = _check.shaped("ids", _check.typed("ids", ids, "integer"), (None, None), "[B, T]")
    start = _start(cache, ids.shape[0], ids.shape[1], config)
    try:
        return _forward(ids, weights, config, start, cache, probes)
    except Exception:
        for layer in cache or ():  # half of the layers must not keep tokens that the others never saw
            layer.truncate(start)
        raise


def _forward(
    ids: Array,
    weights: Weights,
    config: Mapping[str, Any],
    start: Array,
    cache: Sequence[Int8KVCache] | None,
    probes: MutableMapping[str, Array] | None,
) -> Float32:
    positions = start[:, None] + np.arange(ids.shape[1])
    probes = {} if probes is None else probes
    x = probes["x.0"] = _embed(ids, weights, config)
    for layer in range(config["n_layer"]):
        block = f"blocks.{layer}"
        h = rms_norm(x, weights[f"{block}.attention_norm.weight"])
        x = x + _attention_branch(h, weights, block, config, positions, None if cache is None else cache[layer])
        x = x + _ffn_branch(rms_norm(x, weights[f"{block}.ffn_norm.weight"]), weights, block)
        probes[f"x.{layer + 1}"] = x
    return _head(rms_norm(x, weights["norm.weight"]), weights, config)


def check_generation(batch_and_tokens: tuple[int, ...], config: Mapping[str, Any], max_new_tokens: int) -> None:
    """Raise unless a prompt [B, T] can be continued by so many tokens.

    Raises:
        ParameterError: if max_new_tokens is not a non-negative integer.
        ShapeError: for an empty prompt, which has no last token.
        CapacityError: if prompt and new tokens do not fit ``block_size``; the last drawn token need not fit.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 0:
        raise ParameterError(f"max_new_tokens {max_new_tokens!r}: expected an integer from 0 up")
    if len(batch_and_tokens) != 2 or batch_and_tokens[1] == 0:
        raise ShapeError(f"ids have shape {list(batch_and_tokens)}: expected [T] or [B, T] with at least one token")
    needed = batch_and_tokens[1] + max(int(max_new_tokens) - 1, 0)
    if needed > config["block_size"]:
        raise CapacityError(f"{needed} tokens to read where block_size is {config['block_size']}: ask for fewer")


def generate(
    ids: Array,
    weights: Weights,
    config: Mapping[str, Any],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: Any = 0,
) -> NDArray[np.int64]:
    """Continue every prompt, one token at a time through a cache.

    Args:
        ids: integers [T] or [B, T], the prompts, T at least 1.
        weights, config: as ``forward``.
        max_new_tokens: how many tokens to draw; the i-th is drawn at position T + i.
        temperature, top_k, top_p, repetition_penalty: as ``sample``; the history is all tokens so far.
        seed: integer or integers [B].

    Returns:
        int64 [B, max_new_tokens].

    Raises:
        As ``forward`` and ``sample``; CapacityError before anything is computed.
    """
    config = strict_config(config)
    check_weights(weights, config)
    check_parameters(temperature, top_k, top_p, repetition_penalty)
    tokens = np.atleast_2d(_check.typed("ids", ids, "integer")).astype(np.int64)
    check_generation(tokens.shape, config, max_new_tokens)
    batch, prompt = tokens.shape
    sizes = (batch, prompt + max_new_tokens, config["n_head"], config["n_embd"] // config["n_head"])
    cache = [Int8KVCache(*sizes) for _ in range(config["n_layer"])]
    unread = tokens
    for position in range(prompt, prompt + max_new_tokens):
        logits = forward(unread, weights, config, cache)[:, -1]
        unread = sample(logits, tokens, temperature, top_k, top_p, repetition_penalty, seed, position)[:, None]
        tokens = np.concatenate([tokens, unread], axis=1)
    return tokens[:, prompt:]
