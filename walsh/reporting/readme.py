"""Tables of other documents, generated from stored rows between two markers.

    <!-- walsh report: NAME -->
    (generated)
    <!-- end of walsh report -->

NAME is one of ``TABLES``. ``walsh report readme`` rewrites what stands between; with ``--check`` it only says whether
that is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from walsh.errors import FormatError
from walsh.measure.provenance import machine_name
from walsh.reporting.content import Cell, Table, duration, make_table, quantity, ratio
from walsh.reporting.inputs import Material
from walsh.reporting.markdown import render_table

_OPEN, _CLOSE = r"<!-- walsh report: (?P<name>[a-z-]+) -->\n", r"<!-- end of walsh report -->"
_BLOCK = re.compile(f"(?P<open>{_OPEN})(?P<body>.*?)(?P<close>{_CLOSE})", re.DOTALL)


def _rows(material: Material, wanted: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
    return [row for stored in material.stored for row in stored.run.rows if wanted(row)]


def _speed(material: Material, ops: tuple[str, ...]) -> Table:
    rows = _rows(material, lambda row: row["op"] in ops and row["role"] != "baseline")
    cells = [
        (
            Cell(row["case"]),
            Cell(row["provider"]),
            Cell(row["baseline"]),
            ratio(row["ratio"], row["ratio_low"], row["ratio_high"], "quiet"),
            duration(row["p50"]),
            quantity(row["tokens_per_second"], "tok/s"),
            Cell(f"{100 * row['fraction']:.0f} % of {row['binds']}", row["fraction"]),
        )
        for row in rows
    ]
    columns = ("case", "provider", "baseline", "times faster", "p50", "tokens", "of the limit")
    return make_table("", columns, cells)


def linear_table(material: Material) -> Table:
    """The two hyper-complex layers."""
    return _speed(material, ("cayley_dickson", "hadamard"))


def jobs_table(material: Material) -> Table:
    """End-to-end jobs."""
    return _speed(material, ("train_step", "prefill", "decode", "load"))


TABLES: dict[str, Callable[[Material], Table]] = {"linear": linear_table, "jobs": jobs_table}
"""What can stand between markers."""


def refresh(text: str, material: Material) -> str:
    """The document with all its tables made anew.

    Raises:
        FormatError: for a marker with an unknown name.
    """
    machines = ", ".join(machine_name(stored.run.header["provenance"]) for stored in material.stored)
    started = ", ".join(stored.run.header["started"][:10] for stored in material.stored)

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise FormatError(f"marker {name!r}: expected one of {', '.join(TABLES)}")
        table = render_table(TABLES[name](material))
        origin = f"Measured on {machines}, {started}; `reports/report.html` has intervals, limits and raw rows."
        return f"{match['open']}{table}\n\n{origin}\n{match['close']}"

    return _BLOCK.sub(fill, text)
