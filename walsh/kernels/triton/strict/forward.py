"""The whole model in strict arithmetic, and generation with it (SPEC.md, sections *forward* and *strict arithmetic*).

    x = embedding(ids)
    x = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)          per block
    x = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))

ids [B, T], x float32 [B, T, C], logits float32 [B, T, V]. Layers that share an input share its codes: for a
Cayley-Dickson algebra the norm and the quantizer are one launch whose int8 result wq, wk and wv (or gate and up) read.
Residuals are float32 additions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from walsh.errors import CapacityError, ShapeError
from walsh.kernels.torch.strict.weights import check_weights, hash_parts, strict_config
from walsh.kernels.triton._check import require_shape
from walsh.kernels.triton._launch import require_device
from walsh.kernels.triton.cayley_dickson import integer_linear
from walsh.kernels.triton.rms_norm import normalize_quantize
from walsh.kernels.triton.strict._check import as_integers, require_finite_rows
from walsh.kernels.triton.strict.attention import Int8KVCache, attention
from walsh.kernels.triton.strict.embedding import embedding, hash_embedding, hash_lm_head, lm_head
from walsh.kernels.triton.strict.layers import (
    apply_cayley_dickson,
    apply_hadamard,
    head_mixer,
    rms_norm,
    rope,
    swiglu,
)
from walsh.kernels.triton.strict.sampling import sample
from walsh.kernels.triton.ternary_packing import require_codes
from walsh.reference.strict.forward import check_generation
from walsh.reference.strict.sampling import check_parameters

Weights = Mapping[str, Tensor]


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    codes, beta = weights[f"{name}.codes"], weights[f"{name}.beta"]
    alpha = weights.get(f"{name}.alpha")
    if alpha is None:
        return apply_cayley_dickson(x, codes, beta)
    return apply_hadamard(x, codes, alpha, beta, "x, after alpha and the transform,")


def _normed_linears(x: Tensor, norm: Tensor, weights: Weights, names: Sequence[str]) -> list[Tensor]:
    """Several linear layers of rms_norm(x)."""
    if f"{names[0]}.alpha" in weights:
        h = rms_norm(x, norm)
        return [_linear(h, weights, name) for name in names]
    a, r = normalize_quantize(x, norm, 1e-6, True)
    require_finite_rows("rms_norm(x)", r)
    pairs = ((weights[f"{name}.codes"], weights[f"{name}.beta"]) for name in names)
    return [integer_linear(a, codes, beta, r, True, False) for codes, beta in pairs]


def _attention_branch(
    x: Tensor, weights: Weights, block: str, config: Mapping[str, Any], positions: Tensor, cache: Int8KVCache | None
) -> Tensor:
    heads = (*x.shape[:2], config["n_head"], config["n_embd"] // config["n_head"])
    names = [f"{block}.attention.{name}" for name in ("wq", "wk", "wv")]
    outputs = _normed_linears(x, weights[f"{block}.attention_norm.weight"], weights, names)
    q, k, v = (output.reshape(heads) for output in outputs)
    q, k = (rope(half, weights["rope.inv_freq"], positions) for half in (q, k))
    o = attention(q, k, v) if cache is None else cache.attend(q, cache.append(k, v))
    if config["head_mixing"]:
        codes, scale, beta = (weights[f"{block}.mixer.{name}"] for name in ("codes", "scale", "beta"))
        o = head_mixer(o, codes, scale, beta, config["algebra"])
    return _linear(o.reshape(x.shape), weights, f"{block}.attention.wo")


def _ffn_branch(x: Tensor, weights: Weights, block: str) -> Tensor:
    names = [f"{block}.ffn.gate", f"{block}.ffn.up"]
    gate, up = _normed_linears(x, weights[f"{block}.ffn_norm.weight"], weights, names)
    return _linear(swiglu(gate, up), weights, f"{block}.ffn.down")


def _embed(ids: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    if not config["hash_embeddings"]:
        return embedding(ids, weights["embedding.codes"], weights["embedding.scale"])
    scale = math.sqrt(config["n_embd"]) if config["hash_scale"] else 1.0
    return hash_embedding(ids, *hash_parts(weights, config["hash_embeddings"]), scale)


def _head(x: Tensor, weights: Weights, config: Mapping[str, Any]) -> Tensor:
    if not config["tied_head"]:
        return lm_head(x, weights["head.codes"], weights["head.scale"])
    if config["hash_embeddings"]:
        return hash_lm_head(x, *hash_parts(weights, config["hash_embeddings"]))
    return lm_head(x, weights["embedding.codes"], weights["embedding.scale"])


def _start(cache: Sequence[Int8KVCache] | None, ids: Tensor, config: Mapping[str, Any]) -> Tensor:
    """How many tokens each sequence holds already, int64 [B], if T more fit everywhere."""
    batch, tokens = ids.shape
    lengths = torch.zeros(batch, dtype=torch.int64, device=ids.device)
    if cache is not None:
        if len(cache) != config["n_layer"]:
            raise ShapeError(f"{len(cache)} caches for {config['n_layer']} layers: expected one Int8KVCache per layer")
        lengths = cache[0].lengths if cache else lengths
        if lengths.shape != (batch,) or not all(torch.equal(layer.lengths, lengths) for layer in cache):
            raise ShapeError(f"caches of different lengths, or not of {batch} sequences: use them for one batch only")
    total = (int(lengths.max()) if batch else 0) + tokens
    room = min([config["block_size"], *(layer.capacity for layer in cache or ())])
    if total > room:
        raise CapacityError(f"{total} tokens, cached ones counted in, where {room} fit: shorten the sequence")
    return lengths


def _require_weights(weights: Weights, config: Mapping[str, Any]) -> None:
    """Raise unless these are the strict weights of this configuration, ternary where they must be."""
    check_weights(weights, config)
    require_device(*weights.values())
    for name, codes in weights.items():
        if name.startswith("blocks.") and name.endswith(".codes") and not name.endswith(".mixer.codes"):
            require_codes(codes, codes.shape[-1])


def _forward(
    ids: Tensor,
    weights: Weights,
    config: Mapping[str, Any],
    cache: Sequence[Int8KVCache] | None,
    probes: MutableMapping[str, Tensor] | None,
    last_only: bool = False,
) -> Tensor:
    """:func:`forward` with checked configuration and weights; ``last_only`` gives the logits of the last token."""
    require_shape("ids", ids, (None, None), "[B, T]")
    start = _start(cache, ids, config)
    positions = start[:, None] + torch.arange(ids.shape[1], device=ids.device)
    probes = {} if probes is None else probes
    try:
        x = probes["x.0"] = _embed(ids, weights, config)
        for layer in range(config["n_layer"]):
            block = f"blocks.{layer}"
            x = x + _attention_branch(x, weights, block, config, positions, None if cache is None else cache[layer])
            x = x + _ffn_branch(x, weights, block)
            probes[f"x.{layer + 1}"] = x
        return _head(rms_norm(x[:, -1:] if last_only else x, weights["norm.weight"]), weights, config)
    except Exception:
        for member in cache or ():  # half of the layers must not keep tokens that the others never saw
            member.truncate(start)
        raise


@torch.no_grad()
def forward(
    ids: Tensor,
    weights: Weights,
    config: Mapping[str, Any],
    cache: Sequence[Int8KVCache] | None = None,
    probes: MutableMapping[str, Tensor] | None = None,
) -> Tensor:
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
        BackendError: no machine for Triton.
    """
    config = strict_config(config)
    _require_weights(weights, config)
    return _forward(as_integers("ids", ids), weights, config, cache, probes)


