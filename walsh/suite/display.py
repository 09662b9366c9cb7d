"""What a person sees: the verdict, the parity matrix, and a page for each failure.

On a terminal with colours and symbols; in a log the same text without either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from walsh import __version__
from walsh.suite.catalog import LANES, OPS
from walsh.suite.comparer import Comparison
from walsh.suite.guard import bits_of
from walsh.suite.runner import BackendRun, Exit, Outcome
from walsh.suite.vectors import Case, Suite

_STYLE = {
    "pass": "green",
    "fail": "bold red",
    "error": "bold magenta",
    "skip": "dim",
    "xfail": "yellow",
    "xpass": "red",
}
_SYMBOL = {"pass": "✓", "fail": "✗", "error": "!", "skip": "-", "xfail": "x", "xpass": "X"}
_PLAIN = {"pass": "ok", "fail": "FAIL", "error": "ERR", "skip": "skip", "xfail": "xfail", "xpass": "XPASS"}
_VERDICT = {
    Exit.CONFORMING: ("green", "CONFORMING"),
    Exit.FAILURE: ("bold red", "NOT CONFORMING"),
    Exit.UNEXPECTED_PASS: ("bold yellow", "UNEXPECTED PASS"),
    Exit.INCOMPLETE: ("bold yellow", "INCOMPLETE"),
    Exit.BROKEN: ("bold magenta", "ADAPTER BROKEN"),
}
_BAR = 30


def make_console() -> Console:
    """A console on stdout; 120 columns where there is no terminal to ask."""
    # Without emoji, because names of commands and cases hold colons: "cmd:cat" is no picture of a cat.
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=120, no_color=True, force_terminal=False)
    return console


def _can_draw(console: Console) -> bool:
    """Whether this is a terminal whose encoding has our symbols."""
    return console.is_terminal and not console.is_dumb_terminal and "utf" in console.encoding.lower()


def _count(console: Console, outcome: str, number: int) -> str:
    label = f"{_SYMBOL[outcome]}{number}" if _can_draw(console) else f"{_PLAIN[outcome]} {number}"
    return f"[{_STYLE[outcome]}]{label}[/]"


def print_verdict(console: Console, runs: Sequence[BackendRun], suite: Suite, code: Exit, seconds: float) -> None:
    """Two lines: the verdict on every backend, and what was run."""
    style, word = _VERDICT[code]
    parts = []
    for run in runs:
        counts = [f"{run.counts[name]} {name}" for name in _STYLE if run.counts[name] or name in ("pass", "fail")]
        parts.append(f"{escape(run.name)}: {', '.join(counts)}")
    console.print(f"[{style}]{word}[/]  {'; '.join(parts)}")
    for run in runs:
        if run.outcomes and run.counts["skip"] == len(run.outcomes):
            reason = escape(run.outcomes[0].message)
            console.print(f"{escape(run.name)} answered no case, which shows nothing; its first refusal: {reason}")
    cases = len({outcome.case.name for run in runs for outcome in run.outcomes})
    console.print(
        f"{cases} of {len(suite.cases)} cases, vectors {suite.digest[:16]}, walsh {__version__}, "
        f"{seconds:.1f} s, exit {int(code)}"
    )


def print_matrix(console: Console, runs: Sequence[BackendRun]) -> None:
    """The parity matrix: rows are ops and backends, columns lanes, cells the counts by outcome."""
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    lanes = [lane for lane in LANES if any(outcome.case.lane == lane for outcome in outcomes)]
    if not lanes:
        return
    table = Table(box=None if not _can_draw(console) else Table().box, pad_edge=False)
    table.add_column("op")
    table.add_column("backend")
    for lane in lanes:
        table.add_column(lane.replace("_", " "), justify="right")
    for op in OPS:
        for run in runs:
            cells = {lane: Counter[str]() for lane in lanes}
            for outcome in run.outcomes:
                if outcome.case.op == op:
                    cells[outcome.case.lane][outcome.outcome] += 1
            if any(cells.values()):
                shown = [" ".join(_count(console, n, cell[n]) for n in _STYLE if cell[n]) for cell in cells.values()]
                table.add_row(op, escape(run.name), *shown)
    console.print(table)


def show_hex(value: Any) -> str:
    """The bits of a scalar, such as ``0x3f800000``."""
    array = np.asarray(value)
    return f"0x{int(bits_of(array)):0{2 * array.dtype.itemsize}x}"


def show_decimal(value: Any) -> str:
    """A scalar in nine digits, which tell float32 numbers apart."""
    return str(value) if np.asarray(value).dtype.kind in "biu" else f"{float(value):.9g}"


def print_failure(console: Console, outcome: Outcome, repeat: str) -> None:
    """The page of one failure.

    Args:
        console: where to.
        outcome: anything but a pass.
        repeat: the command that runs just this case again.
    """
    case = outcome.case
    head = f"[{_STYLE[outcome.outcome]}]{outcome.outcome.upper()}[/]"
    console.print(f"\n{head}  [bold]{escape(case.name)}[/]  ({escape(outcome.backend)}, {case.call.name}, {case.lane})")
    if outcome.message:
        console.print(f"  {escape(outcome.message)}")
    if outcome.comparison is not None:
        _print_element(console, outcome.comparison)
    console.print(f"  tried      {escape(case.comment)}")
    for note in case.notes:
        links = " ".join(note.links)
        console.print(f"  smells of  [bold]{escape(note.bug)}[/]: {escape(note.description)} {escape(links)}".rstrip())
    if outcome.note:
        console.print(f"  note       {escape(outcome.note)}")
    console.print(f"  repeat     [cyan]{escape(repeat)}[/]", soft_wrap=True)


def _print_element(console: Console, found: Comparison) -> None:
    if found.index is not None:
        exact = "" if found.exact is None else f"  (exactly {found.exact:.17g})"
        console.print(f"  element    {found.name}{escape(str(list(found.index)))}")
        console.print(f"  expected   {show_hex(found.expected)}  {show_decimal(found.expected)}{exact}")
        console.print(f"  actual     {show_hex(found.actual)}  {show_decimal(found.actual)}")
    if found.error is not None and found.budget is not None and found.share is not None:
        console.print(f"  error      {found.error:.6g}, budget {found.budget:.6g}, {found.share:.4g} of it used")
    if found.ulp is not None:
        console.print(f"  distance   {found.ulp:g} ULP at most, over all elements")
    if found.histogram:
        print_histogram(console, found.histogram)


def print_histogram(console: Console, counts: dict[str, int]) -> None:
    """Number of elements by ULP distance, one line a bin."""
    largest, block = max(counts.values()), "█" if _can_draw(console) else "#"
    for label, count in counts.items():
        bar = block * max(1, round(_BAR * count / largest))
        console.print(f"  {label + ' ULP' if label != 'nan/inf' else label:>14} {count:>9}  [blue]{bar}[/]")


def print_line(console: Console, outcome: Outcome) -> None:
    """One line for ``--verbose``."""
    comparison = outcome.comparison
    used = "" if comparison is None or comparison.share is None else f"  {comparison.share:.3g} of budget"
    detail = f"  {outcome.message}" if outcome.message else used
    console.print(
        f"[{_STYLE[outcome.outcome]}]{outcome.outcome:5}[/] {escape(outcome.case.name + detail)}", soft_wrap=True
    )


def print_case(console: Console, case: Case) -> None:
    """What a case is: call, parameters, inputs, outputs and why it exists."""
    console.print(f"[bold]{escape(case.name)}[/]  {case.call.name}, lane {case.lane}")
    console.print(f"  {escape(case.comment)}")
    parameters = {key: value for key, value in case.params.items() if key != "call"}
    if parameters:
        console.print(f"  params     {escape(json.dumps(parameters))}", soft_wrap=True)
    for name, spec in case.inputs.items():
        origin = next(kind for kind in ("bits", "paint", "file") if kind in spec)
        detail = f" {json.dumps(spec['paint'])}" if origin == "paint" else ""
        console.print(f"  input      {name} {spec['dtype']}{escape(str(spec['shape']))} {origin}{escape(detail)}")
    for name, output in case.outputs.items():
        console.print(f"  output     {name} {output.dtype}{escape(str(list(output.shape)))}")
    for note in case.notes:
        console.print(f"  flag       {note.flag}: [bold]{escape(note.bug)}[/]: {escape(note.description)}")


def print_problems(console: Console, runs: Iterable[BackendRun]) -> None:
    """Failures that belong to no case."""
    for run in runs:
        for problem in run.problems:
            console.print(f"[bold red]PROBLEM[/]  {escape(run.name)}: {escape(problem)}")
        if run.broken:
            console.print(f"[bold magenta]BROKEN[/]  {escape(run.name)}: {escape(run.broken)}")
