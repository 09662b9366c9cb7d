"""Random mutations of the definitions, the codec and the suite itself: are they noticed?

The registry (``walsh mutants``) holds mistakes that people make. Here cosmic-ray (https://cosmic-ray.readthedocs.io)
changes operators, numbers and conditions anywhere, a sample is drawn per file, and the quickest check that ought to
notice is run on a copy of the tree. Prints each survivor and the score, and fails below ``FLOOR``.

    python tests/mutation/run.py [--sample N] [--seed SEED] [--only PART] [--json PATH] [--markdown PATH]
    nox -s deep -- --part mutation          ten of each file, other ones each day, kept in reports/deep

A file whose check fails without any mutation is named and not counted. ``--json`` and ``--markdown`` are written after
every file; files that are not run this time keep what they came to, with the date and the seed of then, so that a long
campaign can be run in pieces and an interrupted one leaves what it found.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

FLOOR = 0.75
"""Least share of noticed mutations; survivors are partly equivalent: messages, speed, what no input can tell."""

PYTEST = f"{sys.executable} -m pytest -x -q -p no:cacheprovider"
VECTORS = f"{sys.executable} -m walsh conformance --backend reference --max-failures 0"
FORWARD = "tests/reference/test_forward.py"
REFERENCE = f"{PYTEST} tests/reference --ignore={FORWARD}"

NAMED = {
    "cross_entropy": "entropy",
    "kv_cache": "cache",
    "activations": "quantize",
    "embedding": "embedding or head",
}
"""What tests of an op are called, where not by its name."""

STRICT = {
    "_arithmetic": ("swiglu", "exp or sum or sincos or quantise or integer or strictly"),
    "activations": ("activations", "quantise"),
    "attention": ("attention", "attention or queries or split"),
    "cayley_dickson": ("cayley_dickson", "cayley or strided"),
    "embedding": ("embedding", "embedding or tables"),
    "forward": ("forward", "model or logits or generat or sequence or past or weights"),
    "hadamard": ("hadamard", "hadamard or strided"),
    "head_mixer": ("head_mixer", "mixer"),
    "kv_cache": ("kv_cache", "cache"),
    "rms_norm": ("rms_norm", "rms_norm or nan or strided"),
    "rope": ("rope", "rope"),
    "sampling": ("sampling", "sample or uniform or splitmix"),
    "swiglu": ("swiglu", "swiglu or nan"),
}
"""File of strict arithmetic: the op whose vectors, and the tests that, must notice."""

TARGETS = {
    **{
        f"walsh/reference/{op}.py": f"{VECTORS} --op {op} && {REFERENCE} -k '{NAMED.get(op, op)}'"
        for op in ("ternary", "activations", "cayley_dickson", "hadamard", "head_mixer", "rms_norm", "rope",
                   "attention", "swiglu", "embedding", "cross_entropy", "bitmask", "kv_cache")
    },
    "walsh/reference/_model.py": f"{VECTORS} --op forward && {PYTEST} {FORWARD}",
    "walsh/reference/forward.py": f"{VECTORS} --op forward && {PYTEST} {FORWARD}",
    **{
        f"walsh/reference/strict/{name}.py": f"{VECTORS} --op {op} && {PYTEST} tests/kernels/strict -k '{tests}'"
        for name, (op, tests) in STRICT.items()
    },
    "walsh/suite/comparer.py": f"{PYTEST} tests/suite/test_comparer.py",
    "walsh/suite/guard.py": f"{PYTEST} tests/mutation tests/suite/test_runner.py tests/suite/test_cheats.py",
    "walsh/suite/runner.py": f"{PYTEST} tests/suite/test_runner.py tests/suite/test_cheats.py",
    "walsh/suite/seal.py": f"{PYTEST} tests/suite/test_cheats.py",
    "walsh/suite/tensors.py": f"{PYTEST} tests/mutation tests/suite/test_tensors.py",
    "walsh/suite/vectors.py": f"{PYTEST} tests/suite/test_vectors.py",
    "walsh/suite/policy.py": f"{PYTEST} tests/suite/test_runner.py -k policy",
    **{
        f"walsh/codec/{name}.py": f"{PYTEST} tests/mutation/test_codec_holes.py {tests}"
        for name, tests in {
            "fuzz": "tests/codec/test_fuzz.py",
            "layout": "tests/test_codec.py",
            "loss": "tests/codec/test_loss.py",
            "measure": "tests/codec/test_commands.py",
            "packings": "tests/test_codec.py",
            "reader": "tests/test_codec.py tests/codec/test_fuzz.py",
            "report": "tests/codec/test_commands.py",
            "rows": "tests/test_codec.py",
            "same_tokens": "tests/model/test_same_tokens.py",
            "sources": "tests/codec/test_sources.py tests/codec/test_commands.py",
            "spin": "tests/codec/test_sources.py tests/test_codec.py",
            "tokenizer": "tests/test_codec.py tests/codec/test_commands.py",
            "writer": "tests/test_codec.py tests/codec/test_commands.py",
        }.items()
    },
}  # fmt: skip  # a table
"""File: the command that must fail when it is mutated."""


def idle_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a mutation changes nothing that runs, or only what an error says: annotations and ``raise`` statements."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        parts += [node] if isinstance(node, ast.Raise) else []
        spans += [((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)) for p in parts if p is not None]
    return spans


def copy_tree(folder: Path) -> None:
    """What the checks need, and nothing that is built."""
    for name in ("walsh", "tests", "conformance"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def mutate(folder: Path, target: str, command: str, sample: int, seed: str) -> tuple[int, list[str]]:
    """Run a sample of one file's mutations; how many ran, and a diff for each that survived."""
    from cosmic_ray.commands import execute, init
    from cosmic_ray.config import ConfigDict
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    config = ConfigDict(
        {
            "module-path": target,
            "timeout": 120.0,
            "excluded-modules": [],
            "test-command": command,
            "distributor": {"name": "local"},
        }
    )
    with use_db(str(folder / "session.sqlite"), mode=WorkDB.Mode.create) as database:
        database.clear()
        init([Path(target)], database, {})
        items = sorted(database.work_items, key=lambda item: str(item.mutations[0]))
        spans = idle_spans(Path(target).read_text("utf-8"))
        worth = [item for item in items if not any(a <= item.mutations[0].start_pos < b for a, b in spans)]
        chosen = {item.job_id for item in random.Random(f"{seed} {target}").sample(worth, min(sample, len(worth)))}
        for item in items:
            if item.job_id not in chosen:
                database.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
        execute(database, config)
        results = [result for job, result in database.results if job in chosen]
    return len(results), [result.diff or "" for result in results if "SURVIVED" in str(result.test_outcome)]


