"""The engine as something to measure: a model in a ``.walsh`` file, under wasmtime, plain or counting instructions.

instructions(token) = embedding + blocks + head, each the difference of one exact counter        (``walsh.ic``)
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import numpy as np

from walsh.measure.case import Absent
from walsh.measure.models import Model
from walsh.suite.backends import BUILTIN

BACKEND = "wasm"
"""The engine's name in the conformance suite."""


def without_engine(case: str) -> list[Absent]:
    """Why the engine cannot be measured, if it cannot."""
    if BACKEND not in BUILTIN:
        return [
            Absent(case, "walsh engine", f"the conformance suite has no backend {BACKEND!r}: it cannot be believed")
        ]
    if importlib.util.find_spec("wasmtime") is None:
        return [Absent(case, "walsh engine", "the package wasmtime is not installed")]
    return []


def pack_model(model: Model) -> bytes:
    """The model's ``.walsh`` file."""
    from walsh.codec import dump  # here, because it belongs to the engine, which is optional

    return dump(model.exported, model.config, prefer="speed")


def open_session(model: Model, metered: bool = False, capacity: int = 128) -> Any:
    """A sequence in a fresh engine; with ``metered`` its instance counts what a replica would charge."""
    from walsh.engine.model import Engine  # here, because wasmtime is optional

    return Engine(pack_model(model), instance=make_metered() if metered else None).new_session(capacity)


def make_metered() -> Any:
    """An engine instance that counts; ``counter()`` reads the exact number of instructions so far."""
    import wasmtime  # here, because it is optional

    from walsh.engine.host import Instance
    from walsh.engine.module import MODULE
    from walsh.ic.metering import COUNTER, instrument

    class Metered(Instance):
        def __init__(self) -> None:
            engine = wasmtime.Engine()
            module = wasmtime.Module(engine, instrument(MODULE.read_bytes()))
            self._store = wasmtime.Store(engine)
            exports = wasmtime.Instance(self._store, module, []).exports(self._store)
            self._functions = {e.name: exports[e.name] for e in module.exports if e.name.startswith("walsh_")}
            memory = exports["memory"]
            assert isinstance(memory, wasmtime.Memory)
            self._memory, self._counter = memory, exports[COUNTER]

        def counter(self) -> int:
            return int(self._counter.value(self._store))  # type: ignore[union-attr]  # a global, by its name

    return Metered()


def instructions_per_token(model: Model, past: int) -> dict[str, int]:
    """Exact instructions of one token after ``past`` others, by scope, and per 1000 dense-equivalent multiply-adds.

    Pages and system calls are not in it: they belong to a canister's message, not to the mathematics.
    """
    session = open_session(model, metered=True)
    instance = session._engine.instance  # the session shares its instance with nothing else
    session.prefill(np.arange(past) % model.vocabulary)
    marks = [instance.counter()]
    session.begin(1)
    marks.append(instance.counter())
    while not session.advance():
        pass
    marks.append(instance.counter())
    session.head()
    marks.append(instance.counter())
    embedding, blocks, head = (after - before for before, after in pairwise(marks))
    macs, head_macs = model.weights_of(dense=True)
    return {
        "instructions: embedding": embedding,
        "instructions: blocks": blocks,
        "instructions: head": head,
        "instructions total": embedding + blocks + head,
        "instructions per 1000 macs of the blocks": round(1000 * blocks / macs),
        "instructions per 1000 macs of the head": round(1000 * head / head_macs),
    }
