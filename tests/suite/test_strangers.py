"""Functions that misbehave as strangers' functions do: each costs its case, is told in a line, and never the run."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from walsh.suite.backends.function import FunctionBackend
from walsh.suite.page import write_page
from walsh.suite.policy import load_policy
from walsh.suite.report import write_junit
from walsh.suite.runner import BackendRun, Outcome, run_case
from walsh.suite.schema import locate_data
from walsh.suite.vectors import Case, Suite, read_group

HOSTILE = "<script>alert('1')</script> \"quoted\" & \ud800 \x00 \x1b[31m ]]> \uffff [bold]x[/bold] :cat:"


@pytest.fixture(scope="module")
def case() -> Case:
    """A golden case of ``rms_norm``."""
    cases = read_group(locate_data() / "vectors" / "rms_norm" / "rounded.json")
    return next(case for case in cases if case.name == "rms_norm/rounded/float32-3x8")


def right(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    wide = x.astype(np.float64)
    return (wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + eps) * weight).astype(x.dtype)


def judge(case: Case, function: Any) -> Outcome:
    backend = FunctionBackend(function, "rms_norm")
    return run_case(backend, backend.describe(), case, load_policy(locate_data()))


class _SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


def raising(error: BaseException) -> Any:
    def function(x: Any, weight: Any, eps: float = 1e-6) -> Any:
        raise error

    return function


def returning(make: Any) -> Any:
    def function(x: Any, weight: Any, eps: float = 1e-6) -> Any:
        return make(right(x, weight, eps))

    return function


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: y.tolist(), "a list or dict was returned, expected float32[3,8]"),
        (lambda y: {"y": y}, "a list or dict was returned, expected float32[3,8]"),
        (lambda y: "text", "returned str, expected float32[3,8]"),
        (lambda y: (value for value in y), "returned generator, expected float32[3,8]"),
        (lambda y: None, "nothing was returned, expected float32[3,8]"),
        (lambda y: (y, y), "2 results were returned, expected 1: y"),
        (lambda y: y.astype(complex), "returned complex128[3,8], expected float32[3,8]"),
        (lambda y: y[..., None], "returned float32[3,8,1], expected float32[3,8]"),
    ],
)
def test_an_answer_of_another_kind_is_a_wrong_answer(case: Case, make: Any, message: str) -> None:
    assert judge(case, returning(lambda y: y)).outcome == "pass"
    found = judge(case, returning(make))
    assert found.outcome == "fail"
    assert message in found.message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit"),
        (BaseException("odd"), "BaseException: odd"),
        (MemoryError(), "MemoryError"),
        (_SpeechlessError(), "_SpeechlessError: (its message cannot be had: RuntimeError)"),
        (ValueError("\x1b[31m\ud800"), "ValueError: \\x1b[31m\\ud800"),
    ],
)
def test_whatever_is_raised_is_an_error_of_the_case(case: Case, error: BaseException, message: str) -> None:
    found = judge(case, raising(error))
    assert (found.outcome, found.message) == ("error", message)


def test_control_c_is_heard(case: Case) -> None:
    with pytest.raises(KeyboardInterrupt):
        judge(case, raising(KeyboardInterrupt()))


def test_a_hard_exit_does_not_end_the_run_with_code_0(case: Case) -> None:
    def leaves(x: Any, weight: Any, eps: float = 1e-6) -> Any:
        os._exit(0)

    before = os._exit
    found = judge(case, leaves)
    assert (found.outcome, found.message) == ("error", "SystemExit: os._exit(0)")
    assert os._exit is before


def test_a_forked_child_has_no_verdict(case: Case, tmp_path: Path) -> None:
    here, seen = os.getpid(), tmp_path / "seen"

    def forks(x: Any, weight: Any, eps: float = 1e-6) -> Any:
        if os.getpid() != here:
            seen.write_text("a child was asked")
            os.kill(os.getpid(), 9)
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
        return right(x, weight, eps)

    assert judge(case, forks).outcome == "pass"
    assert os.getpid() == here
    assert not seen.exists()


class _Tags(HTMLParser):
    """Names of the elements that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        del attrs
        self.found.append(tag)


def test_reports_hold_what_a_backend_says_and_nothing_else(case: Case, tmp_path: Path) -> None:
    outcome = judge(case, raising(BaseException(HOSTILE)))
    description = {"name": HOSTILE, "version": HOSTILE}
    run = BackendRun(description, (outcome,), (HOSTILE,), HOSTILE)
    write_junit(tmp_path / "report.xml", [run])
    (suite,) = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert "<script>alert('1')</script> \"quoted\" & " in str(suite.find("testcase/error").attrib["message"])  # type: ignore[union-attr]  # there is one
    pages = []
    for words in ("plain", HOSTILE):
        told = BackendRun({"name": words, "version": words}, (outcome,), (words,), words)
        vectors = Suite(tmp_path, "0" * 64, (case,))
        write_page(tmp_path / "p.html", vectors, [words], [told], told.exit_code, lambda *said: " ".join(said), words)
        tags = _Tags()
        tags.feed((tmp_path / "p.html").read_text(encoding="utf-8"))
        pages.append(tags.found)
    assert pages[0] == pages[1]
    assert not re.search(r"<script>alert", (tmp_path / "p.html").read_text(encoding="utf-8"))
