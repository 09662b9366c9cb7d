"""Configurations of a model, and the weights that follow from one (SPEC.md, section *forward*).

complete_config   required keys checked, defaults filled in, nothing unknown let through
weight_shapes     name -> shape of every weight that ``forward`` of this configuration takes
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from walsh.algebra import DIMENSIONS, is_power_of_two
from walsh.errors import ParameterError, ShapeError
from walsh.reference._check import require_integer
from walsh.reference.embedding import MODULI
from walsh.reference.swiglu import swiglu_hidden
from walsh.reference.ternary import require_rule

REQUIRED = ("algebra", "n_layer", "n_head", "n_embd", "vocab_size", "block_size")

DEFAULTS: dict[str, Any] = {
    "head_mixing": False,
    "hash_embeddings": 0,
    "hash_scale": False,
    "tied_head": True,
    "ternary": True,
    "rule": "absmean",
    "ste_clip": None,
    "activation_bits": 8,
    "hadamard_size": 32,
    "ffn_hidden": None,
}

LINEARS = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "ffn.gate", "ffn.up", "ffn.down")
"""The linear layers of a block."""


def _require(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """ParameterError unless value is one of these, of the same type: True is not 1, nor False 0."""
    if not any(type(value) is type(one) and value == one for one in allowed):
        nearest = difflib.get_close_matches(str(value), [str(one) for one in allowed], n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ParameterError(f"config {key} is {value!r}: expected one of {', '.join(map(repr, allowed))}{hint}")


def _require_keys(config: Mapping[str, Any]) -> None:
    known = [*REQUIRED, *DEFAULTS]
    for key in config:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ParameterError(f"config key {key!r} is unknown: did you mean {nearest!r}? Known: {', '.join(known)}")
    for key in REQUIRED:
        if key not in config:
            raise ParameterError(f"config key {key!r} is missing: expected {', '.join(REQUIRED)}")


def dimension(config: Mapping[str, Any]) -> int:
    """Blocks n of a complete configuration: the algebra's dimension, or the Hadamard size."""
    return int(config["hadamard_size"] if config["algebra"] == "hadamard" else DIMENSIONS[config["algebra"]])


