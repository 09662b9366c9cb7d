"""How far a long run is: a bar on a terminal, elsewhere a line on stderr every half minute.

A log without a terminal would else show nothing between the command and its verdict, and nobody could tell a slow
backend from one that hangs. Standard output holds results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

INTERVAL = 30.0
"""Seconds between two lines."""


class Steps:
    """A count of what is done, told by ``show(done)`` after each step."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self._show = show
        self.done = 0

    def advance(self) -> None:
        """One more."""
        self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        """So many in all."""
        self.done = done
        self._show(done)


def _lines(label: str, total: int | None, clock: Callable[[], float]) -> Callable[[int], None]:
    started = told = clock()
    whole = "" if total is None else f" of {total}"

    def show(done: int) -> None:
        nonlocal told
        if clock() - told >= INTERVAL:
            told = clock()
            print(f"{label}: {done}{whole} after {told - started:.0f} s", file=sys.stderr, flush=True)

    return show


@contextmanager
def track(
    console: Console, label: str, total: int | None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Steps]:
    """Inside the ``with`` block steps are shown on this console's terminal or, if it has none, on stderr.

    Args:
        console: of :func:`walsh.suite.display.make_console`.
        label: what the steps are, such as the name of a backend.
        total: how many there will be; None if nobody knows.
        clock: seconds, for tests.
    """
    if not console.is_terminal:
        yield Steps(_lines(label, total, clock))
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield Steps(lambda done: bar.update(task, completed=done))
