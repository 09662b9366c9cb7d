"""A model's weights and configuration, meeting the operations that they are for (SPEC.md, section *forward*).

Each method is one operation of the model; its ``_backward`` goes from the gradient of the result to the gradient of the
input and gathers those of the weights. Which operations follow each other is ``forward.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from walsh.reference._check import Array, Float, is_float
from walsh.reference.cayley_dickson import (
    cayley_dickson_bit_linear,
    cayley_dickson_bit_linear_backward,
    cayley_dickson_linear,
    cayley_dickson_linear_backward,
)
from walsh.reference.embedding import (
    embedding,
    embedding_backward,
    hash_embedding,
    hash_embedding_backward,
    hash_lm_head,
    hash_lm_head_backward,
    lm_head,
    lm_head_backward,
)
from walsh.reference.hadamard import (
    hadamard_bit_linear,
    hadamard_bit_linear_backward,
    hadamard_linear,
    hadamard_linear_backward,
)
from walsh.reference.head_mixer import head_mixer, head_mixer_backward
from walsh.reference.rms_norm import rms_norm, rms_norm_backward


@dataclass
class Model:
    """Checked weights and configuration, with the gradients gathered so far."""

    weights: Mapping[str, Array]
    config: Mapping[str, Any]
    gradients: dict[str, Float] = field(default_factory=dict)

    def gather(self, name: str, gradient: Float | None) -> None:
        """Add to the gradient of a weight; a tied table is reached twice, an integer weight has none."""
        if gradient is not None and is_float(self.weights[name]):
            self.gradients[name] = self.gradients.get(name, 0.0) + gradient

    @property
    def _rounding(self) -> dict[str, Any]:
        return {key: self.config[key] for key in ("activation_bits", "rule", "ste_clip")}

    def linear(self, name: str, x: Float) -> Float:
        """The layer ``name`` of the model's algebra, rounded if the model is ternary."""
        w, beta = self.weights[f"{name}.weight"], self.weights[f"{name}.beta"]
        if self.config["algebra"] == "hadamard":
            alpha = self.weights[f"{name}.alpha"]
            if self.config["ternary"]:
                return hadamard_bit_linear(x, w, alpha, beta, **self._rounding)
            return hadamard_linear(x, w, alpha, beta)
        if self.config["ternary"]:
            return cayley_dickson_bit_linear(x, w, beta, **self._rounding)
        return cayley_dickson_linear(x, w, beta)

    def linear_backward(self, name: str, x: Float, dy: Float) -> Float:
        """From dy to dx; the gradients of the layer's weights are gathered."""
        w, beta = self.weights[f"{name}.weight"], self.weights[f"{name}.beta"]
        if self.config["algebra"] == "hadamard":
            alpha = self.weights[f"{name}.alpha"]
            if self.config["ternary"]:
                dx, dw, dalpha, dbeta = hadamard_bit_linear_backward(x, w, alpha, beta, dy, **self._rounding)
            else:
                dx, dw, dalpha, dbeta = hadamard_linear_backward(x, w, alpha, beta, dy)
            self.gather(f"{name}.alpha", dalpha)
        elif self.config["ternary"]:
            dx, dw, dbeta = cayley_dickson_bit_linear_backward(x, w, beta, dy, **self._rounding)
        else:
            dx, dw, dbeta = cayley_dickson_linear_backward(x, w, beta, None, dy)
        self.gather(f"{name}.weight", dw)
        self.gather(f"{name}.beta", dbeta)
        return dx

    def norm(self, name: str, x: Float) -> Float:
        """The norm ``name``."""
        return rms_norm(x, self.weights[f"{name}.weight"])

    def norm_backward(self, name: str, x: Float, dy: Float) -> Float:
        """From dy to dx; the gradient of the norm's weight is gathered."""
        dx, dweight = rms_norm_backward(x, self.weights[f"{name}.weight"], dy)
        self.gather(f"{name}.weight", dweight)
        return dx

    @property
    def _hash_parts(self) -> tuple[list[Array], Array, Array | None]:
        tables = [self.weights[f"embedding.tables.{i}"] for i in range(self.config["hash_embeddings"])]
        return tables, self.weights["embedding.importance"], self.weights.get("embedding.indices")

    @property
    def _hash_scale(self) -> float:
        return math.sqrt(self.config["n_embd"]) if self.config["hash_scale"] else 1.0

    def _gather_hash(self, dtables: Sequence[Float], dimportance: Float) -> None:
        for i, dtable in enumerate(dtables):
            self.gather(f"embedding.tables.{i}", dtable)
        self.gather("embedding.importance", dimportance)

    def embed(self, ids: Array) -> Float:
        """The embedding [B, T, C] of ids [B, T]."""
        if self.config["hash_embeddings"]:
            return hash_embedding(ids, *self._hash_parts, scale=self._hash_scale)
        return embedding(ids, self.weights["embedding.weight"])

    def embed_backward(self, ids: Array, dx: Float) -> None:
        """Gather the gradients of the embedding."""
        if self.config["hash_embeddings"]:
            self._gather_hash(*hash_embedding_backward(ids, *self._hash_parts, dx, scale=self._hash_scale))
        else:
            self.gather("embedding.weight", embedding_backward(ids, self.weights["embedding.weight"], dx)[0])

    @property
    def _head_name(self) -> str:
        return "embedding.weight" if self.config["tied_head"] else "head.weight"

    def head(self, x: Float) -> Float:
        """Logits [B, T, V] of x [B, T, C]."""
        if self.config["tied_head"] and self.config["hash_embeddings"]:
            return hash_lm_head(x, *self._hash_parts)
        return lm_head(x, self.weights[self._head_name])

    def head_backward(self, x: Float, dlogits: Float) -> Float:
        """From dlogits to dx; the gradients of the head are gathered."""
        if self.config["tied_head"] and self.config["hash_embeddings"]:
            dx, dtables, dimportance = hash_lm_head_backward(x, *self._hash_parts, dlogits)
            self._gather_hash(dtables, dimportance)
        else:
            dx, dtable = lm_head_backward(x, self.weights[self._head_name], dlogits)
            self.gather(self._head_name, dtable)
        return dx

    def mix(self, block: str, o: Float) -> Float:
        """The head mixer of a block on o [B, T, H, d]; o itself if the model mixes no heads."""
        if not self.config["head_mixing"]:
            return o
        weight, beta = self.weights[f"{block}.mixer.weight"], self.weights[f"{block}.mixer.beta"]
        return head_mixer(o, weight, beta, self.config["algebra"])

    def mix_backward(self, block: str, o: Float, dy: Float) -> Float:
        """From dy to do; the gradients of the mixer are gathered."""
        if not self.config["head_mixing"]:
            return dy
        weight, beta = self.weights[f"{block}.mixer.weight"], self.weights[f"{block}.mixer.beta"]
        do, dweight, dbeta = head_mixer_backward(o, weight, beta, dy, self.config["algebra"])
        self.gather(f"{block}.mixer.weight", dweight)
        self.gather(f"{block}.mixer.beta", dbeta)
        return do
