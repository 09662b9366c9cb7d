"""Everything that only a GPU can say, in one command; it fails at once, with exit code 4, where there is none.

    python -m bench.gpu                      or: nox -s gpu

1. Conformance: every golden vector on the compiled Triton kernels and on the PyTorch ones.
2. ``compute-sanitizer``, where it is installed: memcheck and racecheck over each op at small shapes (``gpu_walk.py``).
3. Timings of ``walsh bench`` against honest baselines, with the fraction of the limit measured in the same run.

With ``--tune`` the block sizes of the Triton kernels are measured first (``walsh.kernels.triton.tune``) and stored in
``configs.json`` under the device's name, and the vectors run on what was chosen; sanitizers and timings are left to a
run after these configurations are committed, since a changed checkout has no name that timings could be filed under.

The files go into ``reports/gpu/NAME``: ``conformance.jsonl``, ``rows.jsonl``, one log per sanitizer run, and
``summary.json`` with device, driver, versions, commit and what every step found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from walsh.errors import BackendError, WalshError
from walsh.measure.case import Case, Setting
from walsh.measure.cases import load_cases, locate_cases
from walsh.measure.provenance import gather, utc_now
from walsh.measure.rows import write_run
from walsh.measure.run import Plan, perform
from walsh.measure.verdict import judge_report
from walsh.suite.catalog import OPS
from walsh.suite.report import find_commit, read_report
from walsh.suite.runner import Exit
from walsh.suite.schema import locate_data
from walsh.suite.vectors import load_suite

ROOT = Path(__file__).resolve().parents[1]
REPORTS, WORK = ROOT / "reports" / "gpu", ROOT / "walsh-output" / "gpu"
"""Where results stay, and where they grow: a stored report that changes would make the checkout one without a name."""

TIMED = ("torch", "triton")
"""Backends that run on a GPU."""

TOOLS = ("memcheck", "racecheck")
SECONDS_PER_CASE = 10.0
SANITIZER_SECONDS = 900
"""For one op under one tool: a checked kernel runs up to a hundred times slower."""


@dataclass(frozen=True)
class Step:
    """What one step found: ``pass``, ``fail`` or ``skip``, and in one line why."""

    name: str
    outcome: str
    detail: str


def require_gpu() -> str:
    """The GPU's name.

    Raises:
        BackendError: there is none that PyTorch and Triton can use.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise BackendError("TRITON_INTERPRET is set: kernels would be interpreted on the CPU; unset it")
    if not torch.cuda.is_available():
        raise BackendError("this machine has no GPU that PyTorch can use; `nox -s triton` needs none")
    return torch.cuda.get_device_name()


TUNED = (("octonion", 512), ("octonion", 4096), ("hadamard", 512), ("hadamard", 4096), ("dense", 512))
"""Algebras and widths whose block sizes ``--tune`` measures."""


def tune_kernels(quick: bool) -> Step:
    """Measure block sizes on this device and store them in the table of the Triton kernels."""
    from walsh.kernels.triton import tune

    shapes = {}
    for algebra, features in TUNED[::2] if quick else TUNED:
        shapes.update({shape.key: shape for shape in tune.wanted(2048, features, algebra, torch.bfloat16)})
    try:
        found = tune.tune_here(shapes.values())
    except WalshError as error:
        return Step("tune", "fail", str(error))
    return Step("tune", "pass", f"{found} of {len(shapes)} shapes have an entry; commit configs.json, then time")


def find_sanitizer() -> str | None:
    """The path of ``compute-sanitizer``, from the search path or a CUDA toolkit's usual places."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [str(Path(home) / part) for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def conformance(folder: Path) -> Step:
    """The full suite on the GPU, as the command that everybody uses."""
    words = ["-m", "walsh", "conformance", "--backend", "torch", "--backend", "triton", "--device", "cuda"]
    code = subprocess.run([sys.executable, *words, "--json", str(folder / "conformance.jsonl")]).returncode
    return Step("conformance", "fail" if code else "pass", f"walsh conformance ended with exit code {code}")


def sanitize(folder: Path, ops: Sequence[str]) -> Iterator[Step]:
    """Every op under every tool, each in a process of its own."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        yield Step("sanitizer", "skip", "compute-sanitizer was not found; it is part of the CUDA toolkit")
        return
    # A caching allocator would hide reads past the end of a tensor inside its own larger blocks.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in TOOLS:
        for op in ops:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu_walk", op]
            log = folder / f"{tool}-{op}.log"
            with log.open("w") as file:
                try:
                    code = subprocess.run(
                        command, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=SANITIZER_SECONDS
                    ).returncode
                    detail = f"exit code {code}"
                except subprocess.TimeoutExpired:
                    code, detail = 1, f"not done after {SANITIZER_SECONDS} s"
            found = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*|^kernels: .*", log.read_text(), re.MULTILINE)
            yield Step(f"{tool} {op}", "fail" if code else "pass", "; ".join([detail, *found]))


