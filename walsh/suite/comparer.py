"""Is this result right? Four rules, and everything a person needs to see why not.

    bits     every bit equal; -0 differs from +0; a NaN is right only where one is expected
    bound    |actual - expected| <= share * (gamma_K(u) * magnitude + u_out * |expected| + eta_out),
             gamma_K(u) = K u / (1 - K u)  (Higham, Accuracy and Stability, 3.1), u the unit roundoff of the
             accumulation, u_out and eta_out that of the output's dtype and half its smallest subnormal
    ulp      steps on the number line of the output's dtype from the correctly rounded expected value
    choice   bits, against each of a closed list; the first is preferred

Under bound and ulp, infinities and NaNs must match exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from walsh.errors import VectorError
from walsh.suite.guard import bits_of
from walsh.suite.tensors import Array, digest, is_float, round_to
from walsh.suite.vectors import Expected, Output


@dataclass(frozen=True)
class Budget:
    """How much of what is allowed.

    Attributes:
        share: of the a-priori bound, at most 1.
        ulp: units in the last place.
        preferred: rule ``choice`` accepts the preferred alternative only.
    """

    share: float = 1.0
    ulp: float = 0.0
    preferred: bool = False


@dataclass(frozen=True)
class Comparison:
    """The verdict on one output.

    Attributes:
        name: of the output.
        rule: by which it was compared.
        passed: the verdict.
        message: what is wrong, one clause; empty if nothing is.
        wrong, count: how many of how many elements are wrong.
        index: the worst element, or None where none can be named.
        expected, actual: its values, scalars of the output's dtype (expected is rounded to it).
        exact: its expected float64 value under the rules bound and ulp.
        error, budget: under bound absolute, under ulp in ULP; at the worst element.
        share: largest part of the budget that any element used.
        ulp: largest ULP distance; infinite for a mismatch of NaN or infinity; None if not floating.
        histogram: number of elements by ULP distance.
        note: for example that an alternative was taken.
    """

    name: str
    rule: str
    passed: bool
    message: str = ""
    wrong: int = 0
    count: int = 0
    index: tuple[int, ...] | None = None
    expected: Any = None
    actual: Any = None
    exact: float | None = None
    error: float | None = None
    budget: float | None = None
    share: float | None = None
    ulp: float | None = None
    histogram: dict[str, int] = field(default_factory=dict)
    note: str = ""


_PRECISION = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}
"""Significant bits, and the exponent of the smallest subnormal."""


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number: 2^-24 for float32."""
    return 2.0 ** -_PRECISION[dtype][0]


def gamma(terms: int, unit: str) -> float:
    """``K u / (1 - K u)``; infinite where K u reaches 1, so that no bound is claimed there."""
    product = terms * unit_roundoff(unit)
    return product / (1 - product) if product < 1 else float("inf")


def ulp_distance(actual: Array, expected: Array) -> Array:
    """Steps between numbers of one floating dtype.

    Returns:
        float64 [...]: 0 for +0 and -0 and for NaN with NaN; infinity where NaN or infinity meets anything else.
    """
    width = 8 * actual.dtype.itemsize
    magnitude = np.uint64((1 << (width - 1)) - 1)
    a, e = bits_of(np.asarray(actual)).astype(np.uint64), bits_of(np.asarray(expected)).astype(np.uint64)
    a_size, e_size = a & magnitude, e & magnitude
    same_sign = (a > magnitude) == (e > magnitude)
    steps = np.where(same_sign, np.maximum(a_size, e_size) - np.minimum(a_size, e_size), a_size + e_size)
    distance = np.asarray(steps.astype(np.float64))
    special = ~(np.isfinite(actual) & np.isfinite(expected))
    equal = (np.isnan(actual) & np.isnan(expected)) | (np.isinf(actual) & (a == e))
    distance[special] = np.where(equal, 0.0, np.inf)[special]
    return distance


_BINS = (0, 1, 2, 4, 8, 16, 64, 1024, 2**20)


def histogram(distance: Array) -> dict[str, int]:
    """Number of elements by ULP distance, in bins that double: 0, 1, 2, 3-4, 5-8, ..., then NaN or infinity."""
    counts: dict[str, int] = {}
    low = 0
    for high in _BINS:
        counts[str(high) if high <= low + 1 and high < 3 else f"{low + 1}-{high}"] = int(
            ((distance >= (low + 1 if high else 0)) & (distance <= high)).sum()
        )
        low = high
    counts[f">{low}"] = int(((distance > low) & np.isfinite(distance)).sum())
    counts["nan/inf"] = int(np.isinf(distance).sum())
    return {label: count for label, count in counts.items() if count}


def compare(name: str, actual: Array, output: Output, expected: Expected, budget: Budget) -> Comparison:
    """Hold one output to its expected value.

    Args:
        name: of the output.
        actual: what the backend wrote.
        output: the dtype and shape that were asked for.
        expected: the encoded value and its rule.
        budget: what the policy allows.

    Raises:
        VectorError: if the expected value itself cannot be used.
    """
    if actual.dtype.name != output.dtype or actual.shape != output.shape:
        found = f"{actual.dtype.name}{list(actual.shape)}"
        message = f"{name} is {found}, expected {output.dtype}{list(output.shape)}"
        return Comparison(name, expected.rule, False, message)
    if expected.digest is not None:
        passed = digest(actual) == expected.digest
        message = "" if passed else f"digest of {name} is {digest(actual)[:12]}, expected {expected.digest[:12]}"
        return Comparison(name, "bits", passed, message, 0 if passed else actual.size, actual.size)
    if expected.rule == "bits":
        return _compare_bits(name, actual, expected.value(), "bits")
    if expected.rule == "choice":
        return _compare_choice(name, actual, expected, budget)
    return _compare_close(name, actual, expected, budget)


