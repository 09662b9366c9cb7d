"""What is measured: a case, its providers, and the work that any of them must do.

A case is one computation at one size. Its providers compute it: a named *baseline* (what a competent person would use
instead), walsh's kernels, and other packages where they are installed. Inputs are made anew for every round; the output
of every timed call is checked against the definition after its clock has stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Inputs = Mapping[str, Any]
"""What a provider is given: tensors, arrays or bytes by name."""

Run = Callable[[Inputs], Any]
Check = Callable[[Inputs, Any, int], float]
"""(inputs, output, seed) -> the largest error as a share of what is allowed; above 1, or NaN, is wrong."""


@dataclass(frozen=True)
class Work:
    """What one call must do, from the formulas of ``walsh.measure.work``.

    Attributes:
        flops: executed arithmetic; a multiply-add counts 2.
        bytes: compulsory traffic: every input read once, every output written once.
        dense_flops: of the dense layer of the same width, where the op replaces one.
        peak: the multiplication rate that bounds it: ``float32``, ``bfloat16``, ``int8``, ``wasm``.
        launches: kernels that are started one after the other.
    """

    flops: float
    bytes: float
    dense_flops: float | None = None
    peak: str = "float32"
    launches: int = 1


@dataclass(frozen=True)
class Provider:
    """One way to compute a case.

    Attributes:
        name: as reports show it.
        run: from inputs to output; everything that may be done beforehand has been done.
        backend: of the conformance suite, whose verdict this code needs; None for baselines and other packages.
        work: if it differs from the case's: a baseline that executes more, a format with more bytes.
        exact_counts: count its framework calls and allocations.
        least_ratio: the run fails if it is not at least this many times faster than the baseline.
        check: if it differs from the case's.
        model_bytes: of the model that it runs, for end-to-end jobs.
        counts: exact counts it knows by itself, such as instructions by scope.
        result_bytes: size of what it wrote, from its output, for codecs.
    """

    name: str
    run: Run
    backend: str | None = None
    work: Work | None = None
    exact_counts: bool = False
    least_ratio: float | None = None
    check: Check | None = None
    model_bytes: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    result_bytes: Callable[[Any], int] | None = None


@dataclass(frozen=True)
class Absent:
    """A provider that is not here, and why."""

    case: str
    provider: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One computation at one size.

    Attributes:
        op: an op of the catalogue or an end-to-end job.
        name: unique, such as ``cayley_dickson/forward/M1024-C4096/float32``.
        shape: sizes by letter.
        dtype: of the activations.
        work: what a call must do.
        fresh: inputs made from a seed, another one each round.
        check: see :data:`Check`.
        providers: the first is the baseline.
        tokens: per call, where tokens per second mean something.
        warm: leave caches as the call before left them, for data that lives there.
        at_least: fewest rounds.
    """

    op: str
    name: str
    shape: Mapping[str, int]
    dtype: str
    work: Work
    fresh: Callable[[int], Inputs]
    check: Check
    providers: tuple[Provider, ...]
    tokens: int | None = None
    warm: bool = False
    at_least: int = 7

    @property
    def baseline(self) -> Provider:
        """What all others are compared with."""
        return self.providers[0]


@dataclass(frozen=True)
class Setting:
    """What a case file needs to know of the run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        quick: only the cases of a quick run: small sizes, few providers.
        seed: of the whole run.
    """

    device: str = "cpu"
    quick: bool = False
    seed: int = 0
