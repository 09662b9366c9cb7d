"""What ``walsh conformance`` and ``walsh explain`` share: choosing backends and cases."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import click
from rich.console import Console

from walsh.suite.backend import Backend
from walsh.suite.backends import load_backend, load_object
from walsh.suite.backends.function import FunctionBackend, choose_call
from walsh.suite.catalog import CALLS, OPS
from walsh.suite.vectors import Case


@dataclass(frozen=True)
class Choice:
    """The backends that were asked for, and how.

    Attributes:
        backends: names; empty for the default.
        function: ``pkg.mod:fn`` or None, with ``op`` and ``tensors``.
        device: or None.
        timeout: seconds per case of a process backend.
        vectors: a data folder or None.
    """

    backends: tuple[str, ...]
    function: str | None
    op: str | None
    tensors: str
    device: str | None
    timeout: float
    vectors: Path | None

    def repeat(self, label: str, case: str) -> str:
        """The command that runs one case again on one backend; ``label`` is the name it was asked for by."""
        words = ["walsh", "conformance"]
        if self.function is not None:
            words += ["--function", self.function, "--op", self.op or "", "--tensors", self.tensors]
        else:
            words += ["--backend", label]
        if self.device is not None and label != "reference":
            words += ["--device", self.device]
        if self.vectors is not None:
            words += ["--vectors", str(self.vectors)]
        return shlex.join([*words, "--case", case])


def make_backends(choice: Choice, console: Console) -> list[tuple[str, Backend]]:
    """The backends with the names they were asked for by.

    Raises:
        BackendError: if one cannot be had.
        click.UsageError: for options that contradict each other.
    """
    if choice.function is not None:
        if choice.backends or choice.op is None:
            raise click.UsageError("--function needs exactly one --op and no --backend")
        function = load_object(choice.function, "function")
        if not callable(function):
            raise click.UsageError(f"--function {choice.function}: not callable")
        return [(choice.function, FunctionBackend(function, choice.op, choice.tensors, choice.device, choice.function))]
    if choice.backends:
        return [(name, load_backend(name, choice.device, choice.timeout)) for name in dict.fromkeys(choice.backends)]
    made: list[tuple[str, Backend]] = [("reference", load_backend("reference"))]
    if importlib.util.find_spec("torch") is None:
        console.print("PyTorch is not installed: only the reference is run (pip install 'walsh\\[torch]' adds it).")
    else:
        made.append(("torch", load_backend("torch", choice.device)))
    return made


def select_cases(cases: Sequence[Case], ops: Iterable[str], globs: Iterable[str], lanes: Iterable[str]) -> list[Case]:
    """The cases that fit all that was asked.

    Args:
        cases: all there are.
        ops: rooms or calls; none means all. A call brings its gradient.
        globs: patterns of case names; none means all.
        lanes: none means all.

    Raises:
        click.UsageError: for an unknown op, or if nothing is left.
    """
    ops, globs, lanes = list(ops), list(globs), list(lanes)
    for op in ops:
        if op not in OPS and op not in CALLS:
            raise click.BadParameter(f"{op!r} is neither an op nor a call; walsh ops lists them", param_hint="--op")
    wanted = {*ops, *(f"{op}.backward" for op in ops)}
    chosen = [
        case
        for case in cases
        if (not ops or {case.op, case.call.name} & wanted)
        and (not lanes or case.lane in lanes)
        and (not globs or any(fnmatchcase(case.name, glob) for glob in globs))
    ]
    if not chosen:
        raise click.UsageError("no case fits --op, --lane and --case; walsh conformance --list shows all")
    return chosen


def narrow_to_function(cases: Sequence[Case], op: str) -> list[Case]:
    """The cases that a function can be held to: those of its call and of that call's gradient."""
    call = choose_call(op)
    return [case for case in cases if case.call.name in (call.name, f"{call.name}.backward")]
