"""Every property is asked of every backend, through the protocol that vectors use."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

from walsh.suite.backends import load_backend
from walsh.suite.catalog import CALLS


def usable():
    """The built-in backends that run here; Triton only in its interpreter, because it compiles for GPUs only."""
    needs = {"torch": "torch", "triton": "triton", "wasm": "wasmtime"}
    names = [name for name, module in {"reference": "numpy", **needs}.items() if importlib.util.find_spec(module)]
    return [name for name in names if name != "triton" or os.environ.get("TRITON_INTERPRET") == "1"]


class Caller:
    """A backend, called by the catalogue's names.

    ``caller("hadamard_transform", {"x": x}, {"y": ("int32", x.shape)}, normalize=False)["y"]``
    """

    def __init__(self, name):
        self.name, self._backend = name, load_backend(name)
        calls = self._backend.describe().get("calls")
        self._calls = set(CALLS if calls is None else calls)

    def __call__(self, call, inputs, outputs, **params):
        if call not in self._calls:
            pytest.skip(f"{self.name} does not implement {call}")
        out = {name: np.zeros(shape, dtype=dtype) for name, (dtype, shape) in outputs.items()}
        skip = self._backend.run(CALLS[call].op, {"call": call, **params}, dict(inputs), out)
        if skip is not None:
            pytest.skip(skip.reason)
        return out


_callers: dict[str, Caller] = {}


@pytest.fixture(params=usable())
def caller(request):
    if request.param not in _callers:
        _callers[request.param] = Caller(request.param)
    return _callers[request.param]
