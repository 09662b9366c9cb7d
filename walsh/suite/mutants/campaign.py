"""Run mutants and gather the kill matrix.

Every backend has its workers, fresh processes that fork a child per mutant. In the end a control runs: the cases that
killed a mutant must all pass against unchanged source, otherwise a kill would prove nothing.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from walsh.errors import BackendError, ParameterError
from walsh.suite.catalog import LANES, OPS
from walsh.suite.mutants import BACKENDS, Mutant, available, source_path
from walsh.suite.report import find_commit

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        mutant: which.
        status: ``killed``, ``survived``, ``excused`` (survived, with a reason in writing) or ``broken``.
        kills: the first failing case and its message by lane.
        seconds: it took.
        message: why it is broken, or the excuse.
    """

    mutant: Mutant
    status: str
    kills: Mapping[str, Mapping[str, str]]
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Campaign:
    """The kill matrix.

    Attributes:
        verdicts: one per mutant.
        controls: backend and op of the controls that failed, with the message.
        problems: stale excuses.
        skipped: backends that cannot be run here, with their number of mutants.
        matrix: whether every lane was run.
        manifest: digest of the vectors.
    """

    verdicts: tuple[Verdict, ...]
    controls: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    matrix: bool = False
    manifest: str = ""

    @property
    def killed(self) -> int:
        """Number of mutants that a vector noticed."""
        return sum(verdict.status == "killed" for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether all were killed or excused, every control passed and nothing else is wrong."""
        good = all(verdict.status in ("killed", "excused") for verdict in self.verdicts)
        return good and bool(self.verdicts) and not self.controls and not self.problems


def select_mutants(
    registry: Sequence[Mutant], ops: Iterable[str], backends: Iterable[str], ids: Iterable[str]
) -> list[Mutant]:
    """Those that fit all that was asked; nothing asked means all.

    Raises:
        ParameterError: for an unknown name, or if nothing is left.
    """
    ops, backends, ids = set(ops), set(backends), set(ids)
    wrong = (ops - set(OPS)) | (backends - set(BACKENDS)) | (ids - {mutant.id for mutant in registry})
    if wrong:
        raise ParameterError(f"{sorted(wrong)[0]!r} is no op, backend or mutant; walsh mutants --list shows them")
    chosen = [
        mutant
        for mutant in registry
        if (not ops or mutant.op in ops)
        and (not backends or mutant.backend in backends)
        and (not ids or mutant.id in ids)
    ]
    if not chosen:
        raise ParameterError("no mutant fits --op, --backend and --id; walsh mutants --list shows them")
    return chosen


def draw_sample(mutants: Sequence[Mutant], count: int, seed: str) -> list[Mutant]:
    """So many of them, the same for the same seed."""
    chosen = random.Random(seed).sample(list(mutants), min(count, len(mutants)))
    return [mutant for mutant in mutants if mutant in chosen]


def touched(mutants: Sequence[Mutant], files: Iterable[str]) -> list[Mutant]:
    """Mutants of the ops that changed files belong to.

    Args:
        mutants: to choose from.
        files: changed paths, relative to the repository.

    Returns:
        those whose source changed or whose op is named by a file or folder; all of them if the judge itself changed.
    """
    files = list(files)
    judge = ("walsh/suite/runner.py", "walsh/suite/comparer.py", "walsh/suite/guard.py", "walsh/suite/seal.py",
             "walsh/suite/vectors.py", "walsh/suite/mutants/", "walsh/suite/backends/", "walsh/suite/tensors.py",
             "conformance/policy.json")  # fmt: skip  # a list of paths
    if any(file.startswith(judge) and not file.endswith(".toml") for file in files):
        return list(mutants)
    names = {part for file in files for part in (Path(file).stem, Path(file).parent.name)}
    root = source_path("walsh.errors").parents[1]
    chosen = []
    for mutant in mutants:
        sources = {source_path(edit.module).relative_to(root).as_posix() for edit in mutant.edits}
        if mutant.op in names or sources & set(files):
            chosen.append(mutant)
    return chosen


class _Worker:
    """A fork server for one backend."""

    def __init__(self, backend: str, root: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if backend == "triton":
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "walsh.suite.mutants.worker", backend, str(root)]
        self._backend = backend
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: Mapping[str, Any]) -> Result:
        """One request and its reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BackendError(f"the worker for {self._backend} ended; its stderr says why")
        result: Result = json.loads(line)
        return result

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def run_campaign(
    mutants: Sequence[Mutant],
    root: Path,
    *,
    matrix: bool = False,
    jobs: int = 1,
    excused: Mapping[str, str] | None = None,
    manifest: str = "",
    on_verdict: Callable[[Verdict], None] | None = None,
) -> Campaign:
    """Run mutants against the vectors.

    Args:
        mutants: which.
        root: the data folder.
        matrix: run every lane until its first failure, instead of stopping at the first failure of all.
        jobs: processes at a time.
        excused: reasons by id of those that may survive.
        manifest: digest of the vectors, for the report.
        on_verdict: called after each.

    Returns:
        the kill matrix.

    Raises:
        BackendError: if a worker cannot be kept alive.
    """
    excused = excused or {}
    runnable = [mutant for mutant in mutants if available(mutant.backend)]
    skipped = {
        name: sum(mutant.backend == name for mutant in mutants)
        for name in BACKENDS
        if not available(name) and any(mutant.backend == name for mutant in mutants)
    }
    verdicts = []
    for mutant, result in _ask_all([(mutant.backend, mutant) for mutant in runnable], root, jobs, matrix):
        verdict = _verdict(mutant, result, excused)
        verdicts.append(verdict)
        if on_verdict is not None:
            on_verdict(verdict)
    stale = [verdict.mutant.id for verdict in verdicts if verdict.status == "killed" and verdict.mutant.id in excused]
    problems = tuple(f"{name} is excused but was killed; remove the excuse" for name in stale)
    controls = _run_controls(verdicts, root, jobs)
    order = {mutant.id: number for number, mutant in enumerate(mutants)}
    verdicts.sort(key=lambda verdict: order[verdict.mutant.id])
    return Campaign(tuple(verdicts), controls, problems, skipped, matrix, manifest)


def _verdict(mutant: Mutant, result: Result, excused: Mapping[str, str]) -> Verdict:
    status, message = str(result["status"]), str(result.get("message", ""))
    if status == "survived" and mutant.id in excused:
        status, message = "excused", excused[mutant.id]
    return Verdict(mutant, status, result["kills"], float(result["seconds"]), message)


@dataclass(frozen=True)
class _Control:
    """Cases of one op and backend that must pass without any mutant."""

    backend: str
    op: str
    cases: tuple[str, ...]


def _run_controls(verdicts: Sequence[Verdict], root: Path, jobs: int) -> tuple[str, ...]:
    killers: dict[tuple[str, str], dict[str, None]] = {}
    for verdict in verdicts:
        found = killers.setdefault((verdict.mutant.backend, verdict.mutant.op), {})
        found.update({kill["case"]: None for kill in verdict.kills.values() if kill["case"]})
    wanted = [_Control(backend, op, tuple(cases)) for (backend, op), cases in killers.items() if cases]
    failed = []
    for control, result in _ask_all([(control.backend, control) for control in wanted], root, jobs, False):
        if result["status"] != "survived":
            reason = next(iter(result["kills"].values()), {"case": "", "message": result.get("message", "nothing ran")})
            failed.append(f"{control.backend}, {control.op}: {reason['case']} {reason['message']}")
    return tuple(failed)


def _ask_all(items: Sequence[tuple[str, Any]], root: Path, jobs: int, matrix: bool) -> Iterable[tuple[Any, Result]]:
    """Requests by backend, spread over workers, answered as they finish."""
    for backend in dict.fromkeys(name for name, _ in items):
        mine = [item for name, item in items if name == backend]
        free: SimpleQueue[_Worker] = SimpleQueue()
        # The engine's mutants share one build folder; the compiler uses all cores by itself.
        workers = [_Worker(backend, root) for _ in range(1 if backend == "rust" else min(jobs, len(mine)))]
        for worker in workers:
            free.put(worker)

        def ask(item: Any, free: SimpleQueue[_Worker] = free) -> tuple[Any, Result]:
            worker = free.get()
            name, cases = (item.id, ()) if isinstance(item, Mutant) else (None, item.cases)
            try:
                return item, worker.ask({"id": name, "op": item.op, "matrix": matrix, "cases": cases})
            finally:
                free.put(worker)

        try:
            with ThreadPoolExecutor(len(workers)) as pool:
                yield from pool.map(ask, mine)
        finally:
            for worker in workers:
                worker.close()


def summarise(campaign: Campaign) -> dict[str, Any]:
    """The report as a JSON document."""
    return {
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": find_commit(),
        "manifest": campaign.manifest,
        "matrix": campaign.matrix,
        "total": len(campaign.verdicts),
        "killed": campaign.killed,
        "controls": list(campaign.controls),
        "problems": list(campaign.problems),
        "skipped": dict(campaign.skipped),
        "mutants": [
            {
                "id": verdict.mutant.id,
                "op": verdict.mutant.op,
                "backend": verdict.mutant.backend,
                "class": verdict.mutant.kind,
                "why": verdict.mutant.why,
                "expected": verdict.mutant.killer,
                "status": verdict.status,
                "kills": {lane: kill["case"] for lane, kill in verdict.kills.items()},
                "message": verdict.message,
                "seconds": verdict.seconds,
            }
            for verdict in campaign.verdicts
        ],
    }


def to_markdown(campaign: Campaign) -> str:
    """The kill matrix as a page: one row per mutant, one column per lane."""
    total, killed = len(campaign.verdicts), campaign.killed
    rate = 100.0 * killed / total if total else 0.0
    lines = [
        "# Kill matrix",
        "",
        f"{killed} of {total} mutants killed by vectors ({rate:.1f} %); vectors `{campaign.manifest[:16]}`,",
        f"commit `{(find_commit() or 'unknown')[:12]}`, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        *_summary_table(campaign),
        "",
        "`x` the lane notices, **X** the lane that was expected to. "
        + ("Every lane was run." if campaign.matrix else "Each mutant was run until its first failure."),
        "",
    ]
    lines += [f"- Control failed: {control}" for control in campaign.controls]
    lines += [f"- Problem: {problem}" for problem in campaign.problems]
    lines += [f"- Not run here: {count} of {backend}" for backend, count in campaign.skipped.items()]
    used = [lane for lane in (*LANES, "crash") if any(lane in verdict.kills for verdict in campaign.verdicts)]
    for op in OPS:
        rows = [verdict for verdict in campaign.verdicts if verdict.mutant.op == op]
        if rows:
            heads = [lane.replace("_", " ") for lane in used]
            lines += ["", f"## {op}", "", "| mutant | class | what | " + " | ".join([*heads, "verdict"]) + " |"]
            lines.append("|---|---|---|" + ":-:|" * len(used) + "---|")
            lines += [_row(verdict, used) for verdict in rows]
    return "\n".join(lines) + "\n"


def _summary_table(campaign: Campaign) -> list[str]:
    names = [name for name in BACKENDS if any(verdict.mutant.backend == name for verdict in campaign.verdicts)]
    lines = ["| class | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for kind in sorted({verdict.mutant.kind for verdict in campaign.verdicts}):
        cells = []
        for name in names:
            mine = [v for v in campaign.verdicts if v.mutant.kind == kind and v.mutant.backend == name]
            cells.append(f"{sum(v.status == 'killed' for v in mine)} / {len(mine)}" if mine else "")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def _row(verdict: Verdict, used: Sequence[str]) -> str:
    marks = []
    for lane in used:
        mark = "**X**" if lane == verdict.mutant.killer else "x"
        marks.append(mark if lane in verdict.kills else "")
    status = verdict.status if verdict.status == "killed" else f"**{verdict.status}** {verdict.message}".rstrip()
    return (
        f"| `{verdict.mutant.id}` | {verdict.mutant.kind} | {verdict.mutant.why} | "
        + " | ".join([*marks, status])
        + " |"
    )
