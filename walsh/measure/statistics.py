"""Statistics of interleaved pairs.

    l_i    = log(baseline_i / other_i)          one per round i, both timed within the same fraction of a second
    ratio  = exp(median(l))                     > 1: faster than the baseline
    [low, high]: percentiles of exp(median(l*)) over bootstrap resamples l* of the rounds (Efron, 1979)

    A/A:   the baseline against itself. Under exchange within a round each l_i is as likely as -l_i, so the medians of
           l with random signs are what a true ratio of 1 looks like on this machine (a randomisation test).

Everything is seeded: the same samples give the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from walsh.errors import ShapeError

RESAMPLES = 4000
"""Bootstrap resamples and random sign patterns; the tail of 1 in 2000 below needs a few thousand."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the baseline, with an interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        return self.low <= value <= self.high


def _logs(baseline: Sequence[float], other: Sequence[float]) -> Floats:
    if len(baseline) != len(other) or not len(baseline):
        raise ShapeError(f"{len(baseline)} and {len(other)} samples: expected as many of both, at least one")
    return np.log(np.asarray(baseline, np.float64)) - np.log(np.asarray(other, np.float64))


def quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50 and p80, interpolated between order statistics."""
    low, middle, high = np.quantile(np.asarray(seconds, np.float64), (0.2, 0.5, 0.8))
    return float(low), float(middle), float(high)


def paired_ratio(baseline: Sequence[float], other: Sequence[float], level: float = 0.95) -> Ratio:
    """Ratio of paired times with its bootstrap interval.

    Args:
        baseline, other: seconds; entry i of both was taken in round i.
        level: of the interval.

    Raises:
        ShapeError: if there is not one of each per round.
    """
    logs = _logs(baseline, other)
    rounds = np.random.default_rng(0).integers(0, len(logs), (RESAMPLES, len(logs)))
    medians = np.median(logs[rounds], axis=1)
    low, high = np.quantile(medians, ((1 - level) / 2, (1 + level) / 2))
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high)))


def null_ratio(first: Sequence[float], second: Sequence[float], level: float = 0.999) -> Ratio:
    """Ratio of two timings of the *same* code, and the interval that such ratios fall into here.

    Args:
        first, second: seconds, paired by round, in an order that chance decided.
        level: of the interval; high, since every case prints one and each must hold.

    Returns:
        The measured ratio; low and high are symmetric about 1 (low * high = 1) and do not depend on its direction.

    Raises:
        ShapeError: if there is not one of each per round.
    """
    logs = _logs(first, second)
    signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, len(logs))) * 2 - 1
    spread = float(np.quantile(np.abs(np.median(logs * signs, axis=1)), level))
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(-spread)), float(np.exp(spread)))


def judge(ratio: Ratio, null: Ratio) -> str:
    """``faster``, ``slower`` or ``equal``: a difference must exclude 1 and exceed what the machine does by itself."""
    if ratio.low > 1 and ratio.value > null.high:
        return "faster"
    return "slower" if ratio.high < 1 and ratio.value < null.low else "equal"
