"""``walsh ops``: what there is to implement, and how many vectors hold it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click
from rich.table import Table

from walsh.suite.catalog import CALLS, LANES
from walsh.suite.display import make_console
from walsh.suite.schema import locate_data
from walsh.suite.vectors import load_suite

_WIDTH = 150
"""Columns of a log, in which no word of the table is cut."""


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ops(vectors: Path | None, as_json: bool) -> None:
    """List ops and their calls, with the number of vectors in each lane."""
    suite = load_suite(locate_data(vectors))
    counts = {name: Counter[str]() for name in CALLS}
    for case in suite.cases:
        counts[case.call.name][case.lane] += 1
    if as_json:
        rows = [{"op": CALLS[name].op, "call": name, "lanes": dict(lanes)} for name, lanes in counts.items()]
        click.echo(json.dumps({"manifest": suite.digest, "calls": rows}, indent=1))
        return
    console = make_console()
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(box=None, pad_edge=False)
    words = [f"{arg}?" for call in CALLS.values() for arg in call.args]
    shown = [lane for lane in LANES if any(lanes[lane] for lanes in counts.values())]
    for title in ("op", "call", "arguments"):
        # Whole words only: they are what one has to type.
        table.add_column(title, no_wrap=title != "arguments", min_width=max(map(len, words)) * (title == "arguments"))
    for lane in shown:
        table.add_column(lane.replace("_", " "), justify="right")
    previous = ""
    for name, lanes in counts.items():
        call = CALLS[name]
        arguments = " ".join(arg + "?" * (arg in call.optional) for arg in call.args)
        cells = [str(lanes[lane]) if lanes[lane] else "" for lane in shown]
        table.add_row(call.op if call.op != previous else "", name, arguments, *cells)
        previous = call.op
    console.print(table)
    console.print(f"{len(suite.cases)} cases, vectors {suite.digest[:16]}")
