"""What changed between two runs of one machine: ratios, never times, and exact counts.

    change = ratio_new / ratio_old,   log of its half-width = sqrt(h_old^2 + h_new^2),  h from each ratio's interval

A regression is a change whose whole interval lies below 1 - ``NOTABLE``; an improvement lies above 1 + ``NOTABLE``.
Absolute times are not compared: they drift by more than any change worth finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from walsh.measure.provenance import machine_name
from walsh.measure.rows import Run

NOTABLE = 0.05
"""Changes smaller than this are noise or not worth a person's time."""


@dataclass(frozen=True)
class Change:
    """One row in both runs.

    Attributes:
        case, provider: which.
        old, new: ratios to the baseline.
        low, value, high: the change and its interval.
        kind: ``regression``, ``improvement`` or ``same``.
    """

    case: str
    provider: str
    old: float
    new: float
    low: float
    value: float
    high: float
    kind: str


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        changes: rows that both have.
        appeared, vanished: names of rows that only one has.
        counts: exact values that differ: (section, name, old, new).
        remarks: why the two may not be comparable.
    """

    changes: tuple[Change, ...]
    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    counts: tuple[tuple[str, str, int, int], ...]
    remarks: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """Rows that got slower."""
        return tuple(change for change in self.changes if change.kind == "regression")

    @property
    def problems(self) -> list[str]:
        """Regressions in words."""
        return [
            f"{c.case}: {c.provider} was {c.old:.3f} times its baseline and is {c.new:.3f}: "
            f"change {c.value:.3f} [{c.low:.3f}, {c.high:.3f}]"
            for c in self.regressions
        ]


def _keyed(run: Run) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["case"], row["provider"]): row for row in run.rows if row["role"] != "baseline"}


def _half_widths(row: Mapping[str, Any]) -> tuple[float, float]:
    return math.log(row["ratio"] / row["ratio_low"]), math.log(row["ratio_high"] / row["ratio"])


def compare_rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """The change between two rows of one case and provider."""
    below_old, above_old = _half_widths(old)
    below_new, above_new = _half_widths(new)
    value = new["ratio"] / old["ratio"]
    # The new ratio may be smaller by its lower half while the old one is larger by its upper half, and vice versa.
    low = value * math.exp(-math.hypot(below_new, above_old))
    high = value * math.exp(math.hypot(above_new, below_old))
    kind = "regression" if high < 1 - NOTABLE else "improvement" if low > 1 + NOTABLE else "same"
    return Change(new["case"], new["provider"], old["ratio"], new["ratio"], low, value, high, kind)


def _remarks(old: Run, new: Run) -> tuple[str, ...]:
    remarks = []
    machines = [machine_name(run.header["provenance"]) for run in (old, new)]
    if machines[0] != machines[1]:
        remarks.append(f"different machines: {machines[0]}; {machines[1]}")
    if old.header["manifest"] != new.header["manifest"]:
        remarks.append("different conformance vectors: the definition may have changed between the runs")
    versions = [run.header["provenance"]["packages"].get("torch") for run in (old, new)]
    if versions[0] != versions[1]:
        remarks.append(f"different PyTorch: {versions[0]}, {versions[1]}: baselines may have changed")
    baselines = {row["case"]: row["baseline"] for row in old.rows}
    moved = sorted({r["case"] for r in new.rows if baselines.get(r["case"], r["baseline"]) != r["baseline"]})
    if moved:
        remarks.append(f"other baselines: {', '.join(moved)}")
    return tuple(remarks)


def compare_runs(old: Run, new: Run) -> Comparison:
    """Everything that differs, in the order of the new run."""
    before, after = _keyed(old), _keyed(new)
    changes = tuple(compare_rows(before[key], row) for key, row in after.items() if key in before)
    counted = {(c["section"], c["name"]): c["value"] for c in old.counts}
    counts = tuple(
        (c["section"], c["name"], counted[c["section"], c["name"]], c["value"])
        for c in new.counts
        if counted.get((c["section"], c["name"]), c["value"]) != c["value"]
    )
    return Comparison(
        changes,
        tuple(" | ".join(key) for key in after if key not in before),
        tuple(" | ".join(key) for key in before if key not in after),
        counts,
        _remarks(old, new),
    )
