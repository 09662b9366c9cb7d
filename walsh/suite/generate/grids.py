"""Proof that an exact vector is exact: every partial sum, in any order, is a whole number of grid units below 2^24.

Inputs are multiples of a power of two (`numbers.unit`); products are multiples of the product of the units; a sum of
products, whatever its order and grouping, stays below the sum of the absolute products. While that is at most 2^24
units (2^53 for float64), no float32 (float64) addition rounds. For fast bilinear forms of the Cayley-Dickson product
the output transform holds up to D times the norm-wise magnitude, so D times as much is charged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from walsh.errors import VectorError
from walsh.suite.generate.bounds import FAST_FROM, unpacked
from walsh.suite.generate.numbers import unit
from walsh.suite.generate.propagation import BOUNDS
from walsh.suite.tensors import Array, is_float

CAPACITY = {"float64": 2.0**53, "float32": 2.0**24}
"""Units that an accumulator of this dtype holds exactly."""

GRIDS: dict[str, dict[str, str]] = {
    "cayley_dickson_linear": {"y": "x w beta"},
    "cayley_dickson_linear.backward": {"dx": "dy w beta", "dw": "dy x beta", "dbeta": "dy x w"},
    "cayley_dickson_bit_linear": {"y": "x beta"},
    "cayley_dickson_bit_linear.backward": {"dx": "dy beta", "dw": "dy x beta", "dbeta": "dy x"},
    "hadamard_transform": {"y": "x"},
    "hadamard_transform.backward": {"dx": "dy"},
    "hadamard_linear": {"y": "x w alpha beta"},
    "hadamard_linear.backward": {
        "dx": "dy w alpha beta",
        "dw": "dy x alpha beta",
        "dalpha": "dy w x beta",
        "dbeta": "dy x w alpha",
    },
    "hadamard_bit_linear": {"y": "x alpha beta"},
    "hadamard_bit_linear.backward": {
        "dx": "dy alpha beta",
        "dw": "dy x alpha beta",
        "dalpha": "dy x beta",
        "dbeta": "dy x alpha",
    },
    "head_mixer": {"y": "x w beta"},
    "head_mixer.backward": {"dx": "dy w beta", "dw": "dy x beta", "dbeta": "dy x w"},
    "embedding.backward": {"dtable": "de"},
    "hash_embedding": {"e": "tables importance"},
    "hash_embedding.backward": {"dtables": "de importance", "dimportance": "de tables"},
    "lm_head": {"logits": "x table"},
    "lm_head.backward": {"dx": "dlogits table", "dtable": "dlogits x"},
    "hash_lm_head": {"logits": "x tables importance"},
    "hash_lm_head.backward": {
        "dx": "dlogits tables importance",
        "dtables": "dlogits x importance",
        "dimportance": "dlogits x tables",
    },
}
"""Inputs whose units multiply to the unit of an output; absent ones count 1. Integer codes have unit 1."""


def _norms(call: str, inputs: Mapping[str, Array], params: Mapping[str, Any]) -> float:
    """The powers of 1/sqrt(n) that the magnitude of a Hadamard call holds, and the scale of a hash embedding."""
    if call.startswith("hash_embedding"):
        return abs(float(params.get("scale", 1.0)))
    if call.startswith("hadamard_transform"):
        return 1 / math.sqrt(next(iter(inputs.values())).shape[-1]) if params.get("normalize", True) else 1.0
    mixer = call.startswith("head_mixer") and params.get("algebra") == "hadamard"
    if call.startswith(("hadamard_linear", "hadamard_bit_linear")) or mixer:
        # Every sum passes both transforms.
        return 1 / int(inputs["w"].shape[0])
    return 1.0


def grids(call: str, params: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, float]:
    """Grid unit of every head of an output; empty for calls that are no sums of products."""
    units: dict[str, float] = {}
    for name, array in inputs.items():
        head = name.partition(".")[0]
        values = unpacked(array, 4 * array.shape[-1]) if array.dtype == np.uint8 and head == "w" else array
        units[head] = min(units.get(head, math.inf), unit(values))
    result = {}
    for output, names in GRIDS.get(call, {}).items():
        grid = math.prod(units.get(name, 1.0) for name in names.split()) * _norms(call, inputs, params)
        result[output] = grid / float(np.max(inputs["x_scale"])) if "x_scale" in inputs else grid
    return result


def reach(call: str, params: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, float]:
    """Largest possible partial sum of every output, in grid units; empty for calls that are no sums of products."""
    if call not in GRIDS:
        return {}
    grid, fast = grids(call, params, inputs), _fast(call, params, inputs)
    bounds = BOUNDS[call](inputs, params)
    return {
        name: float(size.max(initial=0.0)) / grid[name.partition(".")[0]] * fast for name, (size, _) in bounds.items()
    }


def _fast(call: str, params: Mapping[str, Any], inputs: Mapping[str, Array]) -> int:
    """What the output transform of a fast product multiplies magnitudes by."""
    signed = call.startswith("cayley_dickson") or (
        call.startswith("head_mixer") and params.get("algebra") != "hadamard"
    )
    dimension = int(inputs["w"].shape[0]) if signed else 1
    return dimension if dimension >= FAST_FROM else 1


def accumulator(inputs: Mapping[str, Array]) -> str:
    """``float64`` if an input is, else ``float32``: 16-bit dtypes accumulate in float32."""
    return "float64" if any(array.dtype == np.float64 for array in inputs.values()) else "float32"


def ambiguous_zeros(
    call: str, params: Mapping[str, Any], inputs: Mapping[str, Array], results: Mapping[str, Array]
) -> bool:
    """Whether a zero among the results could honestly be -0.

    Non-zero terms that cancel give +0 in any order. A sum of zero terms only is -0 where all of them are, and a fast
    Cayley-Dickson product multiplies its sums by -1. Untouched rows of an embedding's gradient are never summed.
    """
    if call not in GRIDS or call in ("embedding.backward", "hash_embedding.backward"):
        return False
    signed = call.startswith("cayley_dickson") or (
        call.startswith("head_mixer") and params.get("algebra") != "hadamard"
    )
    bounds = BOUNDS[call](inputs, params)
    for name, value in results.items():
        if is_float(value.dtype) and name in bounds:
            zero = value == 0
            if bool((zero if signed else zero & (np.broadcast_to(bounds[name][0], value.shape) == 0)).any()):
                return True
    return False


def check_exact(
    where: str, call: str, params: Mapping[str, Any], inputs: Mapping[str, Array], results: Mapping[str, Array]
) -> None:
    """Refuse an exact vector that an honest backend could miss.

    Raises:
        VectorError: if a partial sum could round, or an int32 result overflows.
    """
    for name, value in results.items():
        if value.dtype == np.int32 and np.abs(value.astype(np.int64)).max(initial=0) > 2**30:
            raise VectorError(f"{where}: {name} comes close to the range of int32")
    floating = {name for name, value in results.items() if is_float(value.dtype)}
    if ambiguous_zeros(call, params, inputs, results):
        raise VectorError(f"{where}: a zero of ambiguous sign; draw other inputs, or move the case to lane rounded")
    limit = CAPACITY[accumulator(inputs)]
    for name, units in reach(call, params, inputs).items():
        if name in floating and units > limit:
            raise VectorError(f"{where}: {name} may reach {units:g} grid units, at most {limit:g} are exact")
    for name, grid in grids(call, params, inputs).items():
        for output in floating:
            if output.partition(".")[0] == name and (np.rint(results[output] / grid) * grid != results[output]).any():
                raise VectorError(f"{where}: {output} is not on its grid of {grid:g}; a step before it rounds")
