"""The budgets: ``conformance/policy.json``.

Defaults by lane; entries by op, lane and dtype, more narrowly by call and backend, each with a reason, the measured
value and a date. ``ulp`` entries hold for every backend they match. ``share`` entries narrow the a-priori bound for
walsh's own backends (4 times their measured error) and never touch a third party.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from walsh.errors import VectorError
from walsh.suite.comparer import Budget
from walsh.suite.schema import check, load_canonical, locate_data
from walsh.suite.vectors import Case


@dataclass(frozen=True)
class Policy:
    """Budgets and the digest of the file that they come from."""

    defaults: Mapping[str, Mapping[str, float]]
    entries: tuple[Mapping[str, Any], ...]
    digest: str

    def budget(self, case: Case, dtype: str, backend: str, own: bool) -> Budget:
        """What one output of a case may use.

        Args:
            case: the vector.
            dtype: of the output.
            backend: its name.
            own: whether it is part of walsh.
        """
        default = self.defaults.get(case.lane, {})
        return Budget(
            share=self._find(case, dtype, backend, "share", float(default.get("share", 1.0))) if own else 1.0,
            ulp=self._find(case, dtype, backend, "ulp", float(default.get("ulp", 0.0))),
            preferred=own,
        )

    def _find(self, case: Case, dtype: str, backend: str, rule: str, default: float) -> float:
        """The most specific entry: one that names the backend beats one that names the call beats one that does not."""
        best, value = -1, default
        for entry in self.entries:
            if rule not in entry or (entry["op"], entry["lane"], entry["dtype"]) != (case.op, case.lane, dtype):
                continue
            if entry.get("call", case.call.name) != case.call.name or entry.get("backend", backend) != backend:
                continue
            rank = 2 * ("backend" in entry) + ("call" in entry)
            if rank > best:
                best, value = rank, float(entry[rule])
        return value


def load_policy(root: Path) -> Policy:
    """Read and check ``root/policy.json``, or the one that came with this code if root has none.

    Raises:
        VectorError: if it is malformed, has a date that is none, or two entries for the same thing.
    """
    path = root / "policy.json"
    if not path.is_file():
        path = locate_data() / "policy.json"
    data = path.read_bytes()
    document = load_canonical(data, "policy.json")
    check("policy", document, "policy.json")
    seen = set()
    for entry in document["entries"]:
        key = (*(entry.get(name) for name in ("op", "call", "lane", "dtype", "backend")), "ulp" in entry)
        if key in seen:
            raise VectorError(f"policy.json: two entries for {key[:5]}; keep one")
        seen.add(key)
        parse_date(entry["date"], "policy.json")
    return Policy(document["defaults"], tuple(document["entries"]), hashlib.sha256(data).hexdigest())


def parse_date(text: str, where: str) -> date:
    """An ISO date, or a VectorError."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise VectorError(f"{where}: date {text!r}: expected YYYY-MM-DD") from None
