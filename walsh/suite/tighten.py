"""How much of the a-priori bound walsh's own backends need, measured, and the policy that follows from it.

A bound that holds for any order of summation is generous to a given kernel: a kernel may grow many times worse and
still keep it. Walsh's own backends are therefore held to 4 times the largest share of the bound that they were measured
to use, per op, lane and dtype. The factor covers other processors and library versions, which sum in other orders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from walsh.suite.backend import Backend, Skip
from walsh.suite.comparer import Budget, compare
from walsh.suite.policy import load_policy
from walsh.suite.schema import dump_canonical, load_canonical
from walsh.suite.tensors import DTYPES
from walsh.suite.vectors import Case, ExpectedError, decode_params

FACTOR = 4.0
"""Allowed over measured."""

FLOOR = 1.0 / 64
"""No share is asked below this: a kernel that was exact on our vectors need not be exact on every machine."""

_PRIOR = Budget(share=1.0, ulp=np.inf, preferred=False)


@dataclass(frozen=True)
class Measured:
    """The largest share of the bound that one backend used.

    Attributes:
        op, lane, dtype: where.
        backend: whose.
        share: of the a-priori bound, 0 to 1.
        case: in which it was used.
    """

    op: str
    lane: str
    dtype: str
    backend: str
    share: float
    case: str

    def entry(self, date: str) -> dict[str, Any]:
        """The policy entry, or an empty one if 4 times the share is no limit."""
        share = float(f"{max(FACTOR * self.share, FLOOR):.2g}")
        if share >= 1.0:
            return {}
        return {
            "backend": self.backend,
            "date": date,
            "dtype": self.dtype,
            "lane": self.lane,
            "measured": float(f"{self.share:.3g}"),
            "op": self.op,
            "reason": f"{FACTOR:g} times the largest share of the bound in use, seen in {self.case}",
            "share": share,
        }


def measure(backend: Backend, cases: Iterable[Case]) -> list[Measured]:
    """Run every case that is compared under a bound once, and keep the largest share per op, lane and dtype.

    Args:
        backend: one of walsh's own.
        cases: of a suite; those without a bound, and those that the backend refuses, are passed over.
    """
    name = str(backend.describe()["name"])
    largest: dict[tuple[str, str, str], Measured] = {}
    for case in cases:
        if isinstance(case.expected, ExpectedError):
            continue
        if not any(expected.rule == "bound" for expected in case.expected.values()):
            continue
        out = {key: np.zeros(output.shape, dtype=DTYPES[output.dtype]) for key, output in case.outputs.items()}
        if isinstance(backend.run(case.op, decode_params(case.params), case.load_inputs(), out), Skip):
            continue
        for key, expected in case.expected.items():
            output = case.outputs[key]
            if expected.rule != "bound":
                continue
            share = compare(key, out[key], output, expected, _PRIOR).share or 0.0
            place = (case.op, case.lane, output.dtype)
            if place not in largest or share > largest[place].share:
                largest[place] = Measured(*place, name, share, case.name)
    return [largest[place] for place in sorted(largest)]


def tighten(root: Path, backends: Iterable[Backend], cases: Iterable[Case]) -> list[Measured]:
    """Measure, and replace the ``share`` entries of these backends in ``root/policy.json``.

    Returns:
        what was measured, for display.
    """
    cases = list(cases)
    date = datetime.now(tz=UTC).date().isoformat()
    found = [one for backend in backends for one in measure(backend, cases)]
    names = {one.backend for one in found}
    path = root / "policy.json"
    document = load_canonical(path.read_bytes(), "policy.json")
    kept = [entry for entry in document["entries"] if "share" not in entry or entry.get("backend") not in names]
    document["entries"] = kept + [entry for one in found if (entry := one.entry(date))]
    partial = path.with_name("policy.json.partial")
    partial.write_bytes(dump_canonical(document))
    partial.replace(path)
    load_policy(root)
    return found
