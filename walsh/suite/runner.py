"""Run vectors against a backend, again and again, and believe nothing that it could have faked.

Every case runs twice on contiguous inputs, which must give the same bits, and once on strided inputs, which must keep
to the rule. Before the first, the same memory holds other values and the answer is thrown away: whoever caches it is
found out. Outputs are poisoned and guarded, inputs remembered (``walsh.suite.guard``); expected values, the clock and
the judge are sealed while the backend runs (``walsh.suite.seal``). An invalid case must raise the right error and leave
its outputs untouched.

Outcomes: ``pass``; ``fail``, a wrong answer; ``error``, no answer; ``skip``, a refusal by call, dtype, shape or
parameter; ``xfail`` and ``xpass``, a deviation that held and one that no longer does.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from walsh.errors import ERRORS, VectorError, WalshError
from walsh.suite.backend import AdapterBroken, Backend, OutputMismatch, Skip
from walsh.suite.comparer import Comparison, compare
from walsh.suite.deviations import Deviations
from walsh.suite.guard import GuardedOutput, WatchedInputs, bits_of, misbehaviour
from walsh.suite.policy import Policy
from walsh.suite.seal import perf_counter, sealed
from walsh.suite.tensors import Array
from walsh.suite.vectors import SMOKE, Case, ExpectedError, decode_params


class Exit(IntEnum):
    """Exit codes of ``walsh conformance``."""

    CONFORMING = 0
    FAILURE = 1
    UNEXPECTED_PASS = 2
    INCOMPLETE = 3
    BROKEN = 4
    USAGE = 64


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case.

    Attributes:
        backend, case: who and what.
        outcome: ``pass``, ``fail``, ``skip``, ``error``, ``xfail`` or ``xpass``.
        message: why, if not a pass; the reason of a skip.
        seconds: of all runs together.
        comparison: of the output that used most of its budget, or of the first wrong one.
        note: for example that an alternative was taken.
        trace: the traceback of an error.
        actual: the arrays of the first run, kept only if asked for.
    """

    backend: str
    case: Case
    outcome: str
    message: str = ""
    seconds: float = 0.0
    comparison: Comparison | None = None
    note: str = ""
    trace: str = ""
    actual: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendRun:
    """Everything that was learned about one backend.

    Attributes:
        description: what ``describe()`` said.
        outcomes: one per case that ran, in order.
        problems: failures that belong to no case, such as an expired deviation.
        broken: why the adapter is broken, or empty.
    """

    description: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...] = ()
    broken: str = ""

    @property
    def name(self) -> str:
        """The backend's name."""
        return str(self.description["name"])

    @property
    def counts(self) -> Counter[str]:
        """Number of cases by outcome."""
        return Counter(outcome.outcome for outcome in self.outcomes)

    @property
    def exit_code(self) -> Exit:
        """The verdict as an exit code."""
        if self.broken:
            return Exit.BROKEN
        if self.counts["fail"] or self.counts["error"] or self.problems:
            return Exit.FAILURE
        if self.counts["xpass"]:
            return Exit.UNEXPECTED_PASS
        # A backend that refuses everything has shown nothing.
        return Exit.CONFORMING if self.counts["pass"] else Exit.INCOMPLETE


def combine_exits(codes: Iterable[Exit]) -> Exit:
    """One exit code for several backends: the gravest."""
    gravity = (Exit.BROKEN, Exit.INCOMPLETE, Exit.FAILURE, Exit.UNEXPECTED_PASS, Exit.CONFORMING)
    found = set(codes)
    return next((code for code in gravity if code in found), Exit.INCOMPLETE)


@dataclass(frozen=True)
class _Attempt:
    """One run of one case."""

    outputs: Mapping[str, GuardedOutput]
    answer: Skip | None
    error: BaseException | None
    trace: str
    problem: str
    seconds: float


