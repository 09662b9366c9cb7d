"""Whether a run of the benchmark notices what it is for: three experiments on a real clock, on this machine.

    A/A       a baseline against itself, again and again: every ratio lies inside the interval printed beside it
    slowed    the same kernel, made to take 30 % more time: a regression against the honest run
    stale     the same kernel, returning its first output ever after: a wrong output, and no time

    python -m bench.teeth --repeats 20 --store reports/cpu/teeth.json

Exit code 1 if one of them goes by unnoticed. No conformance is asked for: two of the kernels are wrong on purpose,
and none of these times is a figure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from walsh.measure.case import Case, Setting
from walsh.measure.cases import load_cases, locate_cases
from walsh.measure.figures import make_row
from walsh.measure.pairs import AGAIN, Measured, measure_case
from walsh.measure.provenance import gather, utc_now
from walsh.measure.statistics import null_ratio
from walsh.measure.timing import CpuClock
from walsh.reporting.compare import compare_rows

CASES = ("rms_norm/forward/*", "swiglu/forward/*", "cayley_dickson/forward/*/float32")
"""Bound by memory, bound by memory and exp, bound by products; the smallest of each."""

OURS = "walsh torch"


@dataclass(frozen=True)
class Finding:
    """One experiment on one case."""

    experiment: str
    case: str
    noticed: bool
    what: str


def slowed(run: Callable[[Any], Any], share: float = 0.3) -> Callable[[Any], Any]:
    """The same results in ``1 + share`` times the time; the processor stays busy meanwhile."""

    def slow(inputs: Any) -> Any:
        began = time.perf_counter()
        result = run(inputs)
        until = time.perf_counter() + share * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass
        return result

    return slow


def stale(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The first result, whatever the inputs."""
    kept: list[Any] = []

    def repeat(inputs: Any) -> Any:
        if not kept:
            kept.append(run(inputs))
        return kept[0]

    return repeat


def exchange(case: Case, change: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]) -> Case:
    """The case with walsh's kernel changed, and no other provider but the baseline."""
    ours = next(provider for provider in case.providers if provider.name == OURS)
    return replace(case, providers=(case.baseline, replace(ours, run=change(ours.run))))


def same_again(case: Case, repeats: int, measure: Callable[[Case, int], Measured]) -> Finding:
    """The baseline against itself."""
    alone = replace(case, providers=(case.baseline,))
    ratios = []
    for repeat in range(repeats):
        samples = measure(alone, repeat).samples
        ratios.append(null_ratio(samples[case.baseline.name].seconds, samples[AGAIN].seconds))
    inside = sum(ratio.contains(ratio.value) for ratio in ratios)
    low, high = min(ratio.low for ratio in ratios), max(ratio.high for ratio in ratios)
    values = f"{min(ratio.value for ratio in ratios):.3f} to {max(ratio.value for ratio in ratios):.3f}"
    what = f"{inside} of {repeats} ratios inside their interval: {values}; widest interval {low:.3f} to {high:.3f}"
    return Finding("A/A", case.name, inside == repeats, what)


def slower(case: Case, measure: Callable[[Case, int], Measured]) -> Finding:
    """The slowed kernel against the honest one, compared as stored runs are."""

    def row(one: Case) -> dict[str, Any]:
        provider = next(provider for provider in one.providers if provider.name == OURS)
        return make_row(one, provider, measure(one, 0).samples, CpuClock(), None)

    change = compare_rows(row(exchange(case, lambda run: run)), row(exchange(case, slowed)))
    what = f"{change.kind}: {change.value:.3f} [{change.low:.3f}, {change.high:.3f}] of the ratio it had"
    return Finding("slowed by 30 %", case.name, change.kind == "regression", what)


def outdated(case: Case, measure: Callable[[Case, int], Measured]) -> Finding:
    """The kernel whose output is the first one's."""
    found = measure(exchange(case, stale), 0)
    noticed = bool(found.problems) and OURS not in found.samples
    return Finding("stale output", case.name, noticed, found.problems[0] if found.problems else "went by unnoticed")


def choose(globs: Sequence[str]) -> list[Case]:
    """The first case of each pattern, at the sizes of a quick run."""
    rooms = sorted({pattern.partition("/")[0] for pattern in globs})
    cases, _ = load_cases(locate_cases(None), Setting("cpu", True, 0), rooms, ())
    return [next(case for case in cases if fnmatchcase(case.name, pattern)) for pattern in globs]


def experiments(repeats: int, budget: float, console: Console) -> list[Finding]:
    """All three on each case."""
    clock = CpuClock()

    def measure(case: Case, seed: int) -> Measured:
        return measure_case(case, clock, seed, budget)

    found = []
    for case in choose(CASES):
        with console.status(case.name):
            found += [same_again(case, repeats, measure), slower(case, measure), outdated(case, measure)]
    return found


@click.command()
@click.option("--repeats", default=20, show_default=True, help="Of the baseline against itself, per case.")
@click.option("--budget", default=2.0, show_default=True, help="Seconds per measurement.")
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path), help="Keep the findings here, as JSON.")
def main(repeats: int, budget: float, store: Path | None) -> None:
    """Try whether the benchmark notices a difference of none, a kernel slowed by 30 %, and a stale output."""
    console, started = Console(), utc_now()
    found = experiments(repeats, budget, console)
    table = Table("experiment", "case", "noticed", "what", box=None)
    for finding in found:
        table.add_row(finding.experiment, finding.case, "yes" if finding.noticed else "NO", finding.what)
    console.print(table)
    if store is not None:
        document = {"started": started, "repeats": repeats, "budget": budget, "provenance": gather("cpu", 0)}
        document["findings"] = [asdict(finding) for finding in found]
        partial = store.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.replace(store)
    raise SystemExit(0 if all(finding.noticed for finding in found) else 1)


if __name__ == "__main__":
    main()
