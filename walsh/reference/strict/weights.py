"""Names, shapes and dtypes of strict weights (SPEC.md, *forward* and the end of *Strict arithmetic*).

They follow from the ordinary weights of the configuration: a rounded ``X.weight`` becomes int8 ``X.codes``, with
float32 ``X.scale`` where its codes are not ternary. Works on whatever has ``shape`` and ``dtype``: the PyTorch package
checks its tensors here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from walsh.errors import DTypeError, ParameterError, ShapeError, StrictError
from walsh.reference.config import LINEARS, complete_config, weight_shapes

Shape = tuple[int, ...]


def strict_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its defaults, if strict arithmetic can have it.

    Raises:
        ParameterError: for a configuration that is wrong.
        StrictError: for one without int8 activations or without ternary weights.
    """
    complete = complete_config(config)
    if complete["activation_bits"] is None:
        raise StrictError("activation_bits is null: strict arithmetic needs int8 activations; train with 8")
    if not complete["ternary"]:
        raise StrictError("ternary is false: strict arithmetic needs ternary weights; train with true")
    return complete


def rounding(name: str) -> str | None:
    """How the ordinary weight of this name is rounded: "ternary", "column" (mixers), "row" (tables), or None."""
    stem = name.removesuffix(".weight")
    if stem.endswith(LINEARS) and stem != name:
        return "ternary"
    if name.endswith(".mixer.weight"):
        return "column"
    table = name.startswith("embedding.tables.") or name in ("embedding.weight", "head.weight")
    return "row" if table else None


def strict_weight_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Shape of every weight that a strict model of this configuration has.

    ``embedding.indices`` [V, tables] may be added to a hash embedding, whose tables may then be of any height; the
    heights given here are those that ``hash_indices`` needs.

    Args:
        config: as ``forward`` takes it.

    Returns:
        Shapes by name, in the order of the forward pass.

    Raises:
        ParameterError, StrictError: for a configuration that is wrong, or that strict arithmetic cannot have.
    """
    config = strict_config(config)
    shapes: dict[str, Shape] = {"rope.inv_freq": (config["n_embd"] // config["n_head"] // 2,)}
    for name, shape in weight_shapes(config).items():
        stem, kind = name.removesuffix(".weight"), rounding(name)
        if kind is None:
            shapes[name] = shape
            continue
        shapes[f"{stem}.codes"] = shape
        if kind != "ternary":
            shapes[f"{stem}.scale"] = shape[-1:] if kind == "column" else shape[:1]
    return shapes


def strict_weight_dtype(name: str) -> str:
    """The dtype of a strict weight: int8 codes, float64 frequencies, int64 indices, float32 for the rest."""
    if name == "embedding.indices":
        return "int64"
    if name == "rope.inv_freq":
        return "float64"
    return "int8" if name.endswith(".codes") else "float32"


def check_weights(weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise unless these are the weights of a strict model of this configuration.

    Raises:
        ParameterError: for a missing or superfluous weight, which it names.
        DTypeError, ShapeError: for one that is not what the configuration says.
    """
    shapes = strict_weight_shapes(config)
    if config.get("hash_embeddings") and "embedding.indices" in weights:
        shapes["embedding.indices"] = shapes["embedding.importance"]
    if missing := [name for name in shapes if name not in weights]:
        raise ParameterError(f"weight {missing[0]!r} is missing ({len(missing)} in all); make weights with `export`")
    if unknown := [name for name in weights if name not in shapes]:
        raise ParameterError(f"weight {unknown[0]!r} is superfluous ({len(unknown)} in all); remove it")
    for name, shape in shapes.items():
        dtype, found = str(weights[name].dtype).removeprefix("torch."), tuple(weights[name].shape)
        if dtype != strict_weight_dtype(name):
            raise DTypeError(f"weight {name!r} is {dtype}: expected {strict_weight_dtype(name)}; use `export`")
        expected = shape
        if name.startswith("embedding.tables."):  # any height: indices say what is used, and they are checked
            height = tuple(weights[f"{name.rpartition('.')[0]}.codes"].shape)[:1]
            expected = (*height, *shape[1:])
        if found != expected:
            raise ShapeError(f"weight {name!r} has shape {list(found)}: expected {list(expected)}")


def hash_parts(weights: Mapping[str, Any], tables: int) -> tuple[list[Any], list[Any], Any, Any]:
    """(tables, scales, importance, indices or None) of a hash embedding, as its functions take them."""
    codes = [weights[f"embedding.tables.{i}.codes"] for i in range(tables)]
    scales = [weights[f"embedding.tables.{i}.scale"] for i in range(tables)]
    return codes, scales, weights["embedding.importance"], weights.get("embedding.indices")
