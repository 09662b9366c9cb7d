"""Random mutations of the definitions, the codec and the suite itself: are they noticed? ``nox -s mutation``.

The registry (``walsh mutants``) holds mistakes that people make. Here cosmic-ray (https://cosmic-ray.readthedocs.io)
changes operators, numbers and conditions anywhere, a sample is drawn per file, and the quickest check that ought to
notice is run on a copy of the tree. Prints each survivor and the score, and fails below ``FLOOR``.

    python tests/mutation/run.py [--sample N] [--seed N] [--only PART] [--json PATH]
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FLOOR = 0.75
"""Least share of noticed mutations; survivors are partly equivalent: messages, speed, what no input can tell."""

PYTEST = f"{sys.executable} -m pytest -x -q -p no:cacheprovider"
VECTORS = f"{sys.executable} -m walsh conformance --backend reference --max-failures 0"

KEYWORDS = {
    "cross_entropy": "entropy",
    "kv_cache": "cache",
    "activations": "quantize",
    "embedding": "embedding or head",
}
"""What tests of an op are called, where not by its name."""

TARGETS = {
    **{
        f"walsh/reference/{op}.py": f"{VECTORS} --op {op} && {PYTEST} tests/test_reference.py -k {KEYWORDS.get(op, op)}"
        for op in ("ternary", "activations", "hadamard", "head_mixer", "rms_norm", "rope", "attention", "swiglu",
                   "embedding", "cross_entropy", "bitmask", "kv_cache")
    },
    "walsh/reference/strict/_arithmetic.py": f"{VECTORS} --lane strict --op swiglu --op rope --op attention",
    "walsh/suite/comparer.py": f"{PYTEST} tests/suite/test_comparer.py",
    "walsh/suite/guard.py": f"{PYTEST} tests/suite/test_runner.py tests/suite/test_cheats.py",
    "walsh/suite/runner.py": f"{PYTEST} tests/suite/test_runner.py tests/suite/test_cheats.py",
    "walsh/suite/seal.py": f"{PYTEST} tests/suite/test_cheats.py",
    "walsh/suite/tensors.py": f"{PYTEST} tests/suite/test_tensors.py",
    "walsh/suite/vectors.py": f"{PYTEST} tests/suite/test_vectors.py",
    "walsh/suite/policy.py": f"{PYTEST} tests/suite/test_runner.py -k policy",
}  # fmt: skip  # a table
"""File: the command that must fail when it is mutated."""


def targets() -> dict[str, str]:
    """The table above, and the codec's files."""
    codec = {
        path.relative_to(ROOT).as_posix(): f"{PYTEST} tests/test_codec.py"
        for path in sorted((ROOT / "walsh" / "codec").glob("*.py"))
        if path.name != "__init__.py"
    }
    return {**TARGETS, **codec}


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


def main() -> int:
    """Parse, copy, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=10, help="mutations per file")
    parser.add_argument("--seed", default="walsh")
    parser.add_argument("--only", default="", help="files whose path holds this")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chosen = {target: command for target, command in targets().items() if given.only in target}
    total, survivors = 0, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
        for target, command in chosen.items():
            clean = subprocess.run(command, shell=True, capture_output=True, check=False)
            if clean.returncode:
                print(f"{target}: fails without any mutation: {command}", file=sys.stderr)
                return 1
            ran, lost = mutate(folder, target, command, given.sample, given.seed)
            total += ran
            survivors[target] = lost
            print(f"{target}: {ran - len(lost)} of {ran} noticed", flush=True)
            for diff in lost:
                print(
                    "\n".join(line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))
                )
    lost = sum(map(len, survivors.values()))
    score = (total - lost) / total if total else 0.0
    print(f"{total - lost} of {total} noticed, {100 * score:.1f} %")
    if given.json:
        given.json.write_text(json.dumps({"total": total, "score": score, "survivors": survivors}, indent=1) + "\n")
    return 0 if score >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
