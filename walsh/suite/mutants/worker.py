"""A process that forks one child per mutant: ``python -m walsh.suite.mutants.worker BACKEND VECTORS``.

The parent imports what takes long (NumPy, PyTorch, Triton, the suite and its vectors) and nothing that can be mutated.
Requests are JSON lines on stdin, ``{"id": ..., "op": ..., "matrix": bool, "cases": [...]}``, id null for the control,
which changes nothing and runs the named cases only; replies are JSON lines on stdout. BACKEND is one of the registry's;
for ``rust`` the parent compiles the mutant and the child runs it as backend ``wasm``::

    {"id": ..., "op": ..., "status": "killed" | "survived" | "broken", "kills": {lane: {case, message}}, "seconds": ...}

``broken`` is a mutant that did not run at all, which proves nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from walsh.errors import WalshError
from walsh.suite.backends import load_backend
from walsh.suite.catalog import LANES
from walsh.suite.mutants import Mutant, find_mutant
from walsh.suite.mutants.rewrite import install
from walsh.suite.policy import Policy, load_policy
from walsh.suite.runner import run_case
from walsh.suite.vectors import SMOKE, Case, load_suite

TIMEOUT = 180.0
"""Seconds that a mutant may take; one that hangs counts as killed by its timeout."""

_MUTABLE = ("walsh.reference", "walsh.kernels", "walsh.algebra")
_HEAVY = {
    "reference": (),
    "torch": ("torch",),
    "triton": ("torch", "triton", "triton.runtime.interpreter"),
    "rust": ("walsh.suite.backends.wasm",),
}


def _import_heavy(backend: str) -> None:
    for name in _HEAVY[backend]:
        importlib.import_module(name)
    if "torch" in sys.modules:
        # A pool of threads does not survive a fork.
        sys.modules["torch"].set_num_threads(1)
    early = [name for name in sys.modules if name.startswith(_MUTABLE)]
    if early and backend != "rust":
        raise AssertionError(f"{early[0]} was imported before the mutants: they would not be seen")


def _order(cases: list[Case], lane: str | None) -> dict[str, list[Case]]:
    """Cases by lane, the lane that should kill first, small cases before large ones."""
    lanes = sorted({case.lane for case in cases}, key=lambda name: (name != lane, LANES.index(name)))
    sizes = {case.name: sum(_elements(spec) for spec in case.inputs.values()) for case in cases}
    return {
        name: sorted((c for c in cases if c.lane == name), key=lambda c: (SMOKE not in c.flags, sizes[c.name]))
        for name in lanes
    }


def _elements(spec: Mapping[str, Any]) -> int:
    count = 1
    for length in spec["shape"]:
        count *= int(length)
    return count


def judge(backend_name: str, cases: list[Case], policy: Policy, lane: str | None, matrix: bool) -> dict[str, Any]:
    """Run the cases of one op until each lane (or with ``matrix`` false, any) has failed once."""
    backend = load_backend("wasm" if backend_name == "rust" else backend_name)
    description = backend.describe()
    kills: dict[str, dict[str, str]] = {}
    ran = 0
    for name, group in _order(cases, lane).items():
        for case in group:
            outcome = run_case(backend, description, case, policy)
            ran += outcome.outcome != "skip"
            if outcome.outcome in ("fail", "error"):
                kills[name] = {"case": case.name, "message": f"{outcome.outcome}: {outcome.message}"[:300]}
                break
        if kills and not matrix:
            break
    backend.close()
    status = "killed" if kills else "survived" if ran else "broken"
    return {"status": status, "kills": kills, "ran": ran}


def _broken(error: BaseException) -> dict[str, Any]:
    return {"status": "broken", "kills": {}, "ran": 0, "message": f"{type(error).__name__}: {error}"}


Become = Callable[[Mutant | None], None]
"""Makes this process run a mutant, or the unchanged sources."""


def _import_mutant(mutant: Mutant | None) -> None:
    if mutant is not None:
        install(mutant)


def _child(
    request: Mapping[str, Any], backend: str, cases: list[Case], policy: Policy, become: Become, pipe: int
) -> None:
    """In the forked process: become the mutant, be judged, tell, end."""
    try:
        mutant = None if request["id"] is None else find_mutant(str(request["id"]))
        become(mutant)
        if mutant is None:
            cases = [case for case in cases if case.name in request["cases"]]
        lane = None if mutant is None else mutant.killer
        result = judge(backend, cases, policy, lane, bool(request["matrix"]))
    except BaseException as error:  # whatever happens here is told, never raised: this is a copy of the parent
        result = _broken(error)
    os.write(pipe, json.dumps(result).encode("utf-8"))
    os.close(pipe)
    os._exit(0)


def _run(
    request: Mapping[str, Any], backend: str, cases: list[Case], policy: Policy, become: Become = _import_mutant
) -> dict[str, Any]:
    """Fork a child and wait for its answer."""
    started = time.perf_counter()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(2, 1)  # what a kernel prints must not end up among the replies
        _child(request, backend, cases, policy, become, writing)
    os.close(writing)
    data, deadline = b"", started + TIMEOUT * max(1, len(request["cases"]))
    while select.select([reading], [], [], max(0.0, deadline - time.perf_counter()))[0]:
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        data += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, code = os.waitpid(child, 0)
    if data:
        result = json.loads(data)
    else:
        how = f"signal {os.WTERMSIG(code)}" if os.WIFSIGNALED(code) else f"exit code {os.waitstatus_to_exitcode(code)}"
        # A crash or an endless loop is noticed by any runner.
        result = {"status": "killed", "kills": {"crash": {"case": "", "message": how}}, "ran": 0}
    return {"id": request["id"], "op": request["op"], "seconds": round(time.perf_counter() - started, 3), **result}


def _serve_engine(folder: Path) -> Callable[[Mapping[str, Any], str, list[Case], Policy], dict[str, Any]]:
    """As `_run`, with a compiler before the fork: one build folder serves all mutants."""
    from walsh.suite.mutants.rust import Workshop, use_module

    workshop = Workshop(folder)

    def run(request: Mapping[str, Any], backend: str, cases: list[Case], policy: Policy) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            module = workshop.make(None if request["id"] is None else find_mutant(str(request["id"])))
        except WalshError as error:
            return {"id": request["id"], "op": request["op"], "seconds": 0.0, **_broken(error)}
        found = _run(request, backend, cases, policy, lambda _: use_module(module))
        return {**found, "seconds": round(time.perf_counter() - started, 3)}

    return run


def main() -> None:
    """Serve until stdin ends."""
    backend, root = sys.argv[1], Path(sys.argv[2])
    _import_heavy(backend)
    suite, policy = load_suite(root), load_policy(root)
    by_op: dict[str, list[Case]] = {}
    for case in suite.cases:
        by_op.setdefault(case.op, []).append(case)
    with tempfile.TemporaryDirectory() as folder:
        run = _serve_engine(Path(folder)) if backend == "rust" else _run
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(run(request, backend, by_op.get(str(request["op"]), []), policy)), flush=True)


if __name__ == "__main__":
    main()
