"""Several processes come to the verdict of one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from walsh.cli import main
from walsh.suite import load_backend
from walsh.suite.backend import AdapterBroken
from walsh.suite.parallel import Crew
from walsh.suite.policy import load_policy
from walsh.suite.runner import run_backend
from walsh.suite.schema import locate_data
from walsh.suite.vectors import MIN_CASES, load_suite


def test_processes_and_one_process_agree_case_by_case() -> None:
    root = locate_data()
    suite, policy = load_suite(root), load_policy(root)
    cases = [case for case in suite.cases if case.op in ("rope", "bitmask")]
    crew = Crew(2, "reference", None, 60.0, root, MIN_CASES)
    alone = run_backend(load_backend("reference"), cases, policy)
    together = run_backend(load_backend("reference"), cases, policy, run=crew.run)
    described = [
        [(outcome.case.name, outcome.outcome, outcome.message) for outcome in run.outcomes] for run in (alone, together)
    ]
    assert described[0] == described[1]
    assert len(described[0]) == len(cases)


def test_a_backend_that_cannot_start_is_broken_and_nothing_hangs() -> None:
    root = locate_data()
    cases = load_suite(root).cases[:3]
    with pytest.raises(AdapterBroken, match="a process of backend 'nowhere' died"):
        list(Crew(2, "nowhere", None, 60.0, root, MIN_CASES).run(cases))


def test_jobs_on_the_command_line(tmp_path: Path) -> None:
    arguments = ["conformance", "--backend", "reference", "--op", "ternary", "--jobs", "2"]
    result = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "report.jsonl")])
    assert result.exit_code == 0, result.output
    assert re.search(r"CONFORMING  reference: \d+ pass, 0 fail", result.output)
