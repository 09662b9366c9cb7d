"""The definitions themselves as a backend: ``walsh.reference``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from walsh import __version__
from walsh.errors import BackendError
from walsh.suite.backend import deliver
from walsh.suite.backends.calling import cache_sizes, find_function, invoke, run_script, split_params
from walsh.suite.tensors import Array


class ReferenceBackend:
    """``walsh.reference.NAME``, ``NAME_backward`` and ``strict.NAME``; float64 results are rounded to the output."""

    def __init__(self, device: str | None = None) -> None:
        """Import the references; ``device`` can only be ``cpu``."""
        if device not in (None, "cpu"):
            raise BackendError(f"reference: device {device!r}; NumPy runs on cpu only")
        from walsh import reference

        self._package = reference

    def describe(self) -> dict[str, Any]:
        """Name, version and device."""
        return {"name": "reference", "version": __version__, "own": True, "device": "cpu"}

    def run(self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]) -> None:  # noqa: ARG002  # the call says it
        """Evaluate the definition; see :class:`walsh.suite.backend.Backend`."""
        call, keywords = split_params(params)
        if call.function == "kv_cache":
            deliver(self._run_cache(call.kind == "strict", keywords, inputs), out, cast=True)
            return
        function = find_function(call, self._package, "_backward" if call.kind == "backward" else "")
        results = invoke(call, function, inputs, keywords, out)
        deliver({name: np.asarray(value) for name, value in results.items()}, out, cast=True)

    def _run_cache(self, strict: bool, params: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, Array]:
        package: Any = self._package
        kind = package.strict.Int8KVCache if strict else package.KVCache
        attention = package.strict.attention if strict else package.attention
        cache = kind(*cache_sizes(params, inputs))
        cache, outputs = run_script(
            cache, attention, params["script"], inputs, lambda values: np.array(values, dtype=np.int64)
        )
        results = {"lengths": np.asarray(cache.lengths), **outputs}
        if not strict:
            alive = (np.arange(cache.keys.shape[1]) < results["lengths"][:, None])[:, :, None, None]
            results |= {"keys": np.where(alive, cache.keys, 0), "values": np.where(alive, cache.values, 0)}
        return results

    def close(self) -> None:
        """Nothing to let go of."""
