"""One token in the engine that a canister runs: exact Internet Computer instructions by scope, and what counting costs.

    instructions(token) = embedding + blocks + head; tolerance 0 (``walsh.ic``), pages and system calls apart

Timed: a step of the module as it is, and of the same module made to count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting
from walsh.measure.engine import BACKEND, instructions_per_token, open_session, without_engine
from walsh.measure.models import Model, choose_model


def make_run(session: Any, past: int) -> Any:
    def run(inputs: Inputs) -> Any:
        session.truncate(past)
        session.step(inputs["token"])
        return session.logits

    return run


def make_check(model: Model, prompt: list[int]) -> Any:
    """Strict logits, to the bit."""

    def check(inputs: Inputs, output: Any, _: int) -> float:
        ids = np.array([[*prompt, inputs["token"]]])
        expected = reference.strict.forward(ids, model.exported, model.config)[0, -1]
        return 0.0 if np.array_equal(output, expected) else float("inf")

    return check


def cases(setting: Setting) -> Iterable[Case | Absent]:
    if setting.device != "cpu":
        return
    missing = without_engine("canister/*")
    if missing:
        yield from missing
        return
    for algebra in ("octonion", "hadamard"):
        yield make_case(setting, algebra, past=16)


def make_case(setting: Setting, algebra: str, past: int) -> Case:
    """One token of the model of this algebra."""
    model = choose_model(setting, algebra)
    prompt = [(7 * i + 3) % model.vocabulary for i in range(past)]
    runs = []
    for metered in (False, True):
        session = open_session(model, metered)
        session.prefill(prompt)
        runs.append(make_run(session, past))
    work = replace(model.work(1, dense=False, bits=2, head_bytes=1), peak="wasm")
    return Case(
        op="canister",
        name=f"canister/token/{algebra}/P{past}-C{model.n_embd}-V{model.vocabulary}",
        shape=model.shape(B=1, P=past),
        dtype="int8",
        work=work,
        fresh=lambda seed: {"token": seed % model.vocabulary},
        check=make_check(model, prompt),
        providers=(
            Provider("engine", runs[0], BACKEND, counts=instructions_per_token(model, past)),
            Provider("engine, counting instructions", runs[1], BACKEND),
        ),
        tokens=1,
        at_least=5,
    )
