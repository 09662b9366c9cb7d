"""Fuzzing between backends: draw, compare, shrink, and leave the smallest disagreement behind as a vector.

A round draws a call's parameters and inputs (`draws`), lets the definition compute what is expected, as the generator
of the golden vectors does, and runs every backend on the result by the runner's own rules: to the bit where that is
promised, else within the a-priori bound. hypothesis shrinks what disagrees.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from walsh.errors import BackendError, ParameterError, VectorError
from walsh.suite.backend import Backend
from walsh.suite.catalog import CALLS, Call
from walsh.suite.generate.build import Group
from walsh.suite.policy import Policy
from walsh.suite.runner import Outcome, run_case
from walsh.suite.vectors import Case, read_group

CHUNK = 20
"""Rounds with one call before the next one has its turn."""

_A_PRIORI = Policy({}, (), "")
"""No budget but the bound itself: shares of walsh's own backends were measured on the vectors."""


@dataclass(frozen=True)
class Found:
    """A disagreement, as small as it would get.

    Attributes:
        call: what was called.
        outcomes: one per backend that did not agree with the definition.
        path: the vector file.
    """

    call: str
    outcomes: tuple[Outcome, ...]
    path: Path


@dataclass(frozen=True)
class Report:
    """What a search came to.

    Attributes:
        rounds: how many were compared.
        answered: by backend, how many it did not refuse.
        found: the disagreements.
        seconds: it took.
    """

    rounds: int
    answered: dict[str, int]
    found: tuple[Found, ...]
    seconds: float


class _Disagreement(Exception):  # noqa: N818  # what hypothesis is to find and shrink
    pass


def lane_of(call: Call) -> str:
    """The lane whose rules a drawn case of this call is held to."""
    if call.kind == "strict" or call.name == "sample":
        return "strict"
    if call.kind == "backward":
        return "gradient"
    exact = (
        "pack_ternary",
        "unpack_ternary",
        "hash_indices",
        "uniform",
        "bitmask_encode",
        "bitmask_decode",
        "embedding",
    )
    return "exact" if call.name in exact else "rounded"


def choose_calls(ops: Sequence[str], backends: Sequence[Backend]) -> list[str]:
    """The calls that can be drawn, are wanted, and that some backend implements.

    Raises:
        ParameterError: if none is left.
    """
    draws = _load_draws()
    named = [backend.describe().get("calls") for backend in backends]
    wanted = {*ops, *(f"{op}.backward" for op in ops)}
    chosen = [
        name
        for name in draws
        if (not ops or CALLS[name].op in wanted or name in wanted)
        and any(calls is None or name in calls for calls in named)
    ]
    if not chosen:
        raise ParameterError(f"nothing to draw: no backend implements a call of {', '.join(ops) or 'the catalogue'}")
    return chosen


def _load_draws() -> Any:
    try:
        from walsh.suite.fuzz.draws import DRAWS
    except ImportError as error:
        raise BackendError(f"fuzzing needs hypothesis ({error}); pip install hypothesis") from None
    return DRAWS


