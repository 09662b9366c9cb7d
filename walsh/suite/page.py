"""The report as one page of HTML, and the badge: for people, offline, in light and dark.

The page holds the verdict, the parity matrix (op and backend by lane) and, behind each cell, its cases: failures open
with the element, expected and actual values, the distance, the note of the vector and the command that repeats it. It
loads nothing from anywhere. The badge is an SVG, or the JSON of a shields.io endpoint.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from walsh import __version__
from walsh.suite.catalog import LANES, OPS
from walsh.suite.comparer import Comparison
from walsh.suite.display import show_decimal, show_hex
from walsh.suite.report import replacing
from walsh.suite.runner import BackendRun, Exit, Outcome
from walsh.suite.vectors import Suite

OUTCOMES = ("fail", "error", "xpass", "xfail", "skip", "pass")
"""Gravest first: a cell has the colour of its gravest outcome."""

VERDICTS = {
    Exit.CONFORMING: "conforming",
    Exit.FAILURE: "not conforming",
    Exit.UNEXPECTED_PASS: "unexpected pass",
    Exit.INCOMPLETE: "incomplete",
    Exit.BROKEN: "adapter broken",
}

_SHOWN = 400
"""Failures listed behind one cell."""

_SHOWN_PASSES = 40
"""Other cases listed behind one cell."""

_COLOURS = {"conforming": ("brightgreen", "#2e7d32"), "not conforming": ("red", "#b3261e")}


def _element(found: Comparison) -> list[tuple[str, str]]:
    rows = []
    if found.index is not None:
        exact = "" if found.exact is None else f"  exactly {found.exact:.17g}"
        rows.append(("element", f"{found.name}{list(found.index)}"))
        rows.append(("expected", f"{show_hex(found.expected)}  {show_decimal(found.expected)}{exact}"))
        rows.append(("actual", f"{show_hex(found.actual)}  {show_decimal(found.actual)}"))
    if found.error is not None and found.budget is not None and found.share is not None:
        rows.append(("error", f"{found.error:.6g} of {found.budget:.6g} allowed, {100 * found.share:.4g} % used"))
    if found.ulp is not None:
        rows.append(("distance", f"{found.ulp:g} ULP at most"))
    return rows


def _bars(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    largest = max(counts.values(), default=1)
    return [
        {"label": label, "count": count, "width": max(1, round(100 * count / largest))}
        for label, count in counts.items()
    ]


def _detail(outcome: Outcome, repeat: str) -> dict[str, Any]:
    comparison = outcome.comparison
    bad = outcome.outcome not in ("pass", "skip")
    return {
        "name": outcome.case.name,
        "call": outcome.case.call.name,
        "outcome": outcome.outcome,
        "message": outcome.message,
        "comment": outcome.case.comment,
        "note": outcome.note,
        "notes": [(note.bug, note.description) for note in outcome.case.notes] if bad else [],
        "element": _element(comparison) if comparison is not None and bad else [],
        "bars": _bars(comparison.histogram) if comparison is not None and bad else [],
        "share": None if comparison is None or comparison.share is None else _percent(comparison.share),
        "repeat": repeat if bad else "",
    }


def _percent(share: float) -> str:
    return "over budget" if not np.isfinite(share) else f"{100 * share:.3g} % of budget"


def _cell(outcomes: Sequence[Outcome], label: str, repeat: Any) -> dict[str, Any]:
    counts = Counter(outcome.outcome for outcome in outcomes)
    gravest = next((name for name in OUTCOMES if counts[name] and (name != "skip" or not counts["pass"])), "none")
    ordered = sorted(outcomes, key=lambda outcome: OUTCOMES.index(outcome.outcome))
    wrong = [outcome for outcome in ordered if outcome.outcome not in ("pass", "skip")][:_SHOWN]
    listed = wrong + [outcome for outcome in ordered if outcome.outcome in ("pass", "skip")][:_SHOWN_PASSES]
    return {
        "counts": [(name, counts[name]) for name in (*OUTCOMES[:4], "pass", "skip") if counts[name]],
        "state": gravest,
        "cases": [_detail(outcome, repeat(label, outcome.case.name)) for outcome in listed],
        "left": len(outcomes) - len(listed),
    }


def _matrix(labels: Sequence[str], runs: Sequence[BackendRun], repeat: Any) -> dict[str, Any]:
    everything = [outcome for run in runs for outcome in run.outcomes]
    lanes = [lane for lane in LANES if any(outcome.case.lane == lane for outcome in everything)]
    rows: list[dict[str, Any]] = []
    for op in OPS:
        for label, run in zip(labels, runs, strict=True):
            mine = [outcome for outcome in run.outcomes if outcome.case.op == op]
            if mine:
                cells = []
                for lane in lanes:
                    found = [outcome for outcome in mine if outcome.case.lane == lane]
                    cells.append({"id": f"{op}-{len(rows)}-{lane}", "lane": lane, **_cell(found, label, repeat)})
                rows.append({"op": op, "backend": run.name, "cells": cells})
    return {"lanes": lanes, "rows": rows}


def write_page(
    path: Path,
    suite: Suite,
    labels: Sequence[str],
    runs: Sequence[BackendRun],
    code: Exit,
    repeat: Any,
    created: str,
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        suite: the vectors that were run.
        labels: names by which the backends were asked for.
        runs: what was learned about each.
        code: the verdict on all.
        repeat: from label and case to the command that repeats it.
        created: date and time, as shown.
    """
    loader = jinja2.PackageLoader("walsh.suite", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    backends = [
        {
            "name": run.name,
            "version": str(run.description.get("version", "")),
            "device": str(run.description.get("device", "")),
            "verdict": VERDICTS[run.exit_code],
            "counts": [(name, run.counts[name]) for name in reversed(OUTCOMES) if run.counts[name]],
            "problems": [*run.problems, *([run.broken] if run.broken else [])],
            "seconds": f"{sum(outcome.seconds for outcome in run.outcomes):.1f}",
        }
        for run in runs
    ]
    page = environment.get_template("report.html").render(
        verdict=VERDICTS[code],
        backends=backends,
        matrix=_matrix(labels, runs, repeat),
        cases=len({outcome.case.name for run in runs for outcome in run.outcomes}),
        available=len(suite.cases),
        manifest=suite.digest,
        version=__version__,
        created=created,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def badge(runs: Iterable[BackendRun], code: Exit) -> dict[str, Any]:
    """What the badge says, as a shields.io endpoint: https://shields.io/badges/endpoint-badge."""
    passes = sum(run.counts["pass"] for run in runs)
    word = VERDICTS[code]
    message = f"{word}, {passes} vectors" if code == Exit.CONFORMING else word
    return {"schemaVersion": 1, "label": "walsh", "message": message, "color": _COLOURS.get(word, ("orange", ""))[0]}


_BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{title}">
<title>{title}</title>
<rect width="{split}" height="20" fill="#444"/>
<rect x="{split}" width="{rest}" height="20" fill="{fill}"/>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11">
<text x="{left}" y="14">{label}</text>
<text x="{right}" y="14">{message}</text>
</g>
</svg>
"""


def write_badge(path: Path, runs: Iterable[BackendRun], code: Exit) -> None:
    """Write an SVG, or with the suffix ``.json`` the endpoint."""
    content = badge(runs, code)
    if path.suffix == ".json":
        text = json.dumps(content, indent=1) + "\n"
    else:
        label, message = str(content["label"]), str(content["message"])
        # 7 units a letter is the mean width of Verdana at 11.
        split, rest = 7 * len(label) + 10, 7 * len(message) + 10
        text = _BADGE.format(
            title=f"{label}: {message}",
            label=label,
            message=message,
            split=split,
            rest=rest,
            width=split + rest,
            left=split / 2,
            right=split + rest / 2,
            fill=_COLOURS.get(VERDICTS[code], ("", "#9a6700"))[1],
        )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
