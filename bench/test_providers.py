"""Every provider of every quick case under pytest-benchmark, for its statistics, storage and comparison of runs.

    pytest bench --benchmark-only --benchmark-autosave
    pytest bench --benchmark-only --benchmark-compare -k rms_norm

Each provider is timed alone here, one after the other, so ratios between them drift with the machine: ``walsh bench``
interleaves pairs. Inputs are fresh for every round, and the output of the last one is checked.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from walsh.measure.case import Case, Inputs, Provider, Setting
from walsh.measure.cases import load_cases, locate_cases

CASES = load_cases(locate_cases(), Setting(quick=True))[0]
PAIRS = [(case, provider) for case in CASES for provider in case.providers]


@pytest.mark.parametrize(("case", "provider"), PAIRS, ids=[f"{case.name} {p.name}" for case, p in PAIRS])
def test_provider(benchmark: Any, case: Case, provider: Provider) -> None:
    seeds = itertools.count()
    last: list[Inputs] = []

    def setup() -> tuple[tuple[Inputs], dict[str, Any]]:
        last[:] = [case.fresh(next(seeds))]
        return (last[0],), {}

    output = benchmark.pedantic(provider.run, setup=setup, rounds=case.at_least, warmup_rounds=1)
    assert (provider.check or case.check)(last[0], output, 0) <= 1
    work = provider.work or case.work
    benchmark.group = case.name
    benchmark.extra_info |= {"flops": work.flops, "bytes": work.bytes, "baseline": case.baseline.name}
