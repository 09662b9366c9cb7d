"""What a report says, before anybody decides how it looks: sections of paragraphs, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: as it is shown.
        value: what it sorts by, if that is not the text.
        tone: ``good``, ``bad``, ``quiet`` or empty.
    """

    text: str
    value: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table; numbers stand right. ``fold`` hides it behind its caption on the page."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    fold: bool = False


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Code:
    """Commands."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture: inline SVG, and a sentence for those who do not see it."""

    svg: str
    caption: str
    name: str


Block = Table | Paragraph | Code | Figure


@dataclass(frozen=True)
class Section:
    """A titled part of a report; ``name`` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


def make_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], fold: bool = False) -> Table:
    """A table of cells, or of whatever is shown as its text."""
    made = tuple(tuple(c if isinstance(c, Cell) else Cell(str(c)) for c in row) for row in rows)
    return Table(caption, tuple(columns), made, fold)


def number(value: float | None, digits: int = 3) -> Cell:
    """A number to some digits; an empty cell for None."""
    return Cell("") if value is None else Cell(f"{value:.{digits}g}", value)


_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float | None, unit: str) -> Cell:
    """A large number with its prefix, such as ``41.2 GB/s``."""
    if value is None:
        return Cell("")
    for factor, prefix in _UNITS:
        if abs(value) >= factor:
            return Cell(f"{value / factor:.3g} {prefix}{unit}", value)
    return Cell(f"{value:.3g} {unit}", value)


def duration(seconds: float | None) -> Cell:
    """A time in the unit that suits it."""
    if seconds is None:
        return Cell("")
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return Cell(f"{seconds / factor:.3g} {unit}", seconds)
    return Cell(f"{seconds * 1e9:.3g} ns", seconds)


def ratio(value: float, low: float, high: float, verdict: str) -> Cell:
    """How many times faster than the baseline, with its interval and the verdict as tone."""
    tone = {"faster": "good", "slower": "bad"}.get(verdict, "quiet")
    return Cell(f"{value:.2f} [{low:.2f}, {high:.2f}]", value, tone)
