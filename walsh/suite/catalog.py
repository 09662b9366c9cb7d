"""The calls that conformance vectors can make: one description of every function's arguments and results.

A call is a function of a backend by the name that SPEC.md gives it. From one entry follow its ordinary form, its strict
form (``NAME.strict``) and its gradient (``NAME.backward``). Generator, adapters, runner and documentation read this
table, so that a signature is written once.

Inputs with a dot in their name are members of a container argument: ``tables.0`` and ``tables.1`` make the list
``tables``, ``weights.norm.weight`` the entry ``norm.weight`` of the mapping ``weights``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from walsh.errors import ParameterError


@dataclass(frozen=True)
class Call:
    """One function that vectors call.

    Attributes:
        name: as vectors write it, such as ``rms_norm``, ``rms_norm.strict`` or ``rms_norm.backward``.
        op: the room it belongs to, such as ``rms_norm``.
        function: the Python name, without suffix.
        kind: ``ordinary``, ``strict`` or ``backward``.
        args: tensor arguments in positional order; a container counts as one.
        optional: those of ``args`` that may be absent (None).
        outputs: names of the results in order. A container result is named by its prefix.
        params: names of the keyword parameters that it takes.
    """

    name: str
    op: str
    function: str
    kind: str
    args: tuple[str, ...]
    optional: frozenset[str]
    outputs: tuple[str, ...]
    params: tuple[str, ...]


def _define(op: str, name: str, args: str, outputs: str, params: str = "", grads: str = "") -> list[Call]:
    """Entries for one signature: ``args`` with a ``?`` after optional ones, ``grads`` the differentiable ones."""
    function, _, kind = name.partition(".")
    names = tuple(arg.rstrip("?") for arg in args.split())
    optional = frozenset(arg[:-1] for arg in args.split() if arg.endswith("?"))
    results, keywords = tuple(outputs.split()), tuple(params.split())
    calls = [Call(name, op, function, kind or "ordinary", names, optional, results, keywords)]
    if grads:
        upstream = tuple("d" + output for output in results)
        gradients = tuple("d" + grad for grad in grads.split())
        calls.append(
            Call(name + ".backward", op, function, "backward", names + upstream, optional, gradients, keywords)
        )
    return calls


_SAMPLING = "temperature top_k top_p repetition_penalty"

_TABLE: tuple[list[Call], ...] = (
    _define("ternary", "ternary", "w", "q gamma", "rule"),
    _define("ternary", "ternary_ste", "w", "q", "rule ste_clip", "w"),
    _define("ternary", "pack_ternary", "q", "packed"),
    _define("ternary", "unpack_ternary", "packed", "q", "k"),
    _define("activations", "quantize_activations", "x", "a scale"),
    _define("activations", "fake_quantize_activations", "x", "v", "", "x"),
    _define("activations", "quantize_activations.strict", "x", "a r"),
    _define("cayley_dickson", "cayley_dickson_linear", "x w beta? x_scale?", "y", "", "x w beta"),
    _define(
        "cayley_dickson",
        "cayley_dickson_bit_linear",
        "x w beta?",
        "y",
        "activation_bits rule ste_clip",
        "x w beta",
    ),
    _define("cayley_dickson", "cayley_dickson_linear.strict", "x codes beta", "y"),
    _define("hadamard", "hadamard_transform", "x", "y", "normalize", "x"),
    _define("hadamard", "hadamard_linear", "x w alpha? beta?", "y", "", "x w alpha beta"),
    _define(
        "hadamard",
        "hadamard_bit_linear",
        "x w alpha? beta?",
        "y",
        "activation_bits rule ste_clip",
        "x w alpha beta",
    ),
    _define("hadamard", "hadamard_transform.strict", "x", "y"),
    _define("hadamard", "hadamard_linear.strict", "x codes alpha beta", "y"),
    _define("head_mixer", "head_mixer", "x w beta?", "y", "algebra", "x w beta"),
    _define("head_mixer", "head_mixer.strict", "x codes scale beta", "y", "algebra"),
    _define("rms_norm", "rms_norm", "x weight", "y", "eps", "x weight"),
    _define("rms_norm", "rms_norm.strict", "x weight", "y"),
    _define("rope", "rope", "x positions?", "y", "theta", "x"),
    _define("rope", "rope.strict", "x inv_freq positions", "y"),
    _define("attention", "attention", "q k v positions?", "o", "", "q k v"),
    _define("attention", "attention.strict", "q k v positions?", "o"),
    _define("kv_cache", "kv_cache", "k v q?", "keys values lengths o", "script capacity"),
    _define("kv_cache", "kv_cache.strict", "k v q?", "lengths o", "script capacity"),
    _define("swiglu", "swiglu", "gate up", "h", "", "gate up"),
    _define("swiglu", "swiglu.strict", "gate up", "h"),
    _define("swiglu", "exp.strict", "x", "y"),
    _define("embedding", "embedding", "ids table", "e", "", "table"),
    _define("embedding", "embedding.strict", "ids codes scale", "e"),
    _define("embedding", "hash_indices", "ids", "indices", "tables"),
    _define("embedding", "hash_embedding", "ids tables importance indices?", "e", "scale", "tables importance"),
    _define("embedding", "hash_embedding.strict", "ids tables scales importance indices?", "e", "scale"),
    _define("embedding", "lm_head", "x table", "logits", "", "x table"),
    _define("embedding", "lm_head.strict", "x codes scale", "logits"),
    _define("embedding", "hash_lm_head", "x tables importance indices?", "logits", "", "x tables importance"),
    _define("embedding", "hash_lm_head.strict", "x tables scales importance indices?", "logits"),
    _define("cross_entropy", "cross_entropy", "logits targets", "loss", "", "logits"),
    _define("cross_entropy", "linear_cross_entropy", "x table targets", "loss", "chunk_size", "x table"),
    _define("sampling", "uniform", "seed position", "u"),
    _define("sampling", "sample", "logits history? seed? position?", "ids", _SAMPLING),
    _define("bitmask", "bitmask_encode", "q", "mask signs"),
    _define("bitmask", "bitmask_decode", "mask signs", "q", "shape"),
    _define("forward", "forward", "ids weights", "logits probes", "config"),
    _define("forward", "forward.strict", "ids weights", "logits probes", "config"),
    _define("forward", "generate.strict", "ids weights seed?", "tokens", f"config max_new_tokens {_SAMPLING}"),
    [
        Call(
            "forward.backward",
            "forward",
            "forward",
            "backward",
            ("ids", "weights", "targets"),
            frozenset(),
            ("loss", "dweights"),
            ("config",),
        )
    ],
)

CALLS: dict[str, Call] = {call.name: call for entry in _TABLE for call in entry}
"""Every call by its name."""

OPS: tuple[str, ...] = tuple(dict.fromkeys(call.op for call in CALLS.values()))
"""The rooms, in the order of SPEC.md."""

LANES: tuple[str, ...] = (
    "exact",
    "rounded",
    "transcendental",
    "strict",
    "choice",
    "gradient",
    "invalid",
    "end_to_end",
)
"""The lanes, in the order in which reports show them."""


def find_call(name: str) -> Call:
    """The call of this name.

    Raises:
        ParameterError: if there is none.
    """
    try:
        return CALLS[name]
    except KeyError:
        raise ParameterError(f"call {name!r} is not in the catalogue; known: {', '.join(sorted(CALLS))}") from None


def nest(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Gather dotted names into containers: all-integer members make a list, others a mapping.

    ``{"x": 1, "tables.0": 2, "tables.1": 3}`` becomes ``{"x": 1, "tables": [2, 3]}``.
    """
    nested: dict[str, Any] = {}
    for name, value in tensors.items():
        prefix, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(prefix, {})[rest] = value
        else:
            nested[name] = value
    for name, value in nested.items():
        if isinstance(value, dict) and all(key.isdecimal() for key in value):
            nested[name] = [value[str(i)] for i in range(len(value))]
    return nested


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`nest`; absent (None) members are left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": member for key, member in value.items() if member is not None})
        elif isinstance(value, list):
            flat.update({f"{name}.{i}": member for i, member in enumerate(value) if member is not None})
        elif value is not None:
            flat[name] = value
    return flat
