"""INTERPRETING.md: its examples are executed."""

import doctest
import re
import shlex
import sys
from pathlib import Path

from walsh.suite.backends.process import ProcessBackend
from walsh.suite.policy import load_policy
from walsh.suite.runner import run_backend
from walsh.suite.schema import locate_data
from walsh.suite.vectors import load_suite

PAGE = Path(__file__).parents[2] / "conformance" / "INTERPRETING.md"


def test_examples():
    text = PAGE.read_text("utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert test.examples
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_program_of_the_process_protocol_conforms(tmp_path, small, toys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    program = next(block for block in blocks if "sys.stdin" in block)
    (tmp_path / "plain.py").write_text(program)
    backend = ProcessBackend(shlex.join([sys.executable, str(tmp_path / "plain.py")]))
    try:
        found = run_backend(backend, load_suite(small, min_cases=1).cases, toys.policy)
        golden = [case for case in load_suite(locate_data()).cases if case.call.name == "hadamard_transform"]
        conforming = run_backend(backend, golden, load_policy(locate_data()))
    finally:
        backend.close()
    assert [outcome.outcome for outcome in found.outcomes] == ["pass", "pass", "skip", "pass"]
    assert {outcome.outcome for outcome in conforming.outcomes} == {"pass", "skip"}
    assert conforming.counts["pass"] > 20