def _require_multiple(config: Mapping[str, Any], key: str, value: int, of: int, reason: str) -> None:
    if value % of:
        raise ParameterError(f"config {key} is {value} for {config['algebra']}: expected a multiple of {of}, {reason}")


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with every key, the hidden width of the feed-forward resolved.

    Args:
        config: ``algebra``, ``n_layer``, ``n_head``, ``n_embd``, ``vocab_size``, ``block_size``, and any optional keys.

    Returns:
        A new dict; completing it again changes nothing.

    Raises:
        ParameterError: an unknown or missing key, or a value that is wrong or does not go with the others.
    """
    _require_keys(config)
    full = DEFAULTS | dict(config)
    _require("algebra", full["algebra"], (*DIMENSIONS, "hadamard"))
    for key in (*REQUIRED[1:], "hadamard_size"):
        full[key] = require_integer(f"config {key}", full[key], 0 if key == "n_layer" else 1)
    for key in ("head_mixing", "hash_scale", "tied_head", "ternary"):
        _require(key, full[key], (True, False))
    _require("hash_embeddings", full["hash_embeddings"], (0, 2, 3))
    _require("activation_bits", full["activation_bits"], (8, None))
    require_rule(full["rule"], full["ste_clip"])
    if not is_power_of_two(full["hadamard_size"]):
        raise ParameterError(f"config hadamard_size is {full['hadamard_size']}: expected a power of two")
    if full["hash_scale"] and not full["hash_embeddings"]:
        raise ParameterError("config hash_scale is true without hash_embeddings: expected 2 or 3 tables, or false")
    if full["head_mixing"] and full["algebra"] == "dense":
        raise ParameterError("config head_mixing is true for dense: expected false, since real numbers mix no heads")
    n = dimension(full)
    if full["ffn_hidden"] is None:
        full["ffn_hidden"] = swiglu_hidden(full["n_embd"], n)
    full["ffn_hidden"] = require_integer("config ffn_hidden", full["ffn_hidden"], 1)
    _require_multiple(full, "n_embd", full["n_embd"], n, "its blocks")
    _require_multiple(full, "n_embd", full["n_embd"], 2 * full["n_head"], "so that each head is made of pairs for rope")
    _require_multiple(full, "ffn_hidden", full["ffn_hidden"], n, "its blocks")
    if full["head_mixing"]:
        _require_multiple(full, "n_head", full["n_head"], n, "the heads of one group")
    return full


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by name, in the order of the forward pass.

    A hash embedding may have ``embedding.indices`` [V, tables] besides, and tables of other heights than the ones given
    here, which are those that ``hash_indices`` needs.

    Raises:
        ParameterError: as :func:`complete_config`.
    """
    config = complete_config(config)
    c, v, n, hidden = config["n_embd"], config["vocab_size"], dimension(config), config["ffn_hidden"]
    d, tables = c // config["n_head"], config["hash_embeddings"]
    shapes: dict[str, tuple[int, ...]] = {}
    if tables:
        heights = (MODULI[0], (v - 1) // MODULI[0] + 1) if tables == 2 else MODULI
        shapes |= {f"embedding.tables.{i}": (height, c) for i, height in enumerate(heights)}
        shapes["embedding.importance"] = (v, tables)
    else:
        shapes["embedding.weight"] = (v, c)
    for layer in range(config["n_layer"]):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attention_norm.weight": (c,), f"{block}.ffn_norm.weight": (c,)}
        for name in LINEARS:
            outputs = hidden if name in ("ffn.gate", "ffn.up") else c
            inputs = hidden if name == "ffn.down" else c
            shapes[f"{block}.{name}.weight"] = (n, outputs // n, inputs // n)
            if config["algebra"] == "hadamard":
                shapes[f"{block}.{name}.alpha"] = (n, inputs // n)
                shapes[f"{block}.{name}.beta"] = (n, outputs // n)
            else:
                shapes[f"{block}.{name}.beta"] = (outputs // n,)
        if config["head_mixing"]:
            shapes |= {f"{block}.mixer.weight": (n, d, d), f"{block}.mixer.beta": (d,)}
    shapes["norm.weight"] = (c,)
    if not config["tied_head"]:
        shapes["head.weight"] = (v, c)
    return shapes


def check_weights(weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise unless these are the weights of this configuration.

    Raises:
        ParameterError: a weight is missing or superfluous. ShapeError: one has another shape.
    """
    config = complete_config(config)
    shapes = weight_shapes(config)
    tables = config["hash_embeddings"]
    optional = {"embedding.indices": (config["vocab_size"], tables)} if tables else {}
    for name in shapes:
        if name not in weights:
            raise ParameterError(f"weight {name!r} is missing: expected it with shape {list(shapes[name])}")
    for name in weights:
        if name not in shapes and name not in optional:
            nearest = difflib.get_close_matches(str(name), list(shapes), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ParameterError(f"weight {name!r} is superfluous: the configuration has no such weight{hint}")
    for name, weight in weights.items():
        _require_weight_shape(name, np.shape(weight), np.asarray(weight).dtype == np.uint8, (shapes | optional)[name])


def _require_weight_shape(name: str, shape: tuple[int, ...], packed: bool, expected: tuple[int, ...]) -> None:
    if name.startswith("embedding.tables.") and len(shape) == 2:
        # Any height: which rows are used is up to the indices, and they are checked against it.
        expected = (shape[0], *expected[1:])
    if packed and len(expected) == 3:
        expected = (*expected[:-1], -(-expected[-1] // 4))
    if shape != expected:
        raise ShapeError(f"weight {name!r} has shape {list(shape)}: expected {list(expected)}")
