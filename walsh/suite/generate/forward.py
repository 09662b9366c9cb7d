"""Vectors of *forward*: whole models, their probes, their gradients, and generation to the token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from walsh.suite.catalog import CALLS
from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group
from walsh.suite.generate.models import MODELS, config_of, named, settle, strict_weights_of, weights_of
from walsh.suite.generate.numbers import Draw, filled
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _end_to_end()
    yield _tokens()
    yield _strict()
    yield _generate()
    yield _gradient()
    yield from _invalid()


def ids_of(draw: Draw, batch: int, tokens: int, vocabulary: int = 13) -> Array:
    """Token ids; the first and the last of the vocabulary are among them."""
    ids = draw.integers("ids", (batch, tokens), 0, vocabulary - 1)
    ids[0, 0] = vocabulary - 1
    ids[-1, -1] = 0
    return ids


def model(
    draw: Draw, config: dict[str, Any], dtype: str = "float32", batch: int = 2, tokens: int = 4, **settings: Any
) -> dict[str, Array]:
    """Ids and weights as flat inputs."""
    return {"ids": ids_of(draw, batch, tokens), **named(weights_of(draw, config, dtype, **settings))}


GAIN = 6.0
"""On every beta of the models that generate."""

ALL_PROBES = "logits within a conditioned bound, and a probe after the embedding and after every block"


def _end_to_end() -> Group:
    """Logits and probes of ordinary arithmetic."""
    group = Group("forward", "end-to-end", "end_to_end", "forward")
    for name in MODELS:
        config = config_of(name, activation_bits=None)
        _add_model(group, name, ALL_PROBES, config)
    _add_model(
        group, "plain", "weights that are not ternary", config_of("octonion", ternary=False, activation_bits=None)
    )
    _add_model(group, "float64", "float64", config_of("quaternion", activation_bits=None), dtype="float64", tokens=3)
    for name in ("dense", "octonion", "hadamard"):
        config = config_of(name, n_layer=1)
        _add_model(group, f"{name}-int8", "int8 activations, clear of ties in every layer", config, batch=1, tokens=2)
    config = config_of("quaternion", activation_bits=None, rule="round")
    _add_model(group, "one-token", "one token, rule round", config, batch=1, tokens=1)
    config = config_of("hash-2", activation_bits=None)
    _add_model(group, "hash-default", "indices by the hash", config, indices=False)
    return group


def _add_model(group: Group, name: str, comment: str, config: dict[str, Any], **settings: Any) -> None:
    label = f"{group.op}/{group.name}/{name}"
    inputs, bounds = settle(label, CALLS["forward"], {"config": config}, lambda draw: model(draw, config, **settings))
    group.add(name, comment, inputs, bounded=bounds, config=config, flags=[f.WRONG_LAYER, f.FUTURE])


def _prompted(
    draw: Draw, config: dict[str, Any], batch: int, tokens: int, gain: float = 1.0, **settings: Any
) -> dict[str, Array]:
    """Prompts and strict weights; a gain on every beta lets the layers decide the token, not the embedding's echo."""
    weights = strict_weights_of(draw, config, **settings)
    weights |= {name: array * np.float32(gain) for name, array in weights.items() if name.endswith(".beta")}
    return {"ids": ids_of(draw, batch, tokens), **named(weights)}


def _tokens() -> Group:
    """Prompt in, tokens out."""
    group = Group("forward", "end-to-end-tokens", "end_to_end", "generate.strict")
    for name in ("octonion-mixed", "hadamard-mixed"):
        config = config_of(name, block_size=72)
        inputs = _prompted(group.draw(name), config, 1, 8, GAIN)
        group.add(
            name,
            "64 greedy tokens after a prompt of 8",
            inputs,
            config=config,
            max_new_tokens=64,
            flags=[f.PROMPT_SPLIT, f.LOWEST_ID],
        )
    return group


def _strict() -> Group:
    group = Group("forward", "strict-logits", "strict", "forward.strict")
    for name in MODELS:
        config = config_of(name)
        inputs = _prompted(group.draw(name), config, 2, 5)
        group.add(
            name, "logits and probes to the bit", inputs, config=config, flags=[f.WRONG_LAYER, f.FUSED_MULTIPLY_ADD]
        )
    config = config_of("hash-2")
    group.add(
        "hash-default",
        "indices by the hash",
        _prompted(group.draw("default"), config, 1, 4, indices=False),
        config=config,
        flags=[f.HASH_COLLAPSE],
    )
    config = config_of("dense", block_size=40, n_layer=1)
    group.add(
        "blocks",
        "more positions than one block of 32",
        _prompted(group.draw("blocks"), config, 1, 40),
        config=config,
        flags=[f.SUM_ORDER],
    )
    config = config_of("quaternion", n_layer=1)
    group.add(
        "one-token",
        "one token of one sequence",
        _prompted(group.draw("one"), config, 1, 1),
        config=config,
        flags=[f.SMOKE],
    )
    return group


