"""Known failures: ``conformance/deviations/<backend>.json``.

A deviation names cases (a glob), a reason, an issue, a date and an expiry. It turns a failure into an expected one, and
is itself a failure when it matches no case, has expired, or the case passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

from walsh.errors import VectorError
from walsh.suite.policy import parse_date
from walsh.suite.schema import check, load_canonical


@dataclass(frozen=True)
class Deviation:
    """One known failure: which cases, why, where it is tracked, and until when."""

    case: str
    reason: str
    issue: str
    expiry: date


@dataclass(frozen=True)
class Deviations:
    """The deviations of a backend that still count, and what is wrong with the others."""

    current: tuple[Deviation, ...] = ()
    problems: tuple[str, ...] = ()

    def find(self, case: str) -> Deviation | None:
        """The deviation that covers this case."""
        return next((deviation for deviation in self.current if fnmatchcase(case, deviation.case)), None)


def load_deviations(root: Path, backend: str, cases: Iterable[str], today: date | None = None) -> Deviations:
    """Read the deviations of a backend.

    Args:
        root: the data folder.
        backend: its name, as ``describe()`` gives it.
        cases: names of all cases there are, selected or not, so that running a part does not orphan a deviation.
        today: for tests.

    Raises:
        VectorError: if the file is malformed or belongs to another backend.
    """
    path = root / "deviations" / (re.sub(r"[^A-Za-z0-9_.-]", "_", backend) + ".json")
    if not path.is_file():
        return Deviations()
    where = f"deviations/{path.name}"
    document = load_canonical(path.read_bytes(), where)
    check("deviations", document, where)
    if document["backend"] != backend:
        raise VectorError(f"{where}: is for backend {document['backend']!r}, expected {backend!r}")
    names, now = list(cases), today or date.today()
    current, problems = [], []
    for entry in document["deviations"]:
        parse_date(entry["date"], where)
        deviation = Deviation(entry["case"], entry["reason"], entry["issue"], parse_date(entry["expiry"], where))
        if not any(fnmatchcase(name, deviation.case) for name in names):
            problems.append(f"{where}: {deviation.case!r} matches no case; remove it")
        elif deviation.expiry < now:
            problems.append(f"{where}: {deviation.case!r} expired on {deviation.expiry}; fix it or renew it")
        else:
            current.append(deviation)
    return Deviations(tuple(current), tuple(problems))
