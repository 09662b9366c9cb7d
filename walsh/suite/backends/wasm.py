"""The engine as a backend: Rust compiled to WebAssembly, run by wasmtime.

It computes strict arithmetic, the integer packings, and in float32 what models with float activations need; everything
else is training's, which the engine does not do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from walsh import __version__
from walsh.engine.module import read_record
from walsh.engine.operations import Operations
from walsh.engine.ordinary import Ordinary
from walsh.errors import BackendError
from walsh.suite.backend import Skip, deliver
from walsh.suite.backends.calling import cache_sizes, invoke, run_script, split_params
from walsh.suite.catalog import CALLS, Call
from walsh.suite.tensors import Array

INTEGER_CALLS = (
    "pack_ternary",
    "unpack_ternary",
    "hash_indices",
    "uniform",
    "sample",
    "bitmask_encode",
    "bitmask_decode",
)
"""Calls on integers, which strict arithmetic needs no form of."""

FLOAT_CALLS = (
    "ternary",
    "quantize_activations",
    "fake_quantize_activations",
    "cayley_dickson_linear",
    "cayley_dickson_bit_linear",
    "hadamard_transform",
    "hadamard_linear",
    "hadamard_bit_linear",
    "head_mixer",
    "rms_norm",
    "rope",
    "attention",
    "swiglu",
    "embedding",
    "lm_head",
    "cross_entropy",
)
"""Ordinary calls that the engine computes, on float32 as models with float activations do."""


def _refusal(call: Call, inputs: Mapping[str, Array]) -> str | None:
    """Why the engine does not answer, None if it does."""
    if call.kind == "strict" or call.name in INTEGER_CALLS:
        return None
    if call.name not in FLOAT_CALLS:
        return "the engine does inference: this call belongs to training, or to weights that a file does not hold"
    for name, value in inputs.items():
        if value.dtype.name in ("float16", "bfloat16", "float64"):
            return f"{name} is {value.dtype}: the engine computes in float32"
    if "x" in inputs and inputs["x"].dtype.kind in "iu":
        return "x is integer: the engine rounds activations itself"
    if "x_scale" in inputs:
        return "x_scale: the engine rounds activations itself"
    return None


class WasmBackend:
    """The engine's operations, by its SIMD kernels.

    Args:
        device: ``cpu``, or None.
        scalar: run the engine's definitions instead.

    Raises:
        BackendError: for another device, or if wasmtime or the module is missing.
    """

    def __init__(self, device: str | None = None, scalar: bool = False) -> None:
        if device not in (None, "cpu"):
            raise BackendError(f"wasm: device {device!r}; WebAssembly runs on cpu only")
        self._operations = Operations(scalar=scalar)
        self._ordinary = Ordinary(self._operations)
        self._name = "wasm-scalar" if scalar else "wasm"

    def describe(self) -> dict[str, Any]:
        """Name, digest of the module, and the calls that it computes."""
        calls = [
            name for name, call in CALLS.items() if call.kind == "strict" or name in (*INTEGER_CALLS, *FLOAT_CALLS)
        ]
        version = f"{__version__} (module {read_record()['sha256'][:12]})"
        return {"name": self._name, "version": version, "own": True, "device": "cpu", "calls": calls}

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Run one call; see :class:`walsh.suite.backend.Backend`."""
        del op  # the call says it
        call, keywords = split_params(params)
        if reason := _refusal(call, inputs):
            return Skip(reason)
        if call.function == "kv_cache":
            results = self._run_cache(keywords, inputs)
        else:
            results = invoke(call, self._function(call), inputs, keywords, out)
        deliver({name: np.asarray(value) for name, value in results.items()}, out)
        return None

    def _function(self, call: Call) -> Callable[..., Any]:
        place = self._ordinary if call.name in FLOAT_CALLS else self._operations
        function: Callable[..., Any] = getattr(place, call.function)
        return function

    def _run_cache(self, keywords: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, Array]:
        cache = self._operations.cache(*cache_sizes(keywords, inputs))
        final, outputs = run_script(
            cache, self._operations.attention, keywords["script"], inputs, lambda rows: np.array(rows, dtype=np.int64)
        )
        results = {"lengths": final.lengths, **outputs}
        cache.close()
        if final is not cache:
            final.close()
        return results

    def close(self) -> None:
        """Nothing to let go of but memory."""