def _generate() -> Group:
    group = Group("forward", "strict-tokens", "strict", "generate.strict")
    for name in ("dense", "quaternion-mixed", "sedenion", "hash-2", "hash-3", "untied"):
        config = config_of(name)
        group.add(
            f"{name}-greedy",
            "greedy tokens of two sequences",
            _prompted(group.draw(name), config, 2, 4, GAIN),
            config=config,
            max_new_tokens=12,
            flags=[f.PROMPT_SPLIT, f.CACHE_ROW_0],
        )
    for name in ("octonion-mixed", "hadamard-mixed"):
        config = config_of(name, block_size=72)
        inputs = _prompted(group.draw(name), config, 1, 8, GAIN)
        group.add(
            f"{name}-sampled",
            "64 sampled tokens: temperature, top_k, top_p and penalty",
            {**inputs, "seed": np.array(2026)},
            config=config,
            max_new_tokens=64,
            temperature=0.9,
            top_k=8,
            top_p=0.95,
            repetition_penalty=1.1,
            flags=[f.PROMPT_SPLIT, f.PENALTY_TWICE, f.SEED_64],
        )
    config = config_of("octonion", n_layer=1)
    inputs = _prompted(group.draw("seeds"), config, 3, 3, GAIN)
    inputs["ids"][:] = inputs["ids"][:1]
    group.add(
        "seeds",
        "one prompt, three seeds, three continuations",
        {**inputs, "seed": np.array([1, 2, -3])},
        config=config,
        max_new_tokens=10,
        temperature=1.0,
        flags=[f.SEED_64, f.CACHE_ROW_0],
    )
    single = {**inputs, "ids": inputs["ids"][0]}
    group.add(
        "one-prompt", "ids [T] give tokens [1, N]", single, config=config, max_new_tokens=5, flags=[f.LEADING_AXES]
    )
    group.add(
        "none", "no tokens are asked for", single, config=config, max_new_tokens=0, flags=[f.EMPTY_BATCH, f.TOP_EDGES]
    )
    full = {**inputs, "ids": np.tile(inputs["ids"][:1, :2], (1, 7))}
    group.add(
        "to-the-end",
        "up to the last position of the block",
        full,
        config=config,
        max_new_tokens=2,
        flags=[f.PROMPT_SPLIT],
    )
    return group


def _gradient() -> Group:
    group = Group("forward", "gradient", "gradient", "forward.backward")
    for name in MODELS:
        config = config_of(name, activation_bits=None, n_layer=1)
        _add_gradient(group, name, "the loss and the gradient of every weight", config)
    _add_gradient(
        group,
        "plain",
        "weights that are not ternary",
        config_of("octonion", ternary=False, activation_bits=None, n_layer=1),
    )
    _add_gradient(group, "two-layers", "two blocks", config_of("quaternion", activation_bits=None))
    clipped = config_of("hadamard", activation_bits=None, n_layer=1, ste_clip=0.75)
    _add_gradient(group, "clip", "a straight-through clip", clipped)
    _add_gradient(group, "int8", "int8 activations", config_of("octonion", n_layer=1), tokens=2)
    return group


def _with_targets(draw: Draw, config: dict[str, Any], tokens: int = 3) -> dict[str, Array]:
    inputs = model(draw, config, batch=1, tokens=tokens)
    inputs["ids"][0] = np.array([12, 0, 12])[:tokens]
    targets = np.array([[7, -1, 3]])[:, -tokens:]
    return {**inputs, "targets": targets}


def _add_gradient(group: Group, name: str, comment: str, config: dict[str, Any], tokens: int = 3) -> None:
    label = f"{group.op}/{group.name}/{name}"
    inputs, bounds = settle(
        label, CALLS["forward.backward"], {"config": config}, lambda draw: _with_targets(draw, config, tokens)
    )
    group.add(
        name,
        comment,
        inputs,
        bounded=bounds,
        config=config,
        flags=[f.GRAD_COMPONENT, f.WRONG_BACKWARD_TABLE, f.IGNORED_TARGET, f.DUPLICATE_IDS],
    )


