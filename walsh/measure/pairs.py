"""Timing one case: every provider and the baseline twice, in every round, in an order that chance decides.

    round:  fresh inputs -> [flush, clock, check the output] for baseline, baseline again, provider 1, provider 2, ...

Neighbours in time share whatever else the machine was doing, so ratios of a round are steady where times drift. The
second baseline is the A/A control: it shows what ratio this machine makes of no difference at all.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from walsh.errors import WalshError
from walsh.measure.case import Absent, Case, Provider
from walsh.measure.timing import CpuClock, CudaClock

AGAIN = "baseline again"
"""The control's name; no provider may have it."""

MOST_ROUNDS = 101


class WrongOutput(WalshError, ArithmeticError):  # noqa: N818  # names the finding
    """A timed call returned something else than the definition: stale, partial or wrong. Its time means nothing."""


@dataclass(frozen=True)
class Samples:
    """What was seen of one provider: seconds by round, and the largest error as a share of what is allowed."""

    seconds: list[float]
    error: float
    graph: bool


@dataclass(frozen=True)
class Measured:
    """What one case gave.

    Attributes:
        samples: by provider, ``AGAIN`` among them.
        problems: of providers whose output was wrong.
        absent: peers that raised.
    """

    samples: dict[str, Samples]
    problems: list[str]
    absent: list[Absent]


def measure_case(
    case: Case, clock: CpuClock | CudaClock, seed: int, budget: float, on_round: Callable[[], None] = lambda: None
) -> Measured:
    """Time all providers of a case.

    Args:
        case: to be measured.
        clock: of the device.
        seed: of inputs and order.
        budget: seconds to spend, checks included; at least as many rounds as the case demands.
        on_round: called after each round, for progress.

    Returns:
        samples by provider; a wrong one and a peer that failed are left out.

    Raises:
        WrongOutput: if the baseline itself is wrong, since nothing can then be compared.
        Exception: whatever the baseline or one of walsh's kernels raised.
    """
    chance = random.Random(f"{seed} {case.name}")
    runners = {provider.name: provider for provider in case.providers} | {AGAIN: case.baseline}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    errors = dict.fromkeys(runners, 0.0)
    graphs = dict.fromkeys(runners, False)
    problems: list[str] = []
    absent: list[Absent] = []
    rounds, done = case.at_least, -2
    gc.collect()
    gc.disable()
    try:
        while done < rounds:
            began = time.monotonic()
            inputs = case.fresh(chance.getrandbits(31))
            for name in chance.sample(sorted(runners), len(runners)):
                provider = runners[name]
                try:
                    elapsed, output = clock.measure(provider.run, inputs, case.warm)
                except Exception as error:
                    # A peer that does not work here is one peer less; our own kernels and the baseline must work.
                    _fail(case, name, error, absent, runners)
                    continue
                graphs[name] = clock.graphs
                wrong = _error(case, provider, inputs, output, chance.getrandbits(31))
                del output
                if not wrong <= 1:
                    _reject(case, name, wrong, problems, runners)
                    continue
                errors[name] = max(errors[name], wrong)
                if done >= 0:
                    seconds[name].append(elapsed)
            done += 1
            if done == 0:
                # The second round of warming up says how many will fit; the first may have compiled something.
                rounds = max(case.at_least, min(MOST_ROUNDS, int(budget / (time.monotonic() - began))))
            on_round()
    finally:
        gc.enable()
        if isinstance(clock, CudaClock):
            clock.forget()
    samples = {name: Samples(seconds[name], errors[name], graphs[name]) for name in runners}
    return Measured(samples, problems, absent)


def _fail(case: Case, name: str, error: Exception, absent: list[Absent], runners: dict[str, Provider]) -> None:
    provider = runners[name]
    if provider.backend is not None or provider is case.baseline:
        raise error
    absent.append(Absent(case.name, name, f"{type(error).__name__}: {error}".splitlines()[0][:200]))
    del runners[name]


def _error(case: Case, provider: Provider, inputs: object, output: object, seed: int) -> float:
    check = provider.check or case.check
    return check(inputs, output, seed)  # type: ignore[arg-type]  # what a case made is what its check takes


def _reject(case: Case, name: str, error: float, problems: list[str], runners: dict[str, Provider]) -> None:
    size = "NaN" if math.isnan(error) else f"{error:.3g} times what is allowed"
    message = f"{case.name}: {name}: the output of a timed call is wrong ({size}); it gets no figure"
    if name in (case.baseline.name, AGAIN):
        raise WrongOutput(message + ", and without its baseline nor does any other")
    problems.append(message)
    del runners[name]
