"""A whole run: proof of conformance, limits, cases, limits again, counts, rows.

    refuse -> measure the machine -> measure each case, and the machine again -> judge

Problems do not stop the run: they are collected, stand in the footer and decide the exit code. A wrong output, more
than 100 % of a limit, a ratio below its gate and a changed count are problems; a regression against stored rows is
found by ``walsh.reporting.compare``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walsh.measure import counts as counting
from walsh.measure.case import Absent, Case, Provider, Setting
from walsh.measure.figures import limit_figures, make_row
from walsh.measure.limits import measure_limits
from walsh.measure.machine import OverLimit, check_fraction
from walsh.measure.pairs import WrongOutput, measure_case
from walsh.measure.provenance import gather, utc_now
from walsh.measure.rows import SCHEMA, Run
from walsh.measure.timing import CpuClock, CudaClock, load_average, make_clock
from walsh.measure.verdict import NotConforming, Verdict


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        setting: device, size and seed.
        cases, absent: what is measured, and what is not here.
        verdicts: proof of conformance by backend; a provider whose backend has none is refused.
        manifest: digest of the vectors.
        budget: seconds per case, checks included.
        argv: the command, for the header.
        committed: file of committed counts, or None to take none.
    """

    setting: Setting
    cases: Sequence[Case]
    absent: Sequence[Absent]
    verdicts: Mapping[str, Verdict]
    manifest: str
    budget: float
    argv: Sequence[str]
    committed: Path | None = None


def needed_backends(cases: Sequence[Case]) -> set[str]:
    """The backends whose code these cases time."""
    return {provider.backend for case in cases for provider in case.providers if provider.backend is not None}


def _require_verdicts(plan: Plan) -> None:
    lacking = needed_backends(plan.cases) - set(plan.verdicts)
    if lacking:
        raise NotConforming(
            f"no proof of conformance for {', '.join(sorted(lacking))}: expected a passing report of this commit; "
            "run `walsh conformance` first, or leave --conformance out"
        )


def perform(plan: Plan, clock: CpuClock | CudaClock | None = None, on_step: Callable[[str], None] | None = None) -> Run:
    """Measure everything in the plan.

    Args:
        plan: what.
        clock: of the device; made if None.
        on_step: told what is being done, for progress.

    Raises:
        NotConforming: if a provider's backend has no verdict; nothing has been timed then.
    """
    _require_verdicts(plan)
    say = on_step or (lambda _: None)
    clock = clock or make_clock(plan.setting.device)
    provenance = gather(plan.setting.device, plan.setting.seed)
    started, begun = utc_now(), time.monotonic()
    say("measuring the machine")
    limits = measure_limits(clock, plan.setting.quick)
    measured: list[tuple[Case, Provider, dict[str, Any]]] = []
    problems: list[str] = []
    missing = list(plan.absent)
    for case in plan.cases:
        say(case.name)
        measured += _measure(case, plan, clock, provenance, problems, missing)
        # A limit measured while a neighbour was busy is too low; more looks find the quiet moments.
        limits.merge(measure_limits(clock, quick=True, repeats=1))
    say("measuring the machine again")
    limits.merge(measure_limits(clock, plan.setting.quick))
    rows = []
    for case, provider, row in measured:
        rows.append(row | limit_figures(case, provider, row["p50"], limits))
        problems += _gate(row)
        try:
            check_fraction(f"{case.name}: {provider.name}", rows[-1]["fraction"])
        except OverLimit as error:
            problems.append(str(error))
    say("counting")
    counts = _count(plan, problems)
    header = {
        "type": "header",
        "schema": SCHEMA,
        "argv": list(plan.argv),
        "quick": plan.setting.quick,
        "seed": plan.setting.seed,
        "provenance": provenance,
        "limits": limits.to_dict(),
        "conformance": {name: vars(verdict) for name, verdict in sorted(plan.verdicts.items())},
        "manifest": plan.manifest,
        "started": started,
    }
    absent = tuple({"type": "absent", **vars(entry)} for entry in missing)
    footer = {
        "type": "footer",
        "rows": len(rows),
        "absent": len(absent),
        "counts": len(counts),
        "problems": problems,
        "seconds": round(time.monotonic() - begun, 1),
        "finished": utc_now(),
    }
    return Run(header, tuple(rows), absent, counts, footer)


def _count(plan: Plan, problems: list[str]) -> tuple[dict[str, Any], ...]:
    if plan.committed is None:
        return ()
    committed = counting.load_committed(plan.committed)
    found = counting.compare_counts(find_counts(plan.cases), committed)
    problems += counting.problems_of(found, committed, complete=False)
    return tuple({"type": "count", **vars(count)} for count in found)


def find_counts(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """All exact values of these cases, by section and name."""
    found: dict[str, dict[str, int]] = {}
    for case in cases:
        for provider in case.providers:
            for what, value in counting.count_call(case, provider).items():
                section = counting.section_of(provider)
                found.setdefault(section, {})[f"{case.name} | {provider.name} | {what}"] = value
            if provider.model_bytes is not None:
                found.setdefault("any", {})[f"{case.name} | {provider.name} | model_bytes"] = provider.model_bytes
    return found


def _measure(
    case: Case,
    plan: Plan,
    clock: CpuClock | CudaClock,
    provenance: Mapping[str, Any],
    problems: list[str],
    absent: list[Absent],
) -> list[tuple[Case, Provider, dict[str, Any]]]:
    before = load_average()
    try:
        found = measure_case(case, clock, plan.setting.seed, plan.budget)
    except WrongOutput as error:
        problems.append(str(error))
        return []
    except Exception as error:
        # Whatever one case does, the others are still worth measuring; the run fails all the same.
        problems.append(f"{case.name}: {type(error).__name__}: {error}")
        return []
    problems += found.problems
    absent += found.absent
    origin = {
        "manifest": plan.manifest,
        "load_before": before,
        "load_after": load_average(),
        "utc": utc_now(),
        "provenance": dict(provenance),
    }
    measured = []
    for provider in case.providers:
        if provider.name in found.samples:
            digest = plan.verdicts[provider.backend].digest if provider.backend else None
            measured.append((case, provider, make_row(case, provider, found.samples, clock, digest) | origin))
    return measured


def _gate(row: Mapping[str, Any]) -> list[str]:
    """A ratio misses its gate if even the upper end of its interval does: noise alone does not fail a run."""
    gate = row["least_ratio"]
    if gate is None or row["ratio_high"] >= gate:
        return []
    found = f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
    return [f"{row['case']}: {row['provider']} is {found} times {row['baseline']}; its gate is {gate:g}"]
