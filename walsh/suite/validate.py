"""Does a program speak the process protocol? Asked in small steps, so that the first wrong answer says what to do.

    1 starts, and describes itself within the time limit     5 refuses an invalid case by an error, not by dying
    2 the description fits the schema and the catalogue      6 answers after an error as before
    3 answers a run with its id, in order                    7 takes a request of a megabyte
    4 gives every output its dtype, shape and bytes          8 ends on ``close``

Numbers are not judged here: that is what ``walsh conformance`` does.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from walsh.errors import WalshError
from walsh.suite.backend import Skip
from walsh.suite.backends.process import ProcessBackend
from walsh.suite.catalog import CALLS
from walsh.suite.tensors import DTYPES, Array
from walsh.suite.vectors import Case, ExpectedError, decode_params

LARGE = 1 << 20
"""Bytes of the large request."""


@dataclass(frozen=True)
class Step:
    """One question and its answer.

    Attributes:
        name: what was asked.
        outcome: ``ok``, ``fail`` or ``none`` (could not be asked).
        detail: what was seen; for a failure what was expected.
    """

    name: str
    outcome: str
    detail: str


class _Asked(Exception):  # noqa: N818  # carries a verdict through the steps
    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


def _step(name: str, ask: Callable[[], str]) -> Step:
    try:
        return Step(name, "ok", ask())
    except _Asked as verdict:
        return Step(name, verdict.outcome, verdict.detail)
    except WalshError as error:
        return Step(name, "fail", str(error))


def _empty_outputs(case: Case) -> dict[str, Array]:
    return {name: np.zeros(out.shape, dtype=DTYPES[out.dtype]) for name, out in case.outputs.items()}


def _ask(backend: ProcessBackend, case: Case) -> Skip | None:
    return backend.run(case.op, decode_params(case.params), case.load_inputs(), _empty_outputs(case))


def _size(case: Case) -> int:
    return sum(int(np.prod(spec["shape"], dtype=np.int64)) for spec in case.inputs.values())


class Validation:
    """The steps against one command.

    Args:
        command: as a shell would split it.
        cases: vectors to draw requests from.
        timeout: seconds for one message.
    """

    def __init__(self, command: str, cases: Sequence[Case], timeout: float = 60.0) -> None:
        self._command, self._cases, self._timeout = command, cases, timeout
        self._backend = ProcessBackend(command, timeout)
        self._calls: list[str] = []

    def run(self) -> Iterator[Step]:
        """The steps, one after the other; the rest is left out if the program does not start."""
        try:
            first = _step("starts and describes itself", self._describe)
            yield first
            if first.outcome != "ok":
                return
            yield _step("lists calls of the catalogue", self._catalogue)
            yield _step("answers a run", self._answers)
            yield _step("gives outputs their dtype and shape", self._outputs)
            yield _step("refuses an invalid case", self._refuses)
            yield _step("goes on after an error", self._answers)
            yield _step("takes a request of a megabyte", self._large)
        finally:
            self._backend.close()
        yield _step("ends on close", self._ends)

    def _describe(self) -> str:
        description = self._backend.describe()
        return f"{description['name']} {description['version']}"

    def _catalogue(self) -> str:
        named = self._backend.describe().get("calls")
        if named is None:
            self._calls = list(CALLS)
            return "none listed, which claims all of them"
        unknown = [name for name in named if name not in CALLS]
        if unknown:
            raise _Asked("fail", f"{unknown[0]!r} is no call; walsh ops lists them")
        if not named:
            raise _Asked("fail", "the list of calls is empty")
        self._calls = list(named)
        return ", ".join(named)

    def _valid(self) -> list[Case]:
        found = [c for c in self._cases if c.call.name in self._calls and not isinstance(c.expected, ExpectedError)]
        return sorted(found, key=_size)

    def _answers(self) -> str:
        refusals = []
        for case in self._valid()[:40]:
            skip = _ask(self._backend, case)
            if skip is None:
                return f"answered {case.name}"
            refusals.append(skip.reason)
        if not refusals:
            raise _Asked("none", "no vector fits its calls")
        raise _Asked("fail", f"refused all of {len(refusals)} small cases, the last with {refusals[-1]!r}")

    def _outputs(self) -> str:
        answered = 0
        for name in self._calls:
            for case in [case for case in self._valid() if case.call.name == name][:5]:
                answered += _ask(self._backend, case) is None
        if not answered:
            raise _Asked("none", "nothing was answered")
        return f"{answered} answers fit"

    def _refuses(self) -> str:
        invalid = [c for c in self._cases if c.call.name in self._calls and isinstance(c.expected, ExpectedError)]
        told, skipped = [], 0
        for case in invalid:
            wanted = case.expected
            assert isinstance(wanted, ExpectedError)
            try:
                skipped += _ask(self._backend, case) is not None
            except WalshError as error:
                names = getattr(error, "told_names", None)
                if names is None:
                    raise
                told.append(names[0])
            else:
                if not skipped:
                    raise _Asked("fail", f"{case.name} was answered normally, expected the error {wanted.error}")
        if not told:
            raise _Asked("none", f"no error was seen in {len(invalid)} invalid cases")
        return f"{len(told)} errors, such as {told[0]}"

    def _large(self) -> str:
        """The smallest case that can be made long by repeating tokens."""
        for case in self._valid():
            inputs = case.load_inputs()
            name = max(inputs, key=lambda key: inputs[key].ndim)
            output = next(iter(case.outputs))
            first, result = inputs[name], case.outputs[output]
            tokens = first.ndim >= 2 and first.shape[:1] == result.shape[:1] and first.nbytes > 0
            others = all(
                value.ndim < 2 or value.shape[:1] != first.shape[:1] for n, value in inputs.items() if n != name
            )
            if not tokens or not others or len(case.outputs) > 1 or case.call.kind == "backward":
                continue
            times = -(-LARGE // first.nbytes)
            inputs[name] = np.concatenate([first] * times)
            shape = (result.shape[0] * times, *result.shape[1:])
            out = {output: np.zeros(shape, dtype=DTYPES[result.dtype])}
            skip = self._backend.run(case.op, decode_params(case.params), inputs, out)
            if skip is None:
                return f"{case.name}, {times} times as many tokens"
        raise _Asked("none", "none of its calls takes any number of tokens")

    def _ends(self) -> str:
        """In a process of its own, whose end is watched."""
        process = subprocess.Popen(shlex.split(self._command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started = time.monotonic()
        message = json.dumps({"message": "close"}) + "\n"
        try:
            process.communicate(message.encode("ascii"), timeout=self._timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise _Asked(
                "fail", f"still running {self._timeout:g} s after close: end the loop on that message"
            ) from None
        if process.returncode:
            raise _Asked("fail", f"ended with exit code {process.returncode}, expected 0")
        return f"exit code 0 after {time.monotonic() - started:.2f} s"


def validate_backend(command: str, cases: Sequence[Case], timeout: float = 60.0) -> Iterator[Step]:
    """The steps of :class:`Validation`.

    Raises:
        BackendError: if the command is empty or cannot be started.
    """
    yield from Validation(command, cases, timeout).run()


def passed(steps: Sequence[Step]) -> bool:
    """Whether nothing failed and the program answered at all."""
    outcomes = [step.outcome for step in steps]
    return "fail" not in outcomes and outcomes.count("ok") > 2
