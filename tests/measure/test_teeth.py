"""The experiments on the benchmark itself, with measurements made up."""

import itertools

import numpy as np

from bench import teeth
from walsh.measure.pairs import AGAIN, Measured, Samples


def samples(**seconds):
    return {name: Samples(values, 0.0, False) for name, values in seconds.items()}


def test_a_stale_kernel_returns_its_first_result():
    counter = itertools.count()
    kernel = teeth.stale(lambda inputs: next(counter))
    assert [kernel({}), kernel({})] == [0, 0]


def test_a_slowed_kernel_takes_its_time_and_returns_the_same(monkeypatch):
    ticks = itertools.count(0.0, 0.125)
    monkeypatch.setattr(teeth.time, "perf_counter", lambda: next(ticks))
    assert teeth.slowed(lambda inputs: inputs["x"], share=4.0)({"x": 7}) == 7
    # Began at 0, ended by 0.25, and stayed until 0.125 + 4 * 0.25.
    assert next(ticks) == 1.25


def test_the_verdicts(monkeypatch):
    case = teeth.choose(["rms_norm/forward/*"])[0]
    steady = list(np.linspace(1.0, 1.01, 21))

    def measure(one, seed):
        names = [provider.name for provider in one.providers]
        found = {case.baseline.name: Samples(steady, 0.0, False), AGAIN: Samples(steady[::-1], 0.0, False)}
        if teeth.OURS in names:
            changed = one.providers[-1].run is not case.providers[-1].run
            share = 1.3 if changed and "slow" in one.providers[-1].run.__name__ else 1.0
            found[teeth.OURS] = Samples([share * value for value in steady], 0.0, False)
        return Measured(found, [], [])

    assert teeth.same_again(case, 3, measure).noticed
    assert teeth.slower(case, measure).noticed
    # Nothing was rejected, so a stale kernel went by.
    assert not teeth.outdated(case, measure).noticed

    def reject(one, seed):
        return Measured(samples(), ["wrong"], [])

    assert teeth.outdated(case, reject).noticed
    monkeypatch.setattr(teeth, "slowed", lambda run: run)
    assert not teeth.slower(case, measure).noticed
