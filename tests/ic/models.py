"""Tiny models for canister tests, made as tests/engine makes them, and what the engine draws from them."""

import functools

import numpy as np

from walsh import codec
from walsh.engine import Engine, Sampling
from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

SMALL = {"n_layer": 2, "n_head": 8, "n_embd": 64, "vocab_size": 70, "block_size": 48}
CONFIGS = {
    "octonion": {"algebra": "octonion", "head_mixing": True},
    "hash": {"algebra": "octonion", "hash_embeddings": 3, "hash_scale": True},
    "hadamard": {"algebra": "hadamard", "n_head": 32, "head_mixing": True},
    "dense untied": {"algebra": "dense", "tied_head": False, "vocab_size": 1100},
    "no layers": {"algebra": "octonion", "n_layer": 0},
    "float": {"algebra": "octonion", "activation_bits": None},
}


def weights_of(config: dict, seed: int = 0) -> dict:
    """Codes from NumPy's generator; scales wide enough that drawn tokens depend on the prompt."""
    rng = np.random.default_rng(seed)
    weights = {}
    # Float models have the weights of strict ones.
    for key, shape in strict_weight_shapes(config | {"activation_bits": 8}).items():
        if key == "rope.inv_freq":
            weights[key] = 10000.0 ** (-2 * np.arange(shape[0]) / (2 * shape[0]))
        elif strict_weight_dtype(key) == "int8":
            limit = 127 if ".mixer." in key or key.startswith(("embedding", "head")) else 1
            weights[key] = rng.integers(-limit, limit + 1, shape).astype(np.int8)
        else:
            centre = {"beta": 0.3, "scale": 0.01}.get(key.rpartition(".")[2], 1.0)
            weights[key] = (centre * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return weights


@functools.cache
def file(name: str = "octonion", paint: int = 0, tokenizer=None) -> bytes:
    """A ``.walsh`` file."""
    config = SMALL | CONFIGS[name]
    return codec.dump(weights_of(config, paint), config, tokenizer=tokenizer)


@functools.cache
def engine(name: str = "octonion", paint: int = 0) -> Engine:
    """The same in the engine."""
    return Engine(file(name, paint))


def expected(prompt: list[int], count: int, name: str = "octonion", paint: int = 0, **sampling) -> list[int]:
    """Tokens that the engine draws in one piece."""
    session = engine(name, paint).new_session()
    session.prefill(prompt)
    tokens = session.generate(count, Sampling(**sampling)).tolist()
    session.close()
    return tokens