def _attempt(backend: Backend, case: Case, which: int, strided: bool, rehearse: bool = False) -> _Attempt:
    inputs = WatchedInputs(case.load_inputs(), strided)
    outputs = {name: GuardedOutput(output, which) for name, output in case.outputs.items()}
    cheated, answered = "", False
    if rehearse and inputs.disguise():
        refusal, failed, _, cheated, _ = _call(backend, case, inputs, outputs)
        answered = refusal is None and failed is None
        inputs.reveal()
        for output in outputs.values():
            output.poison()
    answer, error, trace, violation, seconds = _call(backend, case, inputs, outputs)
    problem = cheated or violation or misbehaviour(inputs, outputs)
    if answered and answer is not None:
        problem = problem or f"skipped ({answer.reason}), though it answered other values of the same shapes"
    return _Attempt(outputs, answer, error, trace, problem, seconds)


def _call(
    backend: Backend, case: Case, inputs: WatchedInputs, outputs: Mapping[str, GuardedOutput]
) -> tuple[Skip | None, BaseException | None, str, str, float]:
    """One call under seal: its answer, error, traceback, violation and seconds."""
    params, arrays = decode_params(case.params), {name: output.array for name, output in outputs.items()}
    answer, error, trace = None, None, ""
    with warnings.catch_warnings(), sealed(backend, case.folder) as violations:
        # An overflow that a vector provokes is judged by its result, not by the warning on the way.
        warnings.simplefilter("ignore")
        started = perf_counter()
        try:
            answer = backend.run(case.op, params, inputs.arrays, arrays)
        except AdapterBroken:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as caught:  # SystemExit and whatever else a backend derives from it
            error, trace = caught, _trace()
        seconds = perf_counter() - started
        for output in outputs.values():
            output.settle()
    return answer, error, trace, f"the backend {violations[0]} while it ran" if violations else "", seconds


def run_case(
    backend: Backend, description: Mapping[str, Any], case: Case, policy: Policy, keep: bool = False
) -> Outcome:
    """Run one case and judge it.

    Args:
        backend: implementation to be judged.
        description: what its ``describe()`` said.
        case: the vector.
        policy: the budgets.
        keep: keep the actual arrays in the outcome.

    Raises:
        AdapterBroken: if the backend gave up.
        VectorError: if the vector itself cannot be used.
    """
    name = str(description["name"])
    refusal = _declared_refusal(description, case)
    if refusal:
        return Outcome(name, case, "skip", refusal)
    attempts = [_attempt(backend, case, 0, strided=False, rehearse=isinstance(case.expected, Mapping))]
    first = attempts[0]
    if isinstance(first.answer, Skip) and not first.problem and first.error is None:
        link = f" ({first.answer.link})" if first.answer.link else ""
        return Outcome(name, case, "skip", first.answer.reason + link, first.seconds)
    attempts.append(_attempt(backend, case, 1, strided=False))
    if description.get("strided", True):
        attempts.append(_attempt(backend, case, 0, strided=True))
    judge = _judge_error if isinstance(case.expected, ExpectedError) else _judge_values
    outcome = judge(case, attempts, policy, description)
    actual = {key: output.answer for key, output in first.outputs.items()} if keep else {}
    seconds = sum(attempt.seconds for attempt in attempts)
    return replace(outcome, seconds=seconds, actual=actual)


def _declared_refusal(description: Mapping[str, Any], case: Case) -> str:
    calls, dtypes = description.get("calls"), description.get("dtypes")
    if calls is not None and case.call.name not in calls:
        return f"does not implement {case.call.name}"
    needed = {spec["dtype"] for spec in case.inputs.values()} | {output.dtype for output in case.outputs.values()}
    lacking = sorted(needed - set(dtypes)) if dtypes is not None else []
    return f"does not take {', '.join(lacking)}" if lacking else ""


def _label(index: int) -> str:
    return ("", "on the second run: ", "with strided inputs: ")[index]


