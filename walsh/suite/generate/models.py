"""Tiny whole models for the vectors of *forward*: configurations, weights, and how far rounding may move results.

The bound of a whole model is a measured condition number, because an a-priori one grows like the product over layers
and would let anything pass. Every floating weight is perturbed by relative +-delta with pseudo-random signs, the
reference is evaluated in float64, and::

    magnitude = max over draws and elements of |f(perturbed) - f| / delta + max |f|
    |actual - expected| <= gamma_TERMS magnitude

A weight that is off by one rounding is what a rounded product looks like (backward error analysis; Higham, section
1.5), so the first summand is the effect of one rounding in every product; TERMS counts how many follow one another. It
owes nothing to any float32 implementation. Codes of quantisers must not flip within delta, 16 float32 roundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from walsh import reference
from walsh.errors import VectorError
from walsh.reference import strict
from walsh.reference.config import LINEARS
from walsh.suite.catalog import Call
from walsh.suite.generate.build import Bounded
from walsh.suite.generate.evaluate import evaluate
from walsh.suite.generate.numbers import Draw, ternary_is_clear
from walsh.suite.generate.rope import frequencies
from walsh.suite.tensors import DTYPES, Array, is_float

TERMS = 64
"""Roundings that are charged: about eight for each operation on the path through a block, and two blocks."""

DELTA = 2.0**-20
"""Relative perturbation."""

DRAWS = 6
"""Patterns of signs that are tried."""

SMOOTH = 4096.0
"""More movement than this per unit of delta (relative to the result) is a quantiser's code that flipped."""

BASE: dict[str, Any] = {"n_layer": 2, "vocab_size": 13, "block_size": 16}

MODELS: dict[str, dict[str, Any]] = {
    "dense": {"algebra": "dense", "n_head": 2, "n_embd": 8},
    "complex": {"algebra": "complex", "n_head": 2, "n_embd": 8, "head_mixing": True},
    "quaternion": {"algebra": "quaternion", "n_head": 2, "n_embd": 8},
    "quaternion-mixed": {"algebra": "quaternion", "n_head": 4, "n_embd": 8, "head_mixing": True},
    "octonion": {"algebra": "octonion", "n_head": 2, "n_embd": 16},
    "octonion-mixed": {"algebra": "octonion", "n_head": 8, "n_embd": 16, "head_mixing": True},
    "sedenion": {"algebra": "sedenion", "n_head": 2, "n_embd": 32, "n_layer": 1},
    "hadamard": {"algebra": "hadamard", "n_head": 2, "n_embd": 8, "hadamard_size": 2},
    "hadamard-mixed": {"algebra": "hadamard", "n_head": 4, "n_embd": 16, "hadamard_size": 4, "head_mixing": True},
    "hash-2": {"algebra": "dense", "n_head": 2, "n_embd": 8, "hash_embeddings": 2, "n_layer": 1},
    "hash-3": {
        "algebra": "octonion",
        "n_head": 2,
        "n_embd": 16,
        "hash_embeddings": 3,
        "hash_scale": True,
        "n_layer": 1,
    },
    "untied": {"algebra": "quaternion", "n_head": 2, "n_embd": 8, "tied_head": False, "ffn_hidden": 12},
}
"""Configurations by name, on top of ``BASE``."""


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """A configuration of :data:`MODELS` with changes."""
    return {**BASE, **MODELS[name], **changes}