def _without_others(case: Case) -> Case:
    """The case without providers that no GPU runs, such as the engine in Wasm."""
    kept = tuple(provider for provider in case.providers if provider.backend in (None, *TIMED))
    return replace(case, providers=kept)


def timings(folder: Path, quick: bool) -> Step:
    """``walsh bench`` on the GPU, held to the conformance report of step one."""
    setting, manifest = Setting("cuda", quick), load_suite(locate_data()).digest
    cases, absent = load_cases(locate_cases(), setting)
    try:
        report = read_report(folder / "conformance.jsonl", manifest)
        verdicts = {name: judge_report(report, f"{name}-cuda", manifest, find_commit()) for name in TIMED}
    except (WalshError, OSError) as error:
        return Step("timings", "fail", str(error))
    timed = [case for case in map(_without_others, cases) if len(case.providers) > 1]
    plan = Plan(setting, timed, absent, verdicts, manifest, 1.2 if quick else SECONDS_PER_CASE, sys.argv[1:])
    run = perform(plan, on_step=lambda what: print(f"  {what}", flush=True))
    write_run(folder / "rows.jsonl", run)
    for row in run.rows:
        speed = f"{row['p50'] * 1e6:11.1f} us  {row['ratio']:6.2f} x baseline  {row['fraction']:6.1%} of the limit"
        print(f"{row['case']:44} {row['provider']:24} {speed} ({row['binds']})")
    problems = run.footer["problems"]
    return Step("timings", "fail" if problems else "pass", "; ".join(problems) or f"{len(run.rows)} rows")


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return lines[0].strip() if lines else None


def _summary(device: str, started: str, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "device": device,
        "capability": list(torch.cuda.get_device_capability()),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "started": started,
        "finished": utc_now(),
        "provenance": gather("cuda", 0),
        "steps": [vars(step) for step in steps],
    }


def perform_all(folder: Path, quick: bool, ops: Sequence[str], tune: bool = False) -> int:
    """All steps, or with ``tune`` those named above; a failed one does not keep the later ones from running.

    Returns:
        0 if none failed, else 1.

    Raises:
        BackendError: there is no GPU.
    """
    device, started = require_gpu(), utc_now()
    folder.mkdir(parents=True, exist_ok=True)
    steps: list[Step] = []

    def take(step: Step) -> None:
        steps.append(step)
        print(f"{step.outcome:4}  {step.name}: {step.detail}", flush=True)
        summary = json.dumps(_summary(device, started, steps), indent=1, sort_keys=True)
        (folder / "summary.json").write_text(summary + "\n")

    print(f"{device}: a conformance run, sanitizers, timings", flush=True)
    if tune:
        take(tune_kernels(quick))
    take(conformance(folder))
    if tune:
        return int(any(step.outcome == "fail" for step in steps))
    for step in sanitize(folder, ops):
        take(step)
    take(timings(folder, quick))
    return int(any(step.outcome == "fail" for step in steps))


def main() -> int:
    """Read the command line; mistakes end in one line."""
    parser = argparse.ArgumentParser(description="Conformance, sanitizers and timings on this machine's GPU.")
    parser.add_argument("--quick", action="store_true", help="time small shapes, few rounds")
    parser.add_argument("--tune", action="store_true", help="measure block sizes for this device, then the vectors")
    parser.add_argument("--op", action="append", choices=OPS, help="sanitize only this op; may be repeated")
    parser.add_argument("--store", metavar="NAME", help="folder in reports/gpu; the device's name by default")
    given = parser.parse_args()
    try:
        name = given.store or re.sub(r"[^a-z0-9]+", "-", require_gpu().lower()).strip("-")
        code = perform_all(WORK / name, given.quick, given.op or OPS, given.tune)
        shutil.copytree(WORK / name, REPORTS / name, dirs_exist_ok=True)
        print(f"results: {(REPORTS / name).relative_to(ROOT)}")
        return code
    except BackendError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return int(Exit.BROKEN)


if __name__ == "__main__":
    raise SystemExit(main())
