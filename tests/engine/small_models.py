"""Models small enough to compare to the bit: of every algebra, of widths that divide nothing, of no layers.

    weights, config = model("octonion", n_embd=256)      same(a, b): whether two arrays are equal to the bit

Codes are uniform; scales keep activations near one through both layers.
"""

import numpy as np

from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

SMALL = {"n_layer": 2, "n_head": 8, "n_embd": 64, "vocab_size": 70, "block_size": 48}
MODELS = {
    "octonion": {"algebra": "octonion", "head_mixing": True},
    "octonion hash 3": {"algebra": "octonion", "hash_embeddings": 3, "hash_scale": True},
    "octonion odd widths": {"algebra": "octonion", "n_head": 3, "n_embd": 24, "ffn_hidden": 104},
    "hadamard": {"algebra": "hadamard", "n_head": 32, "head_mixing": True},
    "hadamard 8 hash 2": {"algebra": "hadamard", "hadamard_size": 8, "head_mixing": True, "hash_embeddings": 2},
    "hadamard odd widths": {"algebra": "hadamard", "hadamard_size": 4, "n_head": 2, "n_embd": 20, "ffn_hidden": 52},
    "dense untied": {"algebra": "dense", "tied_head": False},
    "complex": {"algebra": "complex", "head_mixing": True},
    "quaternion": {"algebra": "quaternion", "head_mixing": True},
    "sedenion": {"algebra": "sedenion", "n_head": 16, "head_mixing": True},
    "no layers": {"algebra": "octonion", "n_layer": 0},
}


def model(name, seed=0, **changes):
    """(weights, config): codes from NumPy's generator, scales that keep activations near one."""
    config = SMALL | MODELS[name] | changes
    rng = np.random.default_rng(seed)
    weights = {}
    for key, shape in strict_weight_shapes(config).items():
        if key == "rope.inv_freq":
            weights[key] = 10000.0 ** (-2 * np.arange(shape[0]) / (2 * shape[0]))
        elif strict_weight_dtype(key) == "int8":
            limit = 127 if ".mixer." in key or key.startswith(("embedding", "head")) else 1
            weights[key] = rng.integers(-limit, limit + 1, shape).astype(np.int8)
        else:
            centre = {"beta": 0.1, "scale": 0.01}.get(key.rpartition(".")[2], 1.0)
            weights[key] = (centre * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return weights, config


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
