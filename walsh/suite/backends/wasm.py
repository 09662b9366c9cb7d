"""The engine as a backend: Rust compiled to WebAssembly, run by wasmtime.

It computes strict arithmetic, what is exact on integers, and ordinary arithmetic in float32. Gradients are training's,
which the engine does not do, and neither does it know other float dtypes.
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
from walsh.suite.catalog import Call
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

OTHER_DTYPES = ("float16", "bfloat16", "float64")
"""Floats that the engine does not compute in."""


def _refusal(call: Call, inputs: Mapping[str, Array]) -> str | None:
    """Why the engine does not answer, None if it does."""
    if call.kind == "backward":
        return "a gradient: the engine does inference"
    if call.kind == "strict" or call.name in INTEGER_CALLS:
        return None
    found = ((name, value.dtype.name) for name, value in inputs.items() if value.dtype.name in OTHER_DTYPES)
    return next((f"{name} is {dtype}: the engine computes in float32" for name, dtype in found), None)


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
        """Name and digest of the module."""
        version = f"{__version__} (module {read_record()['sha256'][:12]})"
        return {"name": self._name, "version": version, "own": True, "device": "cpu"}

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Run one call; see :class:`walsh.suite.backend.Backend`."""
        del op  # the call says it
        call, keywords = split_params(params)
        if reason := _refusal(call, inputs):
            return Skip(reason)
        if call.function == "kv_cache":
            results = self._run_cache(call.kind == "strict", keywords, inputs)
        else:
            results = invoke(call, self._function(call), inputs, keywords, out)
        deliver({name: np.asarray(value) for name, value in results.items()}, out)
        return None

    def _function(self, call: Call) -> Callable[..., Any]:
        strict = call.kind == "strict" or call.name in INTEGER_CALLS
        place: Any = self._operations if strict else self._ordinary
        function: Callable[..., Any] = getattr(place, call.function)
        return function

    def _run_cache(self, strict: bool, keywords: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, Array]:
        place: Any = self._operations if strict else self._ordinary
        cache = place.cache(*cache_sizes(keywords, inputs))
        final, outputs = run_script(
            cache, place.attention, keywords["script"], inputs, lambda rows: np.array(rows, dtype=np.int64)
        )
        results = {"lengths": final.lengths, **outputs}
        if not strict:
            results["keys"], results["values"] = final.read()
        cache.close()
        if final is not cache:
            final.close()
        return results

    def close(self) -> None:
        """Nothing to let go of but memory."""
