"""Small models with strict arithmetic: of every algebra, with head mixing, hashed embeddings, an untied head."""

from __future__ import annotations

from typing import Any

import numpy as np
from both_packages import F32

from walsh.reference.config import weight_shapes

BASE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 61, "block_size": 48}
MODELS: dict[str, dict[str, Any]] = {
    "octonion_mixer": {**BASE, "algebra": "octonion", "n_head": 8, "head_mixing": True, "n_embd": 64},
    "hadamard_mixer": {**BASE, "algebra": "hadamard", "hadamard_size": 4, "n_head": 4, "head_mixing": True},
    "hash_2": {**BASE, "algebra": "hadamard", "hadamard_size": 8, "hash_embeddings": 2},
    "hash_3": {**BASE, "algebra": "complex", "hash_embeddings": 3, "hash_scale": True},
    "dense": {**BASE, "algebra": "dense", "rule": "round"},
    "quaternion": {**BASE, "algebra": "quaternion"},
    "sedenion_untied": {**BASE, "algebra": "sedenion", "n_embd": 64, "tied_head": False},
}


def make_weights(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """Ordinary weights: gains near 1, linears so that signals keep their size."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        w = rng.standard_normal(shape)
        if name.endswith((".beta", ".alpha", "norm.weight", "importance")):
            scale = 0.3 if name.endswith(".beta") and "mixer" not in name else 1.0
            w = scale * (1 + 0.1 * w)
        weights[name] = w.astype(F32)
    return weights
