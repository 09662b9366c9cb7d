"""Strict weights from trained ones (SPEC.md, end of *Strict arithmetic*).

    linears                 codes = ternary(weight);  beta and alpha as float32
    embedding, tables, head scale = f32(absmax(row) / 127), codes = clip(rint(row / scale)), per row
    mixers                  the same per output column, over all components and inputs
    rope.inv_freq           theta^(-2 i / d) in float64

Quotients are formed in float64; a row or column of zeros has scale 0 and codes 0. This is the last place where ordinary
arithmetic is used: what is exported defines every later bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import DTypeError, NonFiniteError, ParameterError
from walsh.reference.config import weight_shapes
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Codes, Float32
from walsh.reference.strict._check import Array
from walsh.reference.strict.weights import check_weights, rounding, strict_config
from walsh.reference.ternary import ternary

_THETA = 10000.0


def _finite(name: str, weight: Array) -> Array:
    """The weight, which must be real and finite."""
    weight = np.asarray(weight)
    if weight.dtype.kind in "OSUcb":
        raise DTypeError(f"weight {name!r} has dtype {weight.dtype}: expected a float dtype, or int8 codes")
    if weight.dtype.kind not in "iu" and not np.isfinite(weight.astype(np.float64)).all():
        raise NonFiniteError(f"weight {name!r} holds NaN or infinity: it cannot be exported")
    return weight


def _float32(name: str, weight: Array) -> Float32:
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise NonFiniteError(f"weight {name!r} overflows float32: it cannot be exported")
    return rounded


def int8_with_scale(name: str, weight: Array, axes: tuple[int, ...]) -> tuple[Codes, Float32]:
    """Codes and one float32 scale per slice, absmax taken over ``axes``."""
    weight = weight.astype(np.float64)
    scale = _float32(name, np.abs(weight).max(axis=axes, keepdims=True, initial=0.0) / 127)
    wide = np.where(scale == 0, 1.0, scale.astype(np.float64))
    codes = np.where(scale == 0, 0.0, np.clip(np.rint(weight / wide), -128, 127)).astype(np.int8)
    return codes, scale.squeeze(axes)


def _ternary_codes(name: str, weight: Array, rule: str) -> Codes:
    if weight.dtype.kind in "iu":  # codes already, used as they are
        return _check.ternary(f"weight {name!r}", weight).astype(np.int8)
    codes: Codes = ternary(weight.astype(np.float64), rule)[0]
    return codes


def inverse_frequencies(head_dim: int) -> NDArray[np.float64]:
    """theta^(-2 i / d), float64 [d/2]."""
    return np.array([_THETA ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=np.float64)


def export(weights: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, Array]:
    """Round the weights of a trained model.

    Args:
        weights: by name, as ``walsh.reference.forward`` takes them.
        config: the model's configuration.

    Returns:
        Strict weights by name.

    Raises:
        ParameterError: for a missing or superfluous weight, or a configuration that is wrong.
        StrictError: if activation_bits is null or ternary is false.
        DTypeError, ShapeError, NonFiniteError: for a weight that cannot be rounded.
    """
    config = strict_config(config)
    names = list(weight_shapes(config))
    if config["hash_embeddings"] and "embedding.indices" in weights:
        names.append("embedding.indices")
    if missing := [name for name in names if name not in weights]:
        raise ParameterError(f"weight {missing[0]!r} is missing ({len(missing)} in all); pass all of the trained model")
    if unknown := [name for name in weights if name not in names]:
        raise ParameterError(f"weight {unknown[0]!r} is superfluous ({len(unknown)} in all); remove it")
    strict: dict[str, Array] = {"rope.inv_freq": inverse_frequencies(config["n_embd"] // config["n_head"])}
    for name in names:
        stem, kind, weight = name.removesuffix(".weight"), rounding(name), _finite(name, weights[name])
        if kind == "ternary":
            strict[f"{stem}.codes"] = _ternary_codes(name, weight, config["rule"])
        elif kind is not None:
            axes = (0, 1) if kind == "column" else (-1,)
            strict[f"{stem}.codes"], strict[f"{stem}.scale"] = int8_with_scale(name, weight, axes)
        elif name == "embedding.indices":
            strict[name] = _check.typed(name, weight, "integer").astype(np.int64)
        else:
            strict[name] = _float32(name, weight)
    check_weights(strict, config)
    return strict
