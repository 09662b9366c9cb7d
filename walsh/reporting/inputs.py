"""What a report is built from: a folder of stored results.

reports/<machine>/rows.jsonl           a run of ``walsh bench``
reports/<machine>/previous.jsonl       the run before it (optional)
reports/<machine>/conformance.jsonl    of ``walsh conformance`` (optional)
reports/<machine>/teeth.json           of ``python -m bench.teeth`` (optional)
reports/deep/kill-matrix*.json         of ``walsh mutants``, kept by deep runs (optional)
reports/<name>/results.jsonl           of ``walsh ablate`` (optional)
reports/training/<name>/metrics.jsonl  of ``walsh train`` (optional)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walsh.errors import FormatError
from walsh.measure.rows import Run, read_run
from walsh.suite.report import Report, read_report


@dataclass(frozen=True)
class Stored:
    """One machine's results."""

    name: str
    run: Run
    previous: Run | None
    conformance: Report | None
    teeth: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Material:
    """Everything in a folder of results, in the order of names."""

    stored: tuple[Stored, ...]
    kills: tuple[Mapping[str, Any], ...]
    training: Mapping[str, tuple[Mapping[str, Any], ...]]
    ablations: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)

    @property
    def runs(self) -> list[tuple[str, Run]]:
        """The runs by name."""
        return [(stored.name, stored.run) for stored in self.stored]


def read_stored(folder: Path) -> Stored:
    """One machine's results.

    Raises:
        FormatError, VectorError: if a file is not valid.
    """
    previous, conformance, teeth = (folder / name for name in ("previous.jsonl", "conformance.jsonl", "teeth.json"))
    return Stored(
        folder.name,
        read_run(folder / "rows.jsonl"),
        read_run(previous) if previous.exists() else None,
        read_report(conformance, partial=True) if conformance.exists() else None,
        json.loads(teeth.read_text("utf-8")) if teeth.exists() else None,
    )


def read_material(root: Path) -> Material:
    """All results below a folder.

    Raises:
        FormatError, VectorError: if there are none, or a file is not valid.
    """
    stored = tuple(read_stored(path.parent) for path in sorted(root.glob("*/rows.jsonl")))
    if not stored:
        raise FormatError(f"{root.name}: holds no */rows.jsonl; `walsh bench --store NAME` makes one")
    kills = tuple(json.loads(path.read_text("utf-8")) for path in sorted(root.glob("deep/kill-matrix*.json")))
    training = {path.parent.name: _read_lines(path) for path in sorted(root.glob("training/*/metrics.jsonl"))}
    ablations = {path.parent.name: _read_lines(path) for path in sorted(root.glob("*/results.jsonl"))}
    return Material(stored, kills, training, ablations)


def _read_lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(json.loads(line) for line in path.read_text("utf-8").splitlines())
