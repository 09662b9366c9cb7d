"""Reports: JSON lines for programs, JUnit XML for continuous integration.

A report is a header (versions, commit, environment, digests, arguments), one line per backend and case, and a footer
with the counts. It is written beside its place and renamed, so a file that stands there is whole; one without footer,
for other vectors, or with fewer cases than it claims, is refused by :func:`read_report`.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from walsh import __version__
from walsh.errors import VectorError
from walsh.suite.policy import Policy
from walsh.suite.runner import BackendRun, Exit, Outcome
from walsh.suite.schema import check
from walsh.suite.vectors import Suite


def environment() -> dict[str, str | int | None]:
    """What the run ran on: Python, machine and the versions of the libraries that compute."""
    versions: dict[str, str | int | None] = {"python": platform.python_version(), "platform": platform.platform()}
    versions["machine"], versions["cpus"] = platform.machine(), os.cpu_count()
    for library in ("numpy", "ml_dtypes", "safetensors", "torch", "triton"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    return versions


def find_commit() -> str | None:
    """The commit of the checkout that this code runs from, ``+`` appended if it was changed; None outside of one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return value if value is None or math.isfinite(value) else str(float(value))


def header(
    suite: Suite, policy: Policy, argv: Sequence[str], backends: Iterable[Mapping[str, Any]], selected: int
) -> dict[str, Any]:
    """The first line of a report."""
    return {
        "type": "header",
        "schema": 1,
        "walsh": __version__,
        "commit": find_commit(),
        "environment": environment(),
        "manifest": suite.digest,
        "policy": policy.digest,
        "argv": list(argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "backends": [dict(backend) for backend in backends],
        "selected": selected,
        "available": len(suite.cases),
    }


def case_line(outcome: Outcome) -> dict[str, Any]:
    """The line of one case."""
    comparison = outcome.comparison
    return {
        "type": "case",
        "backend": outcome.backend,
        "case": outcome.case.name,
        "op": outcome.case.op,
        "call": outcome.case.call.name,
        "lane": outcome.case.lane,
        "outcome": outcome.outcome,
        "message": outcome.message,
        "error": _number(comparison.error) if comparison else None,
        "budget": _number(comparison.budget) if comparison else None,
        "share": _number(comparison.share) if comparison else None,
        "ulp": _number(comparison.ulp) if comparison else None,
        "seconds": round(outcome.seconds, 6),
        "note": outcome.note,
    }


def footer(runs: Iterable[BackendRun], code: Exit, seconds: float) -> dict[str, Any]:
    """The last line of a report."""
    runs = list(runs)
    problems = [problem for run in runs for problem in run.problems]
    problems += [f"{run.name}: adapter broken: {run.broken}" for run in runs if run.broken]
    return {
        "type": "footer",
        "cases": sum(len(run.outcomes) for run in runs),
        "counts": {run.name: dict(run.counts) for run in runs},
        "problems": problems,
        "exit": int(code),
        "seconds": round(seconds, 3),
    }


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it once all went well, and vanishes if not."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_report(path: Path, first: Mapping[str, Any], runs: Sequence[BackendRun], last: Mapping[str, Any]) -> None:
    """Write header, cases and footer as JSON lines."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        lines = [first, *(case_line(outcome) for run in runs for outcome in run.outcomes), last]
        file.writelines(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in lines)


@dataclass(frozen=True)
class Report:
    """A report that was found valid."""

    header: Mapping[str, Any]
    cases: tuple[Mapping[str, Any], ...]
    footer: Mapping[str, Any]


def read_report(path: Path, manifest: str | None = None, partial: bool = False) -> Report:
    """Read a report back and decide whether it counts.

    Args:
        path: the JSON lines.
        manifest: digest of the vectors that it must be about.
        partial: accept a run of selected cases; otherwise every backend must have been given every case.

    Raises:
        VectorError: if it has no footer, is about other vectors, has too few cases, or a line breaks the schema.
    """
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise VectorError(f"{path.name}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        check("report", line, f"{path.name}:{number}")
    if not lines or lines[0]["type"] != "header":
        raise VectorError(f"{path.name}: has no header")
    if lines[-1]["type"] != "footer":
        raise VectorError(f"{path.name}: has no footer; the run did not finish")
    first, cases, last = lines[0], lines[1:-1], lines[-1]
    if any(line["type"] != "case" for line in cases):
        raise VectorError(f"{path.name}: header or footer among the cases")
    if manifest is not None and first["manifest"] != manifest:
        raise VectorError(f"{path.name}: about vectors {first['manifest'][:12]}, expected {manifest[:12]}")
    wanted = len(first["backends"]) * int(first["selected" if partial else "available"])
    if len(cases) != last["cases"] or len(cases) < wanted or not cases:
        raise VectorError(f"{path.name}: {len(cases)} cases; the footer says {last['cases']}, a full run has {wanted}")
    if len({(line["backend"], line["case"]) for line in cases}) != len(cases):
        raise VectorError(f"{path.name}: a case occurs twice")
    return Report(first, tuple(cases), last)


def write_junit(path: Path, runs: Sequence[BackendRun]) -> None:
    """Write JUnit XML: one suite per backend, one test case per vector."""
    root = ElementTree.Element("testsuites", name="walsh conformance")
    for run in runs:
        counts = run.counts
        failures = counts["fail"] + counts["xpass"] + len(run.problems)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=run.name,
            tests=str(len(run.outcomes) + len(run.problems) + bool(run.broken)),
            failures=str(failures),
            errors=str(counts["error"] + bool(run.broken)),
            skipped=str(counts["skip"] + counts["xfail"]),
            time=f"{sum(outcome.seconds for outcome in run.outcomes):.3f}",
        )
        for outcome in run.outcomes:
            _junit_case(suite, outcome)
        for kind, problems in (("failure", run.problems), ("error", (run.broken,) if run.broken else ())):
            for problem in problems:
                element = ElementTree.SubElement(suite, "testcase", classname=run.name, name=problem, time="0")
                ElementTree.SubElement(element, kind, message=problem)
    for element in root.iter():
        element.attrib.update({key: _printable(value) for key, value in element.attrib.items()})
    with replacing(path) as temporary:
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


_JUNIT = {"fail": "failure", "xpass": "failure", "error": "error", "skip": "skipped", "xfail": "skipped"}


def _junit_case(suite: ElementTree.Element, outcome: Outcome) -> None:
    element = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"{outcome.backend}.{outcome.case.op}.{outcome.case.lane}",
        name=outcome.case.name,
        time=f"{outcome.seconds:.6f}",
    )
    if outcome.outcome in _JUNIT:
        child = ElementTree.SubElement(element, _JUNIT[outcome.outcome], message=outcome.message)
        child.text = _printable("\n".join(f"{note.bug}: {note.description}" for note in outcome.case.notes))


_NO_XML = {*map(chr, range(0xD800, 0xE000)), "\ufffe", "\uffff"}
"""Surrogates and non-characters, besides the control characters."""


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold; messages quote what backends say."""
    return "".join(char if char in "\t\n" or (char >= " " and char not in _NO_XML) else "?" for char in text)