@torch.no_grad()
def generate(
    ids: Tensor,
    weights: Weights,
    config: Mapping[str, Any],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: Any = 0,
) -> Tensor:
    """Continue every prompt, one token at a time through a cache.

    Args:
        ids: integers [T] or [B, T], the prompts, T at least 1.
        weights: as :func:`forward`.
        config: as :func:`forward`.
        max_new_tokens: how many tokens to draw; the i-th is drawn at position T + i.
        temperature, top_k, top_p, repetition_penalty: as ``sample``; the history is all tokens so far.
        seed: integer or integers [B].

    Returns:
        int64 [B, max_new_tokens].

    Raises:
        As :func:`forward` and ``sample``; CapacityError before anything is computed.
    """
    config = strict_config(config)
    _require_weights(weights, config)
    check_parameters(temperature, top_k, top_p, repetition_penalty)
    tokens = as_integers("ids", ids)
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    check_generation(tuple(tokens.shape), config, max_new_tokens)
    batch, prompt = tokens.shape
    sizes = (batch, prompt + max_new_tokens, config["n_head"], config["n_embd"] // config["n_head"])
    cache = [Int8KVCache(*sizes, device=tokens.device) for _ in range(config["n_layer"])]
    unread = tokens
    for position in range(prompt, prompt + max_new_tokens):
        logits = _forward(unread, weights, config, cache, None, last_only=True)[:, 0]
        unread = sample(logits, tokens, temperature, top_k, top_p, repetition_penalty, seed, position)[:, None]
        tokens = torch.cat([tokens, unread], dim=1)
    return tokens[:, prompt:]