def _judge_values(case: Case, attempts: list[_Attempt], policy: Policy, description: Mapping[str, Any]) -> Outcome:
    name, own = str(description["name"]), description.get("own") is True
    for index, attempt in enumerate(attempts):
        if attempt.problem:
            return Outcome(name, case, "fail", _label(index) + attempt.problem)
        late = next((key for key, output in attempt.outputs.items() if output.written_late()), None)
        if late is not None:
            return Outcome(
                name, case, "fail", f"{_label(index)}{late} was still written after the backend had returned"
            )
        if attempt.error is not None:
            # A result of the wrong shape is an answer, and a wrong one; anything else is no answer at all.
            kind = "fail" if OutputMismatch.__name__ in error_names(attempt.error) else "error"
            return Outcome(name, case, kind, _label(index) + describe_error(attempt.error), trace=attempt.trace)
        if attempt.answer is not None:
            return Outcome(name, case, "fail", _label(index) + "skipped, though the first run was not")
    unwritten = _never_written(attempts[0], attempts[1])
    if unwritten:
        return Outcome(name, case, "fail", unwritten)
    message = _differ(attempts[0], attempts[1])
    best, note = None, ""
    for index, attempt in enumerate(attempts):
        for comparison in _compare_all(case, attempt, policy, name, own):
            if not comparison.passed:
                return Outcome(name, case, "fail", message or _label(index) + comparison.message, comparison=comparison)
            note = note or comparison.note
            if best is None or (comparison.share or 0.0) > (best.share or 0.0):
                best = comparison
    return Outcome(name, case, "fail" if message else "pass", message, comparison=best, note=note)


def _compare_all(case: Case, attempt: _Attempt, policy: Policy, name: str, own: bool) -> Iterable[Comparison]:
    assert not isinstance(case.expected, ExpectedError)
    for key, expected in case.expected.items():
        budget = policy.budget(case, case.outputs[key].dtype, name, own)
        try:
            yield compare(key, attempt.outputs[key].answer, case.outputs[key], expected, budget)
        except VectorError as error:
            raise VectorError(f"{case.name}: {error}") from None


def _never_written(first: _Attempt, second: _Attempt) -> str:
    for key in first.outputs:
        missing = first.outputs[key].unwritten() & second.outputs[key].unwritten()
        if missing.any():
            index = [int(i) for i in next(zip(*missing.nonzero(), strict=True), ())]
            return f"never wrote element {index} of {key} ({int(missing.sum())} of {missing.size})"
    return ""


def _differ(first: _Attempt, second: _Attempt) -> str:
    for key in first.outputs:
        wrong = bits_of(first.outputs[key].answer) != bits_of(second.outputs[key].answer)
        if wrong.any():
            return f"{key} had different bits on a second run ({int(wrong.sum())} of {wrong.size} elements)"
    return ""


def _judge_error(case: Case, attempts: list[_Attempt], _: Policy, description: Mapping[str, Any]) -> Outcome:
    assert isinstance(case.expected, ExpectedError)
    name, own = str(description["name"]), description.get("own") is True
    wanted = case.expected
    for index, attempt in enumerate(attempts):
        if attempt.problem:
            return Outcome(name, case, "fail", _label(index) + attempt.problem)
        if attempt.error is None:
            did = "skipped, though the first run was not" if attempt.answer else "returned normally"
            return Outcome(name, case, "fail", f"{_label(index)}{did}, expected {wanted.error}")
        if not _is_right_error(attempt.error, wanted.error, own):
            message = f"{_label(index)}raised {describe_error(attempt.error)}; expected {wanted.error}"
            broke = isinstance(attempt.error, SystemExit) or "BackendDied" in error_names(attempt.error)
            return Outcome(name, case, "error" if broke else "fail", message, trace=attempt.trace)
        if wanted.phase in ("load", "validate"):
            for key, output in attempt.outputs.items():
                if not output.unwritten().all():
                    message = f"{_label(index)}wrote to {key} before it raised {wanted.error}"
                    return Outcome(name, case, "fail", message)
    return Outcome(name, case, "pass")


def error_names(error: BaseException) -> list[str]:
    """Names of an exception's classes, its own first; those of another process as it told them."""
    told = getattr(error, "told_names", None)
    return list(told) if told else [cls.__name__ for cls in type(error).__mro__]


def describe_error(error: BaseException) -> str:
    """``ClassName: message``, of characters that can be printed and stored."""
    try:
        message = str(error).encode("utf-8", "backslashreplace").decode()
    except Exception as inner:
        message = f"(its message cannot be had: {type(inner).__name__})"
    # Escape sequences would reach the terminal of whoever reads this.
    shown = "".join(char if char >= " " or char in "\t\n" else repr(char)[1:-1] for char in message)
    return f"{error_names(error)[0]}: {shown}" if shown else error_names(error)[0]


