"""The file of a run: JSON lines, one row per case and provider.

    header                 schema, command, provenance, limits, verdicts of conformance
    row                    one provider of one case, every figure and everything needed to doubt it
    absent                 a provider or case that is not here, with the reason
    count                  an exact value beside the committed one
    footer                 how many lines there are, what went wrong, seconds

A file without footer, or with another number of lines than it claims, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walsh.errors import FormatError
from walsh.suite.report import replacing

SCHEMA = 1

ROW_KEYS = frozenset(
    {"type", "case", "op", "provider", "backend", "role", "baseline", "shape", "dtype", "cache", "timer", "rounds",
     "seconds", "p20", "p50", "p80", "ratio", "ratio_low", "ratio_high", "verdict", "least_ratio", "aa_ratio", "aa_low",
     "aa_high", "flops", "dense_flops", "bytes", "flops_per_second", "dense_flops_per_second", "bytes_per_second",
     "limit_seconds", "binds", "fraction", "tokens_per_second", "model_bytes", "result_bytes", "error", "manifest",
     "conformance", "load_before", "load_after", "utc", "provenance"}
)  # fmt: skip  # one list, not a column
"""Every key of a row; no more and no fewer."""

_KEYS = {
    "header": {"type", "schema", "argv", "quick", "seed", "provenance", "limits", "conformance", "manifest", "started"},
    "row": set(ROW_KEYS),
    "absent": {"type", "case", "provider", "reason"},
    "count": {"type", "section", "name", "value", "committed"},
    "footer": {"type", "rows", "absent", "counts", "problems", "seconds", "finished"},
}


@dataclass(frozen=True)
class Run:
    """A stored run that was found valid."""

    header: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    absent: tuple[Mapping[str, Any], ...]
    counts: tuple[Mapping[str, Any], ...]
    footer: Mapping[str, Any]


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, sort_keys=True, allow_nan=False) + "\n"


def write_run(path: Path, run: Run) -> None:
    """Write a run; the file appears whole or not at all."""
    lines: Iterable[Mapping[str, Any]] = (run.header, *run.rows, *run.absent, *run.counts, run.footer)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(_dump, lines))


def read_run(path: Path) -> Run:
    """Read a run back and decide whether it counts.

    Raises:
        FormatError: if it is unreadable, unfinished, or a line has a missing or an unknown key.
    """
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise FormatError(f"{path.name}: cannot be read as JSON lines: {error}") from None
    by_type: dict[str, list[Mapping[str, Any]]] = {name: [] for name in _KEYS}
    for number, line in enumerate(lines, start=1):
        kind = line.get("type") if isinstance(line, dict) else None
        if kind not in _KEYS:
            raise FormatError(f"{path.name}:{number}: type {kind!r}, expected one of {', '.join(_KEYS)}")
        wrong = set(line) ^ _KEYS[kind]
        if wrong:
            raise FormatError(f"{path.name}:{number}: keys {', '.join(sorted(wrong))} are missing or unknown")
        by_type[kind].append(line)
    if len(by_type["header"]) != 1 or lines[0]["type"] != "header" or lines[0]["schema"] != SCHEMA:
        raise FormatError(f"{path.name}: expected one header of schema {SCHEMA} as the first line")
    if len(by_type["footer"]) != 1 or lines[-1]["type"] != "footer":
        raise FormatError(f"{path.name}: has no footer; the run did not finish")
    last = lines[-1]
    found = {"rows": len(by_type["row"]), "absent": len(by_type["absent"]), "counts": len(by_type["count"])}
    if any(last[name] != number for name, number in found.items()):
        raise FormatError(f"{path.name}: holds {found}, its footer claims { ({name: last[name] for name in found}) }")
    return Run(lines[0], tuple(by_type["row"]), tuple(by_type["absent"]), tuple(by_type["count"]), last)
