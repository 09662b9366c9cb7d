"""Measurements in a terminal: the rows of a run, its problems, what changed, and a row's history."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from walsh.measure.provenance import machine_name
from walsh.measure.rows import Run
from walsh.reporting.compare import Comparison
from walsh.reporting.content import duration, quantity

_STYLE = {"faster": "green", "slower": "red", "regression": "bold red", "improvement": "green"}


def _styled(text: str, kind: str) -> str:
    style = _STYLE.get(kind)
    return f"[{style}]{escape(text)}[/]" if style else escape(text)


def show_run(console: Console, run: Run) -> None:
    """One line per row, absences, problems."""
    table = Table(box=None, pad_edge=False)
    for column in ("case", "provider"):
        table.add_column(column, overflow="fold")
    for column in ("p50", "times baseline", "A/A", "rate", "of limit"):
        table.add_column(column, justify="right", no_wrap=True)
    last = None
    for row in run.rows:
        rate = quantity(row["flops_per_second"], "FLOP/s") if row["flops"] else quantity(row["bytes_per_second"], "B/s")
        itself = row["role"] == "baseline"
        ratio = "baseline" if itself else f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        table.add_row(
            escape(row["case"]) if row["case"] != last else "",
            escape(row["provider"]),
            duration(row["p50"]).text,
            _styled(ratio, row["verdict"]),
            escape(f"[{row['aa_low']:.2f}, {row['aa_high']:.2f}]") if itself else "",
            rate.text,
            f"{100 * row['fraction']:.0f} % {row['binds']}",
        )
        last = row["case"]
    console.print(table)
    for entry in run.absent:
        console.print(
            f"[dim]not measured: {escape(entry['case'])}: {escape(entry['provider'])}: {escape(entry['reason'])}[/]"
        )
    new = sum(count["committed"] is None for count in run.counts)
    if run.counts:
        console.print(f"{len(run.counts)} exact counts, {new} without a committed value")
    for problem in run.footer["problems"]:
        console.print(f"[bold red]PROBLEM[/]  {escape(problem)}")


def show_comparison(console: Console, found: Comparison, everything: bool = False) -> None:
    """Changes that matter, or all of them."""
    for remark in found.remarks:
        console.print(f"[yellow]{escape(remark)}[/]")
    table = Table(box=None, pad_edge=False)
    for column in ("case", "provider", "before", "now", "change", "kind"):
        table.add_column(column, justify="left" if column in ("case", "provider", "kind") else "right")
    for c in found.changes:
        if everything or c.kind != "same":
            change = f"{c.value:.3f} [{c.low:.3f}, {c.high:.3f}]"
            cells = (escape(c.case), escape(c.provider), f"{c.old:.3f}", f"{c.new:.3f}", escape(change))
            table.add_row(*cells, _styled(c.kind, c.kind))
    if table.row_count:
        console.print(table)
    for section, name, old, new in found.counts:
        console.print(escape(f"count {name}: {old:,} -> {new:,} [{section}]"))
    for name in found.vanished:
        console.print(f"[yellow]gone: {escape(name)}[/]")
    same = sum(change.kind == "same" for change in found.changes)
    console.print(f"{len(found.regressions)} regressions, {same} of {len(found.changes)} rows the same")


def show_history(console: Console, runs: Sequence[tuple[str, Run]], globs: Sequence[str]) -> None:
    """The ratio of every row over the runs, oldest first."""
    ordered = sorted(runs, key=lambda item: (item[1].header["started"], item[0]))
    machines = sorted({machine_name(run.header["provenance"]) for _, run in ordered})
    for machine in machines:
        mine = [(name, run) for name, run in ordered if machine_name(run.header["provenance"]) == machine]
        table = Table(title=escape(machine), title_justify="left", box=None, pad_edge=False)
        table.add_column("case")
        table.add_column("provider")
        for _, run in mine:
            commit = str(run.header["provenance"]["commit"])[:8]
            table.add_column(f"{run.header['started'][:16]}\n{commit}", justify="right")
        keys = dict.fromkeys((r["case"], r["provider"]) for _, run in mine for r in run.rows if r["role"] != "baseline")
        for case, provider in keys:
            if globs and not any(fnmatchcase(case, glob) for glob in globs):
                continue
            cells = []
            for _, run in mine:
                row = next((r for r in run.rows if (r["case"], r["provider"]) == (case, provider)), None)
                cells.append(_styled(f"{row['ratio']:.2f}", row["verdict"]) if row else "")
            table.add_row(escape(case), escape(provider), *cells)
        console.print(table)
