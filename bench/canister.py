"""Generation inside a canister: exact Internet Computer instructions per token, by scope, and Wasm tokens per second.

instructions(token) = sum over scopes of weights of executed opcodes (``walsh.ic``); tolerance 0
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from walsh.measure.case import Absent, Case, Setting


def cases(setting: Setting) -> Iterable[Case | Absent]:
    if setting.device != "cpu":
        return
    for module, what in (("walsh.engine.host", "the engine's host"), ("walsh.codec", "the container writer")):
        if importlib.util.find_spec(module) is None:
            yield Absent("canister/*", "walsh engine", f"{what} ({module}) is not there")
            return
