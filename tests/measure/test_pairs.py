"""Providers that cheat or fail, and a clock that drifts."""

import threading

import numpy as np
import pytest

from tests.measure.conftest import SimulatedClock, double, make_case, timed
from walsh.measure.case import Provider
from walsh.measure.figures import make_row
from walsh.measure.pairs import AGAIN, WrongOutput, measure_case
from walsh.measure.statistics import null_ratio
from walsh.measure.timing import CpuClock


def rows_of(case, clock, seed=0):
    found = measure_case(case, clock, seed, 0.0)
    return {
        p.name: make_row(case, p, found.samples, clock, None) for p in case.providers if p.name in found.samples
    }, found


def test_a_true_speed_up_is_found_through_the_drift(clock):
    rows, _ = rows_of(make_case(Provider("twice as fast", timed(5e-4, double))), clock)
    row = rows["twice as fast"]
    assert row["ratio_low"] < 2.0 < row["ratio_high"]
    assert row["ratio_high"] / row["ratio_low"] < 1.1
    assert row["verdict"] == "faster"
    assert row["rounds"] == 31


def test_the_same_code_is_equal(clock):
    rows, _ = rows_of(make_case(Provider("the same", timed(1e-3, double))), clock)
    assert rows["the same"]["verdict"] == "equal"


def test_a_against_a_in_20_runs():
    for seed in range(20):
        found = measure_case(make_case(), SimulatedClock(seed), seed, 0.0).samples
        null = null_ratio(found["plain"].seconds, found[AGAIN].seconds)
        assert null.contains(null.value)


def stale():
    """Computes once and returns that for ever."""
    kept = []

    def run(inputs):
        if not kept:
            kept.append(double(inputs))
        return kept[0]

    return run


def late():
    """Returns at once and works after the clock has stopped."""

    def run(inputs):
        out = np.zeros_like(inputs["x"])
        timer = threading.Timer(0.05, lambda: np.copyto(out, 2 * inputs["x"]))
        timer.start()
        return out

    return run


@pytest.mark.parametrize(
    "cheat",
    [stale(), late(), lambda i: np.full(64, np.nan), lambda i: np.zeros(64), lambda i: i["x"]],
    ids=["stale", "late", "nan", "zeros", "input"],
)
def test_a_cheat_gets_no_figure(cheat, clock):
    rows, found = rows_of(make_case(Provider("cheat", timed(1e-6, cheat), "torch")), clock)
    assert "cheat" not in rows
    assert len(found.problems) == 1
    assert "the output of a timed call is wrong" in found.problems[0]
    assert "plain" in rows


def test_one_wrong_call_in_many_is_enough(clock):
    calls = []

    def run(inputs):
        calls.append(1)
        return double(inputs) + (len(calls) == 30)

    _, found = rows_of(make_case(Provider("flaky", timed(1e-3, run), "torch")), clock)
    assert len(found.problems) == 1


def test_a_wrong_baseline_ends_the_case(clock):
    case = make_case()
    broken = make_case().__class__(**{**vars(case), "providers": (Provider("plain", lambda i: i["x"]),)})
    with pytest.raises(WrongOutput, match="without its baseline"):
        measure_case(broken, clock, 0, 0.0)


def raising(inputs):
    raise RuntimeError("no kernel image is available")


def test_a_peer_that_fails_is_absent_and_our_own_kernel_is_an_error(clock):
    _, found = rows_of(make_case(Provider("other package", raising)), clock)
    assert [(entry.provider, entry.reason) for entry in found.absent] == [
        ("other package", "RuntimeError: no kernel image is available")
    ]
    with pytest.raises(RuntimeError, match="no kernel image"):
        measure_case(make_case(Provider("ours", raising, "torch")), clock, 0, 0.0)


def test_values_are_fresh_and_shared_by_a_round(clock):
    seen = {"plain": [], "ours": []}

    def remember(name):
        def run(inputs):
            seen[name].append(inputs["x"].tobytes())
            return double(inputs)

        return run

    case = make_case(Provider("ours", remember("ours")))
    first = Provider("plain", remember("plain"))
    measure_case(case.__class__(**{**vars(case), "providers": (first, case.providers[1])}), clock, 0, 0.0)
    assert len(set(seen["ours"])) == len(seen["ours"]) == 33
    assert set(seen["plain"]) == set(seen["ours"])
    assert len(seen["plain"]) == 2 * len(seen["ours"])


def test_the_clock_cannot_be_patched(monkeypatch):
    import time

    clock = CpuClock(flush_bytes=4096)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 0)
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    assert clock.measure(lambda i: sum(range(10_000)), {}, True)[0] > 0
