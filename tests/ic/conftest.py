"""Makes the helpers beside the tests importable, and runs metered modules."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import wasmtime

sys.path.insert(0, str(Path(__file__).parent))


@dataclass
class Ran:
    results: list
    trapped: bool
    counter: int
    exports: object
    store: object

    def read(self, name: str) -> bytes:
        return bytes(self.exports[name].read(self.store, 0))


def make_engine() -> wasmtime.Engine:
    # Made on first use: pytest installs its fault handler before the first test, and the engine's must come after it.
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.cranelift_nan_canonicalization = True
    config.cranelift_opt_level = "none"
    return wasmtime.Engine(config)


def execute(engine: wasmtime.Engine, wasm: bytes, name: str = "f", *args) -> Ran:
    store = wasmtime.Store(engine)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, wasm), []).exports(store)
    results, trapped = [], False
    try:
        value = exports[name](store, *args)
        results = value if isinstance(value, list) else [] if value is None else [value]
    except wasmtime.Trap:
        trapped = True
    return Ran(results, trapped, exports["canister counter_instructions"].value(store), exports, store)


@pytest.fixture(scope="session")
def run():
    return partial(execute, make_engine())


@pytest.fixture(scope="session")
def wat():
    return lambda text: bytes(wasmtime.wat2wasm(text))
