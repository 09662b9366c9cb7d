"""Everything that measures the suite's own strength, at full numbers: ``nox -s deep``.

    python -m walsh.suite.deep                       every part; hours on two cores
    python -m walsh.suite.deep --part fuzz --part rust-mutants
    python -m walsh.suite.deep --list

Each part is a command of its own. What it came to is kept in ``reports/deep/index.json`` with its date, commit, vectors
and machine; ``index.md`` is made from it. A part that was not run this time keeps what it came to last time, with the
date of then; one that was never run says so. Parts that need what is not here (a toolchain, an extra) are told and left
out. Runs in a checkout, since the tests are parts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from walsh.errors import BackendError
from walsh.suite.mutants import available
from walsh.suite.report import environment, find_commit
from walsh.suite.schema import locate_data

ROOT = Path(__file__).resolve().parents[2]

Totals = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: as ``--part`` takes it.
        what: one line for the page.
        command: arguments of this Python; ``{out}`` is the folder of reports, ``{jobs}`` the number of processes.
        totals: what it came to, from the folder of reports and what the command printed.
        environment: variables that are set for it.
        needs: a backend of the registry without which it cannot run.
        page: the file with details, in the folder of reports.
    """

    name: str
    what: str
    command: tuple[str, ...]
    totals: Callable[[Path, str], Totals]
    environment: Mapping[str, str]
    needs: str = ""
    page: str = ""


def _kills(name: str) -> Callable[[Path, str], Totals]:
    def totals(out: Path, _: str) -> Totals:
        document = json.loads((out / f"{name}.json").read_text("utf-8"))
        found = {
            "mutants": document["total"],
            "killed": document["killed"],
            "controls failed": len(document["controls"]),
        }
        return found | {f"not run: {backend}": count for backend, count in document["skipped"].items()}

    return totals


def _mutation(out: Path, _: str) -> Totals:
    document = json.loads((out / "mutation.json").read_text("utf-8"))
    parts = {name: f"{part['noticed']} of {part['total']}" for name, part in document["parts"].items()}
    return {"mutations": document["total"], "noticed": document["noticed"], **parts}


def _fuzz(_: Path, printed: str) -> Totals:
    document = json.loads(printed[printed.index("{") :])
    answered = {f"answered by {name}": count for name, count in document["answered"].items()}
    return {"rounds": document["rounds"], **answered, "disagreements": len(document["found"]), "seed": document["seed"]}


def _pytest(examples: int) -> Callable[[Path, str], Totals]:
    def totals(_: Path, printed: str) -> Totals:
        last = (printed.strip().splitlines() or [""])[-1]
        counts = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)\b", last)
        return {kind: int(count) for count, kind in counts} | {"examples of each": examples}

    return totals


def _schedules(_: Path, printed: str) -> Totals:
    return {"last line": (printed.strip().splitlines() or [""])[-1]}


def _files(_: Path, printed: str) -> Totals:
    last = (printed.strip().splitlines() or [""])[-1]
    counts = re.findall(r"([\d,]+) (damaged files|refused|read|problems)\b", last)
    return {kind: int(count.replace(",", "")) for count, kind in counts}


def _campaign(name: str, page: str, what: str, backends: Sequence[str], needs: str) -> Part:
    chosen = [word for backend in backends for word in ("--backend", backend)]
    files = ("--json", f"{{out}}/{page}.json", "--markdown", f"{{out}}/{page}.md")
    command = ("-m", "walsh", "mutants", *chosen, "--matrix", "--jobs", "{jobs}", *files)
    return Part(name, what, command, _kills(page), {}, needs, f"{page}.md")


def _search(name: str, what: str, backends: Sequence[str], ops: Sequence[str], needs: str) -> Part:
    chosen = [word for backend in backends for word in ("--backend", backend)]
    only = [word for op in ops for word in ("--op", op)]
    command = ("-m", "walsh", "conformance", "fuzz", *chosen, *only, "--rounds", "1000", "--json")
    return Part(name, what, (*command, "--output", "{out}/found"), _fuzz, {}, needs)


def _engine_calls() -> tuple[str, ...]:
    from walsh.suite.catalog import CALLS

    integer = (
        "pack_ternary",
        "unpack_ternary",
        "hash_indices",
        "uniform",
        "sample",
        "bitmask_encode",
        "bitmask_decode",
    )
    return tuple(name for name, call in CALLS.items() if call.kind == "strict" or name in integer)


def parts() -> tuple[Part, ...]:
    """All parts, quick and telling ones first."""
    deep = {"HYPOTHESIS_PROFILE": "deep"}
    interpreted = {"HYPOTHESIS_PROFILE": "ci", "TRITON_INTERPRET": "1"}
    properties = ("-m", "pytest", "tests/properties", "-q", "-p", "no:cacheprovider", "--numprocesses={jobs}")
    mutation = ("tests/mutation/run.py", "--sample", "10", "--seed", "{date}", "--json", "{out}/mutation.json")
    return (
        _search("fuzz", "fuzzing of reference and PyTorch", ("reference", "torch"), (), "torch"),
        _search("fuzz-engine", "fuzzing of PyTorch and the engine", ("torch", "wasm"), _engine_calls(), "wasm"),
        _campaign("mutants", "kill-matrix", "seeded bugs in NumPy and PyTorch", ("reference", "torch"), "torch"),
        _campaign("rust-mutants", "kill-matrix-rust", "seeded bugs in the engine", ("rust",), "rust"),
        _campaign("triton-mutants", "kill-matrix-triton", "seeded bugs in Triton kernels", ("triton",), "triton"),
        Part(
            "file-fuzz",
            "damaged .walsh and SPIN files in every reader",
            ("-m", "walsh.codec.fuzz", "--count", "100000"),
            _files,
            {},
            "wasm",
        ),
        Part(
            "mutation",
            "random mutations of the definitions, the codec and the suite",
            (*mutation, "--markdown", "{out}/mutation.md"),
            _mutation,
            {},
            page="mutation.md",
        ),
        Part(
            "ic-schedules",
            "interleaved sessions of the canister, every transcript equal to the sequential one",
            ("tests/ic/schedules.py", "--schedules", "10000"),
            _schedules,
            {},
            "wasm",
        ),
        Part("properties", "properties, 500 examples of each", properties, _pytest(500), deep, "torch"),
        Part(
            "triton-properties",
            "properties of Triton kernels in the interpreter, 40 examples of each",
            (*properties, "-k", "triton"),
            _pytest(40),
            interpreted,
            "triton",
        ),
    )


