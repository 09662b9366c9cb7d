"""Small cases from the list that conformance runs: for each op the largest rounded or exact vector, with other values.

At these sizes nothing but the fixed cost of a call counts, so the baseline is the definition in NumPy: a kernel that is
slower than that spends its time on the way to its work. Floats are drawn anew each round; whole numbers (ids, targets,
codes) are the vector's own.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch

from walsh.measure.case import Case, Inputs, Provider, Setting, Work
from walsh.suite.backends.calling import find_function, invoke
from walsh.suite.schema import locate_data
from walsh.suite.vectors import Case as Vector
from walsh.suite.vectors import ExpectedError, decode_params, load_suite

LANES = ("rounded", "exact")
SIZES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}
TOLERANCE = 1e-3


def _elements(vector: Vector) -> int:
    return sum(int(np.prod(spec["shape"])) for spec in vector.inputs.values())


@cache
def choose_vector(op: str) -> Vector | None:
    """The largest ordinary float32 vector of an op, if it has one."""
    fitting = [
        vector
        for vector in load_suite(locate_data()).cases
        if vector.op == op
        and vector.call.kind == "ordinary"
        and vector.call.function != "kv_cache"
        and vector.lane in LANES
        and not isinstance(vector.expected, ExpectedError)
        and any(spec["dtype"] == "float32" for spec in vector.inputs.values())
        and not any(spec["dtype"] in ("bfloat16", "float16") for spec in vector.inputs.values())
    ]
    return max(fitting, key=lambda vector: (_elements(vector), vector.name), default=None)


def vector_case(setting: Setting, op: str) -> Case | None:
    """The small case of an op; None on a GPU, or where no vector fits."""
    vector = choose_vector(op) if setting.device == "cpu" else None
    if vector is None:
        return None
    keywords = {key: value for key, value in decode_params(vector.params).items() if key != "call"}
    original = {name: np.array(value) for name, value in vector.load_inputs().items()}

    def fresh(seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        values = {}
        for name, value in original.items():
            if value.dtype.kind == "f":
                scale = float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) if value.size else 1.0
                value = (random.standard_normal(value.shape) * scale).astype(value.dtype)
            values[name] = value
        return {"numpy": values, "torch": {name: torch.from_numpy(value) for name, value in values.items()}}

    def call(package: str, kind: str) -> Any:
        function = find_function(vector.call, importlib.import_module(package))
        return lambda inputs: invoke(vector.call, function, inputs[kind], keywords, vector.outputs)

    definition = call("walsh.reference", "numpy")

    def check(inputs: Inputs, output: dict[str, Any], _: int) -> float:
        expected = definition(inputs)
        return max(_share(output[name], expected[name]) for name in vector.outputs)

    moved = sum(int(np.prod(s["shape"])) * SIZES.get(s["dtype"], 4) for s in vector.inputs.values())
    moved += sum(int(np.prod(o.shape)) * SIZES.get(o.dtype, 4) for o in vector.outputs.values())
    return Case(
        op=op,
        name=f"{op}/vector/{vector.name.partition('/')[2]}",
        shape={"elements": _elements(vector)},
        dtype="float32",
        work=Work(0, moved),
        fresh=fresh,
        check=check,
        providers=(
            Provider("NumPy definition", definition),
            Provider("walsh torch", call("walsh.kernels.torch", "torch"), "torch"),
        ),
        warm=True,
    )


def _share(found: Any, expected: Any) -> float:
    """Error as a share of what is allowed: whole numbers may be off by one where float32 decides a rounding."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return float("nan")
    error = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    if expected.dtype.kind in "iu":
        return error
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) if expected.size else 1.0
    return error / (TOLERANCE * (scale or 1.0))