def changed_lines(diff: str) -> str:
    """The lines of a diff that say what was changed."""
    return "\n".join(line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def part_of(target: str) -> str:
    """``reference``, ``codec`` or ``suite``."""
    return target.split("/")[1]


def summarise(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report: totals, the score of each part, and what survived in each file, in the order of the table."""
    files = {target: results[target] for target in TARGETS if target in results}
    parts: dict[str, dict[str, Any]] = {}
    for target, result in files.items():
        part = parts.setdefault(part_of(target), {"total": 0, "noticed": 0})
        part["total"] += result["total"]
        part["noticed"] += result["total"] - len(result["survivors"])
    for part in [*parts.values()]:
        part["score"] = part["noticed"] / part["total"] if part["total"] else 0.0
    total, noticed = (sum(part[name] for part in parts.values()) for name in ("total", "noticed"))
    missing = [target for target in TARGETS if target not in files or "not_run" in files[target]]
    score = noticed / total if total else 0.0
    return {"total": total, "noticed": noticed, "score": score, "parts": parts, "files": files, "not_run": missing}


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    missing = report["not_run"]
    lines = [
        "# Mutation score",
        "",
        f"{report['noticed']} of {report['total']} random mutations noticed ({100 * report['score']:.1f} %).",
        f"{len(TARGETS) - len(missing)} of {len(TARGETS)} files were searched.",
        "",
        "Made by `python tests/mutation/run.py`: cosmic-ray changes operators, numbers and conditions anywhere",
        "but in a `raise` or an annotation, and a sample is drawn per file. A survivor is a mutation that the check of",
        "its file did not notice; some change nothing that can be observed.",
        "",
        "| part | mutations | noticed | score |",
        "|---|---:|---:|---:|",
    ]
    for name, part in report["parts"].items():
        lines.append(f"| {name} | {part['total']} | {part['noticed']} | {100 * part['score']:.1f} % |")
    lines += ["", "| file | mutations | noticed | date | seed |", "|---|---:|---:|---|---|"]
    for name, result in report["files"].items():
        note = f"not run: {result['not_run']}" if "not_run" in result else result["total"] - len(result["survivors"])
        lines.append(f"| `{name}` | {result['total']} | {note} | {result['date']} | `{result['seed']}` |")
    lines += [f"| `{name}` | | not run | | |" for name in missing if name not in report["files"]]
    lines += ["", "## Survivors"]
    for name, result in report["files"].items():
        if result["survivors"]:
            lines += ["", f"### {name}", ""]
            for diff in result["survivors"]:
                lines += ["```diff", diff, "```"]
    return "\n".join(lines) + "\n"


def earlier(path: Path | None) -> dict[str, dict[str, Any]]:
    """What files came to in runs before this one."""
    if path is None or not path.is_file():
        return {}
    files: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))["files"]
    return files


def main() -> int:
    """Parse, copy, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=10, help="mutations per file")
    parser.add_argument("--seed", default="walsh")
    parser.add_argument("--only", action="append", default=[], help="files whose path holds this; repeatable")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    given.json, given.markdown = (path and path.resolve() for path in (given.json, given.markdown))
    chosen = {
        target: command
        for target, command in TARGETS.items()
        if not given.only or any(part in target for part in given.only)
    }
    if not chosen:
        parser.error(f"--only {' '.join(given.only)}: no such file; there are {', '.join(TARGETS)}")
    results = earlier(given.json)
    ran_now: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
        for target, command in chosen.items():
            stamp = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "seed": given.seed, "sample": given.sample}
            clean = subprocess.run(command, shell=True, capture_output=True, check=False)
            if clean.returncode:
                outcome = {"total": 0, "survivors": [], "not_run": "its check fails without any mutation"}
                print(f"{target}: fails without any mutation: {command}", file=sys.stderr, flush=True)
            else:
                ran, lost = mutate(folder, target, command, given.sample, given.seed)
                outcome = {"total": ran, "survivors": [changed_lines(diff) for diff in lost]}
                print(f"{target}: {ran - len(lost)} of {ran} noticed", flush=True)
                print("\n".join(outcome["survivors"]), flush=True)
            results[target] = ran_now[target] = outcome | stamp
            report = summarise(results)
            if given.json:
                given.json.write_text(json.dumps(report, indent=1) + "\n")
            if given.markdown:
                given.markdown.write_text(to_markdown(report))
        os.chdir(ROOT)
    now = summarise(ran_now)
    print(f"{now['noticed']} of {now['total']} noticed, {100 * now['score']:.1f} %")
    unfinished = any("not_run" in result for result in ran_now.values())
    return 0 if now["score"] >= FLOOR and not unfinished else 1


if __name__ == "__main__":
    sys.exit(main())