def usable(part: Part) -> bool:
    """Whether what a part needs is here: its script, and its backend."""
    script = part.command[0]
    if script.endswith(".py") and not (ROOT / script).is_file():
        return False
    if part.needs == "wasm":
        return importlib.util.find_spec("wasmtime") is not None
    return not part.needs or available(part.needs)


def run_part(part: Part, out: Path, jobs: int) -> dict[str, Any]:
    """Run one part and say what it came to; its output is kept beside the reports if it fails."""
    words = {"{out}": str(out), "{jobs}": str(jobs), "{date}": datetime.now(UTC).strftime("%Y-%m-%d")}
    command = list(part.command)
    for mark, value in words.items():
        command = [word.replace(mark, value) for word in command]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **part.environment}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=given, stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = round(time.monotonic() - started)
    try:
        totals: Totals = part.totals(out, done.stdout)
    except (OSError, ValueError, KeyError):
        totals = {}
    log = out / f"{part.name}.log"
    if done.returncode:
        log.write_text(done.stdout, encoding="utf-8")
    else:
        log.unlink(missing_ok=True)
    return {
        "command": " ".join(["python", *part.command]).replace("{out}", "reports/deep").replace("{jobs}", str(jobs)),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": find_commit(),
        "vectors": hashlib.sha256((locate_data(None) / "manifest.json").read_bytes()).hexdigest(),
        "environment": environment(),
        "seconds": seconds,
        "exit": done.returncode,
        "totals": dict(totals),
    }


def to_markdown(index: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: one row per part, and what each ran on."""
    lines = [
        "# Deep runs",
        "",
        "Made by `python -m walsh.suite.deep` (`nox -s deep`). Each part says when it was run and on what; `+` after a",
        "commit means that the working tree had changes.",
        "",
        "| part | what | outcome | date | commit | vectors | minutes |",
        "|---|---|---|---|---|---|---:|",
    ]
    for part in parts():
        row = index.get(part.name)
        name = f"[{part.name}]({part.page})" if part.page and row else part.name
        if row is None:
            lines.append(f"| {name} | {part.what} | not run yet | | | | |")
            continue
        totals = ", ".join(
            f"{value} {key}" if isinstance(value, int) else f"{key} {value}" for key, value in row["totals"].items()
        )
        outcome = f"**failed (exit {row['exit']})** {totals}" if row["exit"] else totals
        commit = row["commit"] or "unknown"
        commit = f"`{commit[:10]}`" + ("+" if commit.endswith("+") else "")
        lines.append(
            f"| {name} | {part.what} | {outcome} | {row['date'][:10]} | {commit} | `{row['vectors'][:10]}` "
            f"| {row['seconds'] / 60:.1f} |"
        )
    lines += ["", "## Conditions", ""]
    for part in parts():
        if row := index.get(part.name):
            on = row["environment"]
            libraries = ", ".join(f"{name} {on[name]}" for name in ("numpy", "torch", "triton") if on.get(name))
            lines.append(f"- {part.name}: {on['cpus']} cores, {on['machine']}, Python {on['python']}, {libraries}.")
            lines.append(f"  `{row['command']}`")
            if row.get("note"):
                lines.append(f"  {row['note']}")
    return "\n".join(lines) + "\n"


def load_index(out: Path) -> dict[str, Any]:
    """What earlier runs came to."""
    path = out / "index.json"
    index: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return index


def store(out: Path, index: Mapping[str, Any]) -> None:
    """Write ``index.json`` and ``index.md``."""
    (out / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / "index.md").write_text(to_markdown(index), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every part that ran is good."""
    names = [part.name for part in parts()]
    parser = argparse.ArgumentParser(prog="python -m walsh.suite.deep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "deep")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, where a part can use them")
    parser.add_argument("--note", default="", help="kept beside what ran, such as what else the machine did")
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{part.name}: {part.what}" for part in parts()))
        return 0
    if not (ROOT / "tests" / "properties").is_dir():
        raise BackendError("deep runs need the tests, which only a checkout has; clone the repository")
    out = given.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in parts():
        if given.part and part.name not in given.part:
            continue
        if not usable(part):
            print(f"{part.name}: not run, {part.needs or part.command[0]} is not here", flush=True)
            continue
        print(f"{part.name}: {part.what} ...", flush=True)
        row = run_part(part, out, given.jobs)
        # Read again: another part may have been run meanwhile.
        store(out, load_index(out) | {part.name: row | ({"note": given.note} if given.note else {})})
        print(f"{part.name}: exit {row['exit']}, {row['totals']}, {row['seconds']} s", flush=True)
        failed += [part.name] if row["exit"] else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
