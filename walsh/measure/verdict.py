"""No speed without correctness: which backends may be timed.

A backend may be timed if its conformance run passed *for this code and these vectors*: the report names the same commit
and the same manifest, and every case of the backend passed or is a listed deviation. Uncommitted changes have no name,
so with a changed checkout a stored report proves nothing and the suite runs here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from walsh.errors import VectorError, WalshError
from walsh.suite.backends import load_backend
from walsh.suite.deviations import load_deviations
from walsh.suite.policy import load_policy
from walsh.suite.report import Report, find_commit, footer, header, read_report, write_report
from walsh.suite.runner import combine_exits, run_backend
from walsh.suite.schema import locate_data
from walsh.suite.vectors import load_suite


class NotConforming(WalshError, RuntimeError):  # noqa: N818  # names the verdict, as the suite's own do
    """A backend that must not be timed, because what it computes is wrong or has not been shown to be right."""


@dataclass(frozen=True)
class Verdict:
    """Proof that a backend may be timed.

    Attributes:
        backend: its name.
        manifest: digest of the vectors.
        digest: SHA-256 of the canonical lines of its cases, without times.
        passed, skipped: numbers of cases.
    """

    backend: str
    manifest: str
    digest: str
    passed: int
    skipped: int


def judge_report(report: Report, backend: str, manifest: str, commit: str | None) -> Verdict:
    """Whether a report shows that ``backend`` conforms.

    Args:
        report: a valid one.
        backend: name as in the report.
        manifest: digest of the vectors of this checkout.
        commit: of this checkout, ``+`` appended if it was changed.

    Raises:
        NotConforming: saying which condition does not hold, and what to do.
    """
    remedy = f"run `walsh conformance --backend {backend} --json FILE` on this commit, or leave --conformance out"
    first = report.header
    if first["manifest"] != manifest:
        raise NotConforming(
            f"{backend}: the report is about vectors {first['manifest'][:12]}, expected {manifest[:12]}: {remedy}"
        )
    if first["commit"] != commit or commit is None or commit.endswith("+"):
        raise NotConforming(
            f"{backend}: the report is about commit {first['commit']}, this checkout is {commit} "
            f"(+ means uncommitted changes, which no report can name): {remedy}"
        )
    return _judge_cases(report, backend)


def _judge_cases(report: Report, backend: str) -> Verdict:
    # On a GPU a backend reports as NAME-cuda.
    mine = [line for line in report.cases if line["backend"].removesuffix("-cuda") == backend]
    counts = Counter(line["outcome"] for line in mine)
    bad = {name: counts[name] for name in ("fail", "error", "xpass") if counts[name]}
    problems = [text for text in report.footer["problems"] if text.startswith((f"{backend}:", f"{backend}-cuda:"))]
    if not counts["pass"] or bad or problems:
        what = ", ".join(f"{count} {name}" for name, count in bad.items()) or "; ".join(problems) or "nothing passed"
        example = next((line["case"] for line in mine if line["outcome"] in bad), None)
        hint = f", for example {example}" if example else ""
        raise NotConforming(
            f"{backend} does not conform ({what}{hint}): its speed means nothing. "
            f"Expected all to pass; `walsh conformance --backend {backend}` shows each failure"
        )
    lines = sorted(json.dumps([line["case"], line["outcome"], line["error"]]) for line in mine)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Verdict(backend, str(report.header["manifest"]), digest, counts["pass"], counts["skip"])


def run_conformance(backends: Iterable[str], device: str | None, target: Path) -> Report:
    """Run the whole suite here and store its report.

    Args:
        backends: names.
        device: or None for each backend's default; the reference runs on the CPU whatever it is.
        target: file that the report is written to.
    """
    root = locate_data()
    suite, policy = load_suite(root), load_policy(root)
    started, runs = time.perf_counter(), []
    with ExitStack() as stack:
        for name in backends:
            backend = load_backend(name, None if name == "reference" else device)
            stack.callback(backend.close)
            deviations = load_deviations(suite.root, name, [case.name for case in suite.cases])
            runs.append(run_backend(backend, suite.cases, policy, deviations))
    code = combine_exits(run.exit_code for run in runs)
    first = header(
        suite, policy, [Path(sys.argv[0]).name, *sys.argv[1:]], [run.description for run in runs], len(suite.cases)
    )
    seconds = time.perf_counter() - started
    write_report(target, first, runs, footer(runs, code, seconds))
    return read_report(target, suite.digest, partial=True)


def find_verdicts(
    backends: Iterable[str], stored: Path | None, device: str | None, keep: Path | None = None
) -> dict[str, Verdict]:
    """Proof for each backend, from a stored report or from a run now.

    Args:
        backends: those whose code will be timed.
        stored: a report, or None to run the suite.
        device: for a run.
        keep: where to leave the report of a run.

    Raises:
        NotConforming: if one of them does not conform.
        VectorError: if the stored report is not valid.
    """
    names = sorted(set(backends))
    if not names:
        return {}
    manifest = load_suite(locate_data()).digest
    if stored is not None:
        report = read_report(stored, manifest)
        return {name: judge_report(report, name, manifest, find_commit()) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        report = run_conformance(names, device, keep or Path(folder) / "conformance.jsonl")
    if report.header["manifest"] != manifest:
        raise VectorError("the vectors changed during the run; start again")
    return {name: _judge_cases(report, name) for name in names}
