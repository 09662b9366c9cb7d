import itertools
import math
import random

import numpy as np
import pytest

from walsh.errors import ShapeError
from walsh.measure.statistics import Ratio, judge, null_ratio, paired_ratio, quantiles


def test_quantiles_interpolate_between_order_statistics():
    assert quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)


def test_the_ratio_is_the_median_of_the_ratios_of_pairs_and_ignores_drift():
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = paired_ratio([2.0 * d for d in drift], drift)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        noise = np.exp(rng.normal(0, 0.05, (2, 31)))
        covered += paired_ratio(list(1.3 * noise[0]), list(noise[1])).contains(1.3)
    # 95 % nominal; the bootstrap of a median of 31 is known to be close to it. Binomial bounds at 200 trials.
    assert 176 <= covered <= 200


def test_the_null_interval_is_that_of_all_sign_patterns():
    first, second = [1.0, 1.1, 0.9, 1.2, 1.05], [1.02, 1.0, 1.0, 1.1, 1.1]
    logs = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    medians = [
        abs(float(np.median([s * v for s, v in zip(signs, logs, strict=True)])))
        for signs in itertools.product((-1, 1), repeat=5)
    ]
    found = null_ratio(first, second)
    assert found.high == pytest.approx(math.exp(max(medians)))
    assert found.low * found.high == pytest.approx(1.0)
    assert found.contains(found.value)


def test_a_against_a_stays_inside_its_printed_interval_in_20_repeats():
    chance = random.Random(1)
    for _ in range(20):
        shared = [math.exp(chance.gauss(0, 0.15)) for _ in range(21)]
        first, second = ([s * math.exp(abs(chance.gauss(0, 0.05))) for s in shared] for _ in range(2))
        found = null_ratio(first, second)
        assert found.contains(found.value)


def test_a_verdict_needs_both_its_interval_and_the_machine():
    quiet, noisy = Ratio(1.0, 0.99, 1.01), Ratio(1.0, 0.7, 1.4)
    assert judge(Ratio(1.3, 1.2, 1.4), quiet) == "faster"
    assert judge(Ratio(0.8, 0.7, 0.9), quiet) == "slower"
    assert judge(Ratio(1.3, 0.9, 1.4), quiet) == "equal"
    assert judge(Ratio(1.3, 1.2, 1.4), noisy) == "equal"


def test_pairs_must_be_pairs():
    with pytest.raises(ShapeError, match="3 and 2 samples"):
        paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0])
