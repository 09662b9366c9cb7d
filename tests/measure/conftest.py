"""A machine that is simulated: it drifts by a sixth and jitters by two hundredths, and every test sees the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from walsh.measure.case import Case, Provider, Work


class SimulatedClock:
    """Runs providers and tells times that follow from their speed, a slow drift and noise."""

    device = "cpu"
    graphs = False

    def __init__(self, seed: int = 0, jitter: float = 0.02) -> None:
        self._random = random.Random(seed)
        self._jitter, self._step = jitter, 0

    def measure(self, run: Callable[[Any], Any], inputs: Mapping[str, Any], warm: bool) -> tuple[float, Any]:
        self._step += 1
        drift = 1 + 0.15 * math.sin(self._step / 40)
        noise = math.exp(self._random.gauss(0, self._jitter))
        if self._random.random() < 0.02:
            noise *= 4  # a neighbour wakes up
        return getattr(run, "seconds", 1e-3) * drift * noise, run(inputs)


def timed(seconds: float, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrapper(inputs: Any) -> Any:
        return run(inputs)

    wrapper.seconds = seconds
    return wrapper


def double(inputs: Mapping[str, Any]) -> Any:
    return 2 * inputs["x"]


def check_double(inputs: Mapping[str, Any], output: Any, seed: int) -> float:
    return float(np.abs(output - (inputs["x"] + inputs["x"])).max()) / 1e-12


def make_case(*providers: Provider, seconds: float = 1e-3, rounds: int = 31) -> Case:
    baseline = Provider("plain", timed(seconds, double))
    return Case(
        op="rms_norm",
        name="rms_norm/fake",
        shape={"M": 64},
        dtype="float64",
        work=Work(128.0, 1024.0),
        fresh=lambda seed: {"x": np.random.default_rng(seed).standard_normal(64)},
        check=check_double,
        providers=(baseline, *providers),
        at_least=rounds,
    )


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()