def _invalid() -> Iterator[Group]:
    group = Group("forward", "invalid", "invalid", "forward")
    config = config_of("octonion-mixed", n_layer=1, activation_bits=None)
    good = model(group.draw("good"), config, batch=1, tokens=2)
    without = {name: array for name, array in good.items() if name != "weights.blocks.0.ffn.gate.beta"}
    group.add(
        "missing-weight",
        "a weight is missing",
        without,
        error="ParameterError",
        config=config,
        flags=[f.SILENT_DEFAULT],
    )
    group.add(
        "superfluous-weight",
        "a weight that no layer takes",
        {**good, "weights.blocks.1.ffn.gate.beta": filled((6,), 1.0)},
        error="ParameterError",
        config=config,
        flags=[f.SILENT_DEFAULT],
    )
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("unknown-key", "a key that is not known", {"n_layers": 2}),
        ("algebra", "an unknown algebra", {"algebra": "octonions"}),
        ("activation-bits", "8 or null", {"activation_bits": 4}),
        ("hash-embeddings", "0, 2 or 3", {"hash_embeddings": 1}),
        ("hash-scale", "a scale without hash embeddings", {"hash_scale": True}),
        ("width", "a width that is no multiple of the dimension", {"n_embd": 20}),
        ("dense-mixing", "real numbers mix no heads", {"algebra": "dense"}),
    ]
    for name, comment, change in changes:
        group.add(name, comment, good, error="ParameterError", config={**config, **change}, flags=[f.SILENT_DEFAULT])
    missing = {key: value for key, value in config.items() if key != "n_head"}
    group.add("missing-key", "a key that has no default", good, error="ParameterError", config=missing)
    shape = {**good, "weights.norm.weight": filled((15,), 1.0)}
    group.add(
        "weight-shape", "a weight of another shape", shape, error="ShapeError", config=config, flags=[f.BROADCAST]
    )
    group.add("id", "an id from V up", {**good, "ids": np.array([[0, 13]])}, error="RangeError", config=config)
    group.add("id-float", "ids are integers", {**good, "ids": filled((1, 2), 0.0)}, error="DTypeError", config=config)
    group.add("rank", "ids are [B, T]", {**good, "ids": np.array([0, 1])}, error="ShapeError", config=config)
    group.add(
        "too-long",
        "more tokens than the block",
        {**good, "ids": np.zeros((1, 17), dtype=np.int64)},
        error="CapacityError",
        config=config,
    )
    nan = good["weights.blocks.0.ffn.up.weight"].copy()
    nan[3, 1, 0] = np.nan
    group.add(
        "nan-weight",
        "a ternary weight that is not finite",
        {**good, "weights.blocks.0.ffn.up.weight": nan},
        error="NonFiniteError",
        config=config,
    )
    yield group
    gradient = Group("forward", "invalid-gradient", "invalid", "forward.backward")
    targets = np.array([[1, 2]])
    gradient.add("target", "a target from V up", {**good, "targets": targets + 11}, error="RangeError", config=config)
    gradient.add(
        "targets-shape",
        "a target for each token",
        {**good, "targets": targets[:, :1]},
        error="ShapeError",
        config=config,
    )
    yield gradient
    yield from _invalid_strict()


def _invalid_strict() -> Iterator[Group]:
    strict = Group("forward", "invalid-strict", "invalid", "forward.strict")
    config = config_of("octonion-mixed", n_layer=1)
    good = _prompted(strict.draw("good"), config, 1, 2)
    strict.add(
        "activation-bits",
        "strict arithmetic needs int8 activations",
        good,
        error="StrictError",
        config={**config, "activation_bits": None},
    )
    strict.add(
        "ternary",
        "strict arithmetic needs ternary weights",
        good,
        error="StrictError",
        config={**config, "ternary": False},
    )
    without = {name: array for name, array in good.items() if name != "weights.rope.inv_freq"}
    strict.add(
        "missing-frequencies",
        "frequencies are weights",
        without,
        error="ParameterError",
        config=config,
        flags=[f.SILENT_DEFAULT],
    )
    wide = {**good, "weights.norm.weight": good["weights.norm.weight"].astype(np.float64)}
    strict.add("float64-norm", "strict arithmetic is float32", wide, error="DTypeError", config=config)
    strict.add(
        "codes-shape",
        "codes of another shape",
        {**good, "weights.blocks.0.mixer.codes": filled((8, 2, 3), 1, "int8")},
        error="ShapeError",
        config=config,
    )
    strict.add(
        "too-long",
        "more tokens than the block",
        {**good, "ids": np.zeros((1, 17), dtype=np.int64)},
        error="CapacityError",
        config=config,
    )
    strict.add("id", "a negative id", {**good, "ids": np.array([[-1, 0]])}, error="RangeError", config=config)
    yield strict
    tokens = Group("forward", "invalid-tokens", "invalid", "generate.strict", {"max_new_tokens": 4})
    tokens.add(
        "too-many",
        "prompt and new tokens exceed the block",
        good,
        error="CapacityError",
        config=config,
        max_new_tokens=20,
    )
    tokens.add(
        "empty-prompt",
        "nothing to continue",
        {**good, "ids": np.zeros((1, 0), dtype=np.int64)},
        error="ShapeError",
        config=config,
    )
    tokens.add(
        "negative", "a negative number of tokens", good, error="ParameterError", config=config, max_new_tokens=-1
    )
    tokens.add("temperature", "a negative temperature", good, error="ParameterError", config=config, temperature=-1.0)
    tokens.add(
        "activation-bits",
        "strict arithmetic needs int8 activations",
        good,
        error="StrictError",
        config={**config, "activation_bits": None},
    )
    yield tokens
