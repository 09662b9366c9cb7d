"""Every cheat fails, with the message that a person would see."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from walsh.suite import comparer, runner
from walsh.suite.runner import Exit, run_backend
from walsh.suite.seal import Sealed, home_of, require_unsealed, sealed
from walsh.suite.vectors import load_suite

# A neighbouring file, which importlib mode does not put on the path.
_spec = importlib.util.spec_from_file_location("walsh_cheats", Path(__file__).with_name("cheats.py"))
cheats = importlib.util.module_from_spec(_spec)
sys.modules["walsh_cheats"] = cheats
_spec.loader.exec_module(cheats)

MESSAGES = {
    "ReturnsNaN": "elements of y differ",
    "ReturnsAConstant": "elements of y differ",
    "ReturnsItsInput": "elements of y differ",
    "NeverWritesTheLastRow": "never wrote element [2, 0] of y (2 of 6)",
    "WritesNothing": "never wrote element [0, 0] of y (6 of 6)",
    "CachesByShape": "elements of y differ",
    "CachesByAddress": "elements of y differ",
    "ClobbersItsInput": "input x was changed",
    "ZeroesItsInput": "input x was changed",
    "WritesOutsideItsOutput": "output y was written 1 element(s) before its start",
    "WritesPastItsEnd": "output y was written 1 element(s) past its end",
    "WalksTheStack": "the backend asked for the expected value while it ran",
    "SearchesTheHeap": "the backend looked through the interpreter's objects (gc.get_objects) while it ran",
    "ReadsTheVectors": "the backend opened exact.json, a file of the suite, while it ran",
    "LoadsTheSuite": "the backend opened",
    "WorksLater": "never wrote element [0, 0] of y (6 of 6)",
    "FinishesLater": "elements of y differ",
    "StopsTheClock": "the backend replaced time.perf_counter while it ran",
    "BribesTheJudge": "the backend replaced walsh.suite.runner.compare while it ran",
    "RewritesTheJudge": "the backend replaced the code of walsh.suite.comparer.compare while it ran",
    "CallsTheReference": "the backend called walsh.reference.hadamard, another implementation, while it ran",
    "CallsTheReferenceSoftly": "the backend called walsh.reference.hadamard, another implementation, while it ran",
    "ImportsKernels": "the backend imported walsh.kernels",
}


@pytest.fixture
def cases(small):
    return [case for case in load_suite(small, min_cases=1).cases if case.lane == "exact"]


def test_every_cheat_is_listed():
    found = {
        name
        for name, value in vars(cheats).items()
        if isinstance(value, type) and issubclass(value, cheats.Cheat) and value is not cheats.Cheat
    }
    assert found == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_cheat_fails(name, cases, toys, small, monkeypatch):
    kind = getattr(cheats, name)
    monkeypatch.setattr(kind, "folder", small, raising=False)
    cheat = kind()
    found = run_backend(cheat, cases, toys.policy)
    cheat.close()
    assert {outcome.outcome for outcome in found.outcomes} == {"fail"}, [o.message for o in found.outcomes]
    assert MESSAGES[name] in found.outcomes[0].message
    assert found.exit_code == Exit.FAILURE


def test_the_honest_backend_that_they_derive_from_passes(cases, toys):
    found = run_backend(cheats.Cheat(), cases, toys.policy)
    assert {outcome.outcome for outcome in found.outcomes} == {"pass"}


def test_what_was_exchanged_is_put_back(cases, toys):
    before = time.perf_counter, runner.compare, comparer.compare.__code__
    for name in ("StopsTheClock", "BribesTheJudge", "RewritesTheJudge"):
        run_backend(getattr(cheats, name)(), cases, toys.policy)
    assert (time.perf_counter, runner.compare, comparer.compare.__code__) == before


def test_late_work_is_seen_even_if_it_is_right_in_the_end(cases, toys):
    class SlowJudge(cheats.FinishesLater):
        """Lets its threads finish between the runs, so that every output is right when it is judged."""

        def run(self, op, params, inputs, out):
            self.release()
            super().run(op, params, inputs, out)

    backend = SlowJudge()
    found = run_backend(backend, cases, toys.policy)
    backend.close()
    assert {outcome.outcome for outcome in found.outcomes} == {"fail"}
    assert "still written after the backend had returned" in found.outcomes[0].message


def test_definitions_work_again_after_a_run(cases, toys):
    from walsh.reference import hadamard_transform

    cheat = cheats.CallsTheReference()
    run_backend(cheat, cases, toys.policy)
    assert hadamard_transform([1.0, 2.0]).shape == (2,)


def test_under_seal_nothing_is_told(cases):
    with sealed(cheats.Cheat(), cases[0].folder) as violations, pytest.raises(Sealed, match="expected value"):
        cases[0].expected["y"].value()
    assert violations == ["asked for the expected value"]
    require_unsealed("the expected value")
    assert cases[0].expected["y"].value().shape == (3, 2)


def test_walsh_s_own_adapters_may_call_what_they_are_made_of():
    from walsh import reference
    from walsh.suite.backends.function import FunctionBackend
    from walsh.suite.backends.reference import ReferenceBackend

    class Derived(ReferenceBackend):
        pass

    assert home_of(ReferenceBackend()) == "walsh.reference"
    assert home_of(FunctionBackend(reference.rms_norm, "rms_norm")) == "walsh"
    assert home_of(FunctionBackend(lambda x: x, "rms_norm")) == ""
    assert home_of(Derived()) == ""
    assert home_of(cheats.Cheat()) == ""