def _trace() -> str:
    try:
        return traceback.format_exc()
    except Exception as inner:
        return f"(no traceback can be had: {type(inner).__name__})"


def _is_right_error(error: BaseException, wanted: str, own: bool) -> bool:
    """The class itself or one derived from it; from a third party also the builtin that the class derives from."""
    names = error_names(error)
    if wanted in names:
        return True
    builtin = ERRORS[wanted].__bases__[-1].__name__
    return not own and builtin in names and WalshError.__name__ not in names and not set(names) & set(ERRORS)


def run_backend(
    backend: Backend,
    cases: Iterable[Case],
    policy: Policy,
    deviations: Deviations | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    run: Callable[[Sequence[Case]], Iterable[Outcome]] | None = None,
) -> BackendRun:
    """Run cases against one backend, smoke cases first.

    Args:
        backend: implementation to be judged.
        cases: those that were selected.
        policy: the budgets.
        deviations: its known failures.
        on_outcome: called after each case, for progress; the verdict on a skip may still change, see below.
        run: runs the cases after the smoke cases, such as several processes do; here and one by one if None.

    Returns:
        what was learned, in the order of the cases. If every smoke case that was not skipped ended in an error, the
        adapter counts as broken and the rest is not run. A skip is a failure if another case with the same call,
        parameters, dtypes and shapes ran: what a backend refuses may not depend on values.
    """
    description = backend.describe()
    deviations = deviations or Deviations()
    ordered = sorted(cases, key=lambda case: SMOKE not in case.flags)
    smoke = sum(SMOKE in case.flags for case in ordered)
    outcomes: list[Outcome] = []

    def here(chosen: Sequence[Case]) -> Iterable[Outcome]:
        return (run_case(backend, description, case, policy) for case in chosen)

    def take(results: Iterable[Outcome]) -> str:
        try:
            for result in results:
                outcomes.append(_apply_deviation(result, deviations))
                if on_outcome is not None:
                    on_outcome(outcomes[-1])
        except AdapterBroken as error:
            return str(error)
        return ""

    broken = take(here(ordered[:smoke])) or _judge_smoke(outcomes) or take((run or here)(ordered[smoke:]))
    place = {case.name: number for number, case in enumerate(ordered)}
    outcomes.sort(key=lambda outcome: place[outcome.case.name])
    ran = {_signature(outcome.case) for outcome in outcomes if outcome.outcome != "skip"}
    final = tuple(_withdraw_skip(outcome, _signature(outcome.case) in ran) for outcome in outcomes)
    return BackendRun(description, final, deviations.problems, broken)


def _apply_deviation(outcome: Outcome, deviations: Deviations) -> Outcome:
    deviation = deviations.find(outcome.case.name)
    if deviation is None or outcome.outcome == "skip":
        return outcome
    if outcome.outcome == "pass":
        return replace(outcome, outcome="xpass", message=f"passes, but is listed as a deviation: {deviation.reason}")
    return replace(outcome, outcome="xfail", note=f"{deviation.reason} ({deviation.issue}, until {deviation.expiry})")


def _judge_smoke(outcomes: list[Outcome]) -> str:
    answered = [outcome for outcome in outcomes if outcome.outcome != "skip"]
    if answered and all(outcome.outcome == "error" for outcome in answered):
        return f"all {len(answered)} smoke cases ended in an error, the first with {answered[0].message}"
    return ""


def _signature(case: Case) -> str:
    """What a refusal may depend on."""
    shapes = {name: (spec["dtype"], tuple(spec["shape"])) for name, spec in sorted(case.inputs.items())}
    params = sorted((key, repr(value)) for key, value in case.params.items())
    return f"{params} {shapes} {sorted((name, output.dtype) for name, output in case.outputs.items())}"


def _withdraw_skip(outcome: Outcome, others_ran: bool) -> Outcome:
    if outcome.outcome != "skip" or not others_ran:
        return outcome
    message = f"refused ({outcome.message}), though a case of the same call, parameters, dtypes and shapes was not"
    return replace(outcome, outcome="fail", message=message)
