"""The whole model in ordinary arithmetic, an operation of the engine at a time (SPEC.md, *forward*).

    x   = embedding(ids)                                                                    ids [B, T], x [B, T, C]
    x   = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)            per block
    x   = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))                                                              logits [B, T, V]

For weights that no file holds: float tables and float linear layers, as they are in training. Models from files run in
the engine whole. The host says which operation follows which; every number is the engine's, residuals included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from walsh.engine.host import Array
from walsh.engine.kv_cache import KVCache
from walsh.engine.ordinary_tables import Float32
from walsh.errors import WalshError
from walsh.reference.forward import _model as check_model
from walsh.reference.forward import _start as check_start

if TYPE_CHECKING:
    from walsh.engine.ordinary import Ordinary


class OrdinaryModel:
    """Checked weights and configuration, met by the engine's operations.

    Raises:
        As ``walsh.reference.forward``.
    """

    def __init__(self, operations: Ordinary, weights: Mapping[str, Array], config: Mapping[str, Any]) -> None:
        checked, _ = check_model(np.zeros((0, 0), dtype=np.int64), weights, config)
        self._do, self._weights, self._config = operations, checked.weights, checked.config

    def _linear(self, name: str, x: Float32) -> Float32:
        config, w = self._config, self._weights[f"{name}.weight"]
        rounding = {key: config[key] for key in ("activation_bits", "rule", "ste_clip")} if config["ternary"] else {}
        if config["algebra"] == "hadamard":
            hadamard: Callable[..., Float32] = (
                self._do.hadamard_bit_linear if config["ternary"] else self._do.hadamard_linear
            )
            return hadamard(x, w, self._weights[f"{name}.alpha"], self._weights[f"{name}.beta"], **rounding)
        product: Callable[..., Float32] = (
            self._do.cayley_dickson_bit_linear if config["ternary"] else self._do.cayley_dickson_linear
        )
        return product(x, w, self._weights[f"{name}.beta"], **rounding)

    def _norm(self, name: str, x: Float32) -> Float32:
        return self._do.rms_norm(x, self._weights[f"{name}.weight"])

    @property
    def _hash(self) -> tuple[list[Array], Array, Array | None]:
        tables = [self._weights[f"embedding.tables.{i}"] for i in range(self._config["hash_embeddings"])]
        return tables, self._weights["embedding.importance"], self._weights.get("embedding.indices")

    def _embed(self, ids: Array) -> Float32:
        if self._config["hash_embeddings"]:
            scale = math.sqrt(self._config["n_embd"]) if self._config["hash_scale"] else 1.0
            return self._do.hash_embedding(ids, *self._hash, scale=scale)
        return self._do.embedding(ids, self._weights["embedding.weight"])

    def _head(self, x: Float32) -> Float32:
        tied = self._config["tied_head"]
        if tied and self._config["hash_embeddings"]:
            return self._do.hash_lm_head(x, *self._hash)
        return self._do.lm_head(x, self._weights["embedding.weight" if tied else "head.weight"])

    def _attention(self, block: str, x: Float32, positions: Array, cache: KVCache | None) -> Float32:
        h, config = self._norm(f"{block}.attention_norm", x), self._config
        shape = (*h.shape[:2], config["n_head"], config["n_embd"] // config["n_head"])
        q, k, v = (self._linear(f"{block}.attention.{name}", h).reshape(shape) for name in ("wq", "wk", "wv"))
        q, k = self._do.rope(q, positions), self._do.rope(k, positions)
        o = self._do.attention(q, k, v) if cache is None else cache.attend(q, cache.append(k, v))
        if config["head_mixing"]:
            weight, beta = (self._weights[f"{block}.mixer.{name}"] for name in ("weight", "beta"))
            o = self._do.head_mixer(o, weight, beta, config["algebra"])
        return self._do.add(x, self._linear(f"{block}.attention.wo", o.reshape(x.shape)))

    def _ffn(self, block: str, x: Float32) -> Float32:
        h = self._norm(f"{block}.ffn_norm", x)
        hidden = self._do.swiglu(self._linear(f"{block}.ffn.gate", h), self._linear(f"{block}.ffn.up", h))
        return self._do.add(x, self._linear(f"{block}.ffn.down", hidden))

    def forward(
        self, ids: Array, cache: Sequence[KVCache] | None, probes: MutableMapping[str, Array] | None
    ) -> Float32:
        """Ids [B, T] to logits [B, T, V]; ``cache`` has one KVCache per layer, ``probes`` receives x between blocks.

        Raises:
            As ``walsh.reference.forward``; the cache is then unchanged.
        """
        _, tokens = check_model(ids, self._weights, self._config)
        start = check_start(cache, tokens, self._config)  # type: ignore[arg-type]  # the same interface, by design
        positions = start[:, None] + np.arange(tokens.shape[1])
        seen: MutableMapping[str, Array] = {} if probes is None else probes
        try:
            x = seen["x.0"] = self._embed(tokens)
            for layer in range(self._config["n_layer"]):
                block = f"blocks.{layer}"
                x = self._ffn(block, self._attention(block, x, positions, None if cache is None else cache[layer]))
                seen[f"x.{layer + 1}"] = x
        except WalshError:
            # No layer may keep tokens that the others have not seen.
            for held in cache or ():
                held.truncate(start)
            raise
        return self._head(self._norm("norm", x))
