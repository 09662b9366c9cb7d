"""Several processes hold one backend to the vectors at the same time, each with an instance of its own.

Cases are independent, so the verdict does not depend on who runs which. A slow backend (Triton's interpreter) is done
in the time of one process divided by their number. Workers are spawned, not forked: a forked PyTorch keeps the locks
of threads that it no longer has.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walsh.suite.backend import AdapterBroken, Backend
from walsh.suite.backends import load_backend
from walsh.suite.policy import Policy, load_policy
from walsh.suite.runner import Outcome, run_case
from walsh.suite.vectors import Case, load_suite

BATCH = 8
"""Cases that a worker takes at a time: few, so that the slow ones spread."""


@dataclass
class _Worker:
    """What a worker process keeps between batches."""

    backend: Backend
    description: dict[str, Any]
    policy: Policy
    cases: dict[str, Case]


_workers: list[_Worker] = []


def _start(name: str, device: str | None, timeout: float, root: Path, min_cases: int) -> None:
    backend = load_backend(name, device, timeout)
    cases = {case.name: case for case in load_suite(root, min_cases).cases}
    _workers.append(_Worker(backend, dict(backend.describe()), load_policy(root), cases))


def _run(names: Sequence[str]) -> list[Outcome]:
    (worker,) = _workers
    return [run_case(worker.backend, worker.description, worker.cases[name], worker.policy) for name in names]


@dataclass(frozen=True)
class Crew:
    """Processes that run cases of one backend.

    Attributes:
        jobs: how many.
        name, device, timeout: as for ``load_backend``.
        root: the data folder.
        min_cases: floor of the suite, as for ``load_suite``.
    """

    jobs: int
    name: str
    device: str | None
    timeout: float
    root: Path
    min_cases: int

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """Run cases, in any order; outcomes as they come.

        Raises:
            AdapterBroken: if a process died, or its backend gave up.
        """
        batches = [[case.name for case in cases[i : i + BATCH]] for i in range(0, len(cases), BATCH)]
        arguments = (self.name, self.device, self.timeout, self.root, self.min_cases)
        # Each worker computes on one core; a pool of threads in every one would only fight over them.
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            with ProcessPoolExecutor(
                min(self.jobs, max(len(batches), 1)), multiprocessing.get_context("spawn"), _start, arguments
            ) as pool:
                for future in as_completed([pool.submit(_run, batch) for batch in batches]):
                    yield from future.result()
        except BrokenProcessPool:
            raise AdapterBroken(
                f"a process of backend {self.name!r} died; --jobs 1 --verbose shows in which case"
            ) from None
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