def _differs(actual: Array, expected: Array) -> Array:
    wrong = bits_of(np.ascontiguousarray(actual)) != bits_of(np.ascontiguousarray(expected))
    if is_float(actual.dtype):
        wrong &= ~(np.isnan(np.atleast_1d(actual)) & np.isnan(np.atleast_1d(expected)))
    return np.asarray(wrong).reshape(actual.shape)


def _compare_bits(name: str, actual: Array, expected: Array, rule: str) -> Comparison:
    wrong = _differs(actual, expected)
    count = int(wrong.sum())
    distance = ulp_distance(actual, expected) if is_float(actual.dtype) else None
    worst = None if distance is None or not distance.size else float(distance.max())
    if not count:
        return Comparison(name, rule, True, count=actual.size, error=0.0, budget=0.0, share=0.0, ulp=worst)
    # The worst element says more than the first, except where all are equally wrong (a flipped zero has distance 0).
    index = _locate(wrong, None if distance is None else np.where(wrong, distance, -1.0))
    return Comparison(
        name,
        rule,
        False,
        f"{count} of {actual.size} elements of {name} differ",
        count,
        actual.size,
        index,
        expected[index],
        actual[index],
        ulp=worst,
        histogram={} if distance is None else histogram(distance),
    )


def _locate(wrong: Array, badness: Array | None) -> tuple[int, ...]:
    flat = int(np.argmax(wrong if badness is None else badness))
    return tuple(int(i) for i in np.unravel_index(flat, wrong.shape))


def _compare_choice(name: str, actual: Array, expected: Expected, budget: Budget) -> Comparison:
    preferred = _compare_bits(name, actual, expected.value(), "choice")
    if preferred.passed:
        return preferred
    alternatives = expected.alternatives()
    taken = next((i for i, value in enumerate(alternatives) if not _differs(actual, value).any()), None)
    if taken is None:
        message = f"{preferred.message} from the preferred choice, and none of {len(alternatives)} alternatives fits"
    elif budget.preferred:
        message = f"{name} is alternative {taken + 1}; walsh's own backends are held to the preferred choice"
    else:
        note = f"{name}: alternative {taken + 1} of {len(alternatives)} was taken, not the preferred choice"
        return Comparison(name, "choice", True, count=actual.size, note=note)
    return Comparison(**{**vars(preferred), "message": message})


def _compare_close(name: str, actual: Array, expected: Expected, budget: Budget) -> Comparison:
    exact = expected.value()
    target = round_to(exact, actual.dtype)
    distance = ulp_distance(actual, target)
    with np.errstate(all="ignore"):
        if expected.rule == "ulp":
            error, allowed = distance, np.full(actual.shape, budget.ulp)
        else:
            error = np.asarray(np.abs(actual.astype(np.float64) - exact))
            allowed = _bound(expected, exact, target, actual.dtype.name) * budget.share
        special = ~(np.isfinite(target) & np.isfinite(actual))
        error = np.where(special, np.where(distance == 0, 0.0, np.inf), error)
        share = np.where(error == 0, 0.0, np.where(special, np.inf, error / allowed))
        # Never by comparison with an allowance that may itself be infinite: special values match or they do not.
        wrong = np.where(special, distance != 0, ~(error <= allowed))
    count = int(wrong.sum())
    base = Comparison(
        name,
        expected.rule,
        not count,
        "" if not count else f"{count} of {actual.size} elements of {name} are past their budget",
        count,
        actual.size,
        share=float(share.max()) if share.size else 0.0,
        ulp=float(distance.max()) if distance.size else 0.0,
        histogram=histogram(distance),
    )
    if not actual.size:
        return base
    index = _locate(wrong, np.where(np.isnan(share), np.inf, share))
    return Comparison(
        **{
            **vars(base),
            "index": index,
            "expected": target[index],
            "actual": actual[index],
            "exact": float(exact[index]),
            "error": float(error[index]),
            "budget": float(np.broadcast_to(allowed, actual.shape)[index]),
        }
    )


def _bound(expected: Expected, exact: Array, target: Array, dtype: str) -> Array:
    """The a-priori bound per element, float64 of the output's shape; NaN where a special value is expected."""
    rule = expected.spec["compare"]
    magnitude = np.broadcast_to(expected.magnitude(), exact.shape)
    factor = gamma(int(rule["terms"]), rule["unit"])
    usable = np.isfinite(magnitude) & (magnitude >= 0) & np.isfinite(factor)
    if not np.all(usable | ~np.isfinite(target)):
        raise VectorError("a bound that is negative or infinite: magnitude must be finite and terms * u below 1")
    eta = 2.0 ** _PRECISION[dtype][1] / 2
    return np.asarray(factor * magnitude + unit_roundoff(dtype) * np.abs(exact) + eta)