def weights_of(draw: Draw, config: Mapping[str, Any], dtype: str = "float32", indices: bool = True) -> dict[str, Array]:
    """Weights by name: linears clear of ternary ties, betas that keep the variance, mixers near the identity."""
    weights: dict[str, Array] = {}
    for name, shape in reference.weight_shapes(config).items():
        if name.startswith("embedding.tables."):
            # Small tables under explicit indices; without them as high as the vocabulary asks for.
            height = 5 + int(name[-1]) if indices else (1 if shape[0] < 100 else config["vocab_size"])
            weights[name] = draw.reals(name, (height, shape[1]), dtype, -3, -1)
        elif name.endswith(".mixer.weight"):
            weights[name] = _near_identity(draw, name, shape, config["algebra"] == "hadamard", dtype)
        elif _is_linear(name):
            weights[name] = draw.search(lambda d, n=name, s=shape: d.reals(n, s, dtype, -3, 0), ternary_is_clear)  # type: ignore[misc]  # defaults bind the loop
        elif name.endswith(".beta") and ".mixer." not in name:
            fan_in = math.prod(weights[name.replace(".beta", ".weight")].shape[::2])
            weights[name] = (draw.positive(name, shape, "float64") / math.sqrt(fan_in)).astype(DTYPES[dtype])
        elif len(shape) == 2 and not name.endswith((".alpha", "importance")):
            weights[name] = draw.reals(name, shape, dtype, -3, -1)
        else:
            weights[name] = draw.positive(name, shape, dtype)
    if indices and config.get("hash_embeddings"):
        ids = np.arange(config["vocab_size"])
        columns = [(ids * 7 + i) % (5 + i) for i in range(config["hash_embeddings"])]
        weights["embedding.indices"] = np.stack(columns, axis=-1).astype(np.int64)
    return weights


def _is_linear(name: str) -> bool:
    return name.endswith(".weight") and name.removesuffix(".weight").endswith(LINEARS)


def _near_identity(draw: Draw, name: str, shape: tuple[int, ...], hadamard: bool, dtype: str) -> Array:
    w = draw.reals(name, shape, "float64", -4, -2)
    w[: (shape[0] if hadamard else 1)] += np.eye(shape[1])
    return w.astype(DTYPES[dtype])


def strict_weights_of(draw: Draw, config: Mapping[str, Any], indices: bool = True) -> dict[str, Array]:
    """Exported weights, with frequencies that no machine's pow decides."""
    exported = dict(strict.export(weights_of(draw, config, indices=indices), config))
    exported["rope.inv_freq"] = frequencies(config["n_embd"] // config["n_head"])
    return {name: np.asarray(array) for name, array in exported.items()}


def named(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Weights as flat inputs."""
    return {f"weights.{name}": array for name, array in weights.items()}


def _scale(outputs: Mapping[str, Array]) -> dict[str, float]:
    return {name: float(np.abs(value).max(initial=0.0)) for name, value in outputs.items()}


def conditioned(
    label: str, call: Call, params: Mapping[str, Any], inputs: Mapping[str, Array]
) -> dict[str, Bounded] | None:
    """Every output with its bound, or None if a quantiser's code flips within delta.

    Args:
        label: from which the signs are drawn.
        call: ``forward`` or ``forward.backward``.
        params: with the configuration.
        inputs: ids, weights and targets.
    """
    base = evaluate(call, params, inputs)
    size, moved = _scale(base), dict.fromkeys(base, 0.0)
    wide = {name: array.astype(np.float64) if is_float(array.dtype) else array for name, array in inputs.items()}
    for number in range(DRAWS):
        draw = Draw(f"{label}/perturbed/{number}")
        other = {
            name: array * (1 + DELTA * (2.0 * draw.integers(name, array.shape, 0, 1) - 1))
            if is_float(array.dtype)
            else array
            for name, array in wide.items()
        }
        for name, value in evaluate(call, params, other).items():
            moved[name] = max(moved[name], float(np.abs(value - base[name]).max(initial=0.0)) / DELTA)
    if any(moved[name] > SMOOTH * max(size[name], 1e-3) for name in base):
        return None
    return {name: Bounded(value, np.asarray(moved[name] + size[name]), TERMS) for name, value in base.items()}


def settle(
    label: str, call: Call, params: Mapping[str, Any], make: Any, tries: int = 400
) -> tuple[dict[str, Array], dict[str, Bounded]]:
    """The first inputs of a numbered family whose quantisers are all clear of ties, with their bounds.

    Raises:
        VectorError: if none is.
    """
    for number in range(tries):
        inputs = make(Draw(f"{label}#{number}"))
        bounds = conditioned(label, call, params, inputs)
        if bounds is not None:
            return inputs, bounds
    raise VectorError(f"{label}: a quantiser flips in each of {tries} models; use a smaller one")
