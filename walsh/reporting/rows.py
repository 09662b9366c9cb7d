"""What the sections of a report share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from walsh.reporting.content import Paragraph
from walsh.reporting.inputs import Material, Stored

Row = Mapping[str, Any]


def missing(what: str, command: str) -> Paragraph:
    """Says that a part of the report has no data, and what would make them."""
    return Paragraph(f"Not in the stored results: {what}. `{command}` makes it.", "quiet")


def challengers(stored: Stored) -> list[Row]:
    """Rows of anything but baselines."""
    return [row for row in stored.run.rows if row["role"] != "baseline"]


def all_rows(material: Material) -> Iterable[Row]:
    """The rows of all stored runs."""
    return (row for stored in material.stored for row in stored.run.rows)