class _Search:
    """Rounds, shared by all calls."""

    def __init__(self, backends: Sequence[Backend], folder: Path, limit: int | None, until: float | None) -> None:
        self.backends = [(backend, backend.describe()) for backend in backends]
        self.folder, self.limit, self.until = folder, limit, until
        self.rounds = 0
        self.answered = {str(description["name"]): 0 for _, description in self.backends}
        self.smallest: tuple[str, tuple[Outcome, ...]] | None = None
        self.shrinking = False

    @property
    def over(self) -> bool:
        """Whether rounds or seconds have run out."""
        late = self.until is not None and time.monotonic() > self.until
        return late or (self.limit is not None and self.rounds >= self.limit)

    def build(self, call: Call, drawn: Any) -> Case | None:
        """The case of drawn inputs, or None if the definition refuses them or cannot vouch for the result."""
        op, lane = call.op, lane_of(call)
        group = Group(op, "fuzz", lane, call.name)
        shutil.rmtree(self.folder / "vectors", ignore_errors=True)
        try:
            group.add("found", "found by fuzzing: say here why it matters", drawn.inputs, unproven=True, **drawn.params)
            group.write(self.folder)
            return read_group(self.folder / "vectors" / op / "fuzz.json")[0]
        except (VectorError, ValueError):
            # Refused, or an empty tensor for which no bound is derived.
            return None

    def compare(self, call: Call, drawn: Any) -> None:
        """One round.

        Raises:
            _Disagreement: if a backend's answer is wrong.
        """
        case = self.build(call, drawn)
        if case is None:
            return
        wrong = []
        for backend, description in self.backends:
            outcome = run_case(backend, description, case, _A_PRIORI)
            if not self.shrinking:
                self.answered[outcome.backend] += outcome.outcome != "skip"
            if outcome.outcome in ("fail", "error"):
                wrong.append(outcome)
        if not self.shrinking:
            self.rounds += 1
        if wrong:
            self.shrinking = True
            self.smallest = (call.name, tuple(wrong))
            raise _Disagreement

    def explore(self, name: str, seed: int, rounds: int) -> None:
        """Rounds with one call, shrinking the first disagreement.

        Raises:
            _Disagreement: with ``smallest`` the least that still disagrees, and its files in ``folder``.
        """
        import hypothesis
        from hypothesis import strategies as st

        call, make = CALLS[name], _load_draws()[name]
        self.shrinking = False

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=rounds,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            verbosity=hypothesis.Verbosity.quiet,
        )
        @hypothesis.given(st.data())
        def one(data: Any) -> None:
            drawn = make(data.draw)  # also when time is up: hypothesis wants the same draws every time
            if not self.over or self.shrinking:
                self.compare(call, drawn)

        one()


def fuzz(
    backends: Sequence[Backend],
    ops: Sequence[str] = (),
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    output: Path = Path("fuzz-found"),
    on_round: Callable[[int], None] | None = None,
) -> Report:
    """Look for inputs at which backends and the definition disagree.

    Args:
        backends: implementations to be compared.
        ops: rooms or calls; none means all that can be drawn.
        rounds, seconds: when to stop; whichever comes first. At least one is given.
        seed: of the draws; the same seed draws the same rounds.
        output: folder that vectors are written to, made when the first is.
        on_round: called with the number of rounds so far.

    Returns:
        what was found, at most one disagreement per call.

    Raises:
        ParameterError: neither rounds nor seconds, or nothing to draw. BackendError: hypothesis is not installed.
    """
    if rounds is None and seconds is None:
        raise ParameterError("neither rounds nor seconds: expected at least one, or the search would not end")
    started = time.monotonic()
    calls = choose_calls(ops, backends)
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as name:
        search = _Search(backends, Path(name), rounds, None if seconds is None else started + seconds)
        chunk = idle = 0
        while calls and not search.over:
            current = calls[chunk % len(calls)]
            left = CHUNK if rounds is None else min(CHUNK, rounds - search.rounds)
            before = search.rounds
            try:
                search.explore(current, seed * 1_000_003 + chunk, left)
            except _Disagreement:
                found.append(_keep(search, output))
                calls = [call for call in calls if call != current]
            chunk += 1
            idle = 0 if search.rounds > before else idle + 1
            if idle > 2 * len(calls):
                break  # nothing that is left can be drawn any more
            if on_round is not None:
                on_round(search.rounds)
    return Report(search.rounds, search.answered, tuple(found), time.monotonic() - started)


def _keep(search: _Search, output: Path) -> Found:
    """Move the smallest disagreement's files to where people find them."""
    assert search.smallest is not None
    name, outcomes = search.smallest
    op = CALLS[name].op
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in (search.folder / "vectors" / op).iterdir():
        shutil.copy(path, folder / path.name)
    (case,) = read_group(search.folder / "vectors" / op / "fuzz.json")
    kept = replace(case, folder=folder)
    return Found(name, tuple(replace(outcome, case=kept) for outcome in outcomes), folder / "fuzz.json")
