"""``walsh compress``: a checkpoint becomes a file for inference, and its cost is shown beside the checkpoint's."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from walsh.errors import BackendError, ParameterError, StrictError
from walsh.suite.display import make_console

if TYPE_CHECKING:
    from walsh.codec.sources import Source


def new_file(path: Path, force: bool) -> Path:
    """The path, if it may be written.

    Raises:
        ParameterError: something is there and ``force`` is not given, or its folder is missing.
    """
    if path.exists() and not force:
        raise ParameterError(f"{path} exists: give another --output, or --force to replace it")
    if not path.parent.is_dir():
        raise ParameterError(f"{path.parent}: no such folder; make it first")
    return path


def show_bytes(count: float | None) -> str:
    """Bytes in units of 10^6 or 10^3; a dash for None."""
    if count is None:
        return "-"
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _packing_table(stored: Any) -> Table:
    from walsh.codec.report import rows

    table = Table(box=None, pad_edge=False)
    for title in ("tensors", "packing", "values", "bytes", "bits", "why"):
        table.add_column(title, justify="left" if title in ("tensors", "packing", "why") else "right")
    for row in rows(stored):
        table.add_row(
            f"{row.kind} ({row.tensors})",
            row.packing,
            f"{row.values:,}",
            f"{row.bytes:,}",
            f"{row.bits:.2f}",
            row.reason,
        )
    return table


def _costs(source: Source, given: Path, made: Path, tokens: int, threads: int) -> list[dict[str, Any]]:
    """One row for the checkpoint and one for the file in each engine that can take it."""
    from walsh.codec.measure import measure

    found = []
    jobs = [("checkpoint", given, "torch", source.size)] if source.kind == "checkpoint" else []
    size = made.stat().st_size
    for name, path, engine, on_disk in [*jobs, ("compressed", made, "torch", size), ("compressed", made, "wasm", size)]:
        row: dict[str, Any] = {"model": name, "engine": engine, "file": on_disk}
        try:
            row |= asdict(measure(path, engine, tokens, threads))
        except BackendError as error:
            row |= {"problem": str(error)}
        found.append(row)
    return found


def _cost_table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("model", "engine", "file", "resident", "peak", "tokens/s"):
        table.add_column(title, justify="left" if title in ("model", "engine") else "right")
    first = found[0]
    for row in found:
        cells = []
        for key in ("file", "resident", "peak"):
            size, base = row.get(key), first.get(key)
            share = f" ({100 * size / base:.0f} %)" if size and base and row is not first else ""
            cells.append(show_bytes(size) + share)
        speed = row.get("tokens_per_second")
        table.add_row(row["model"], row["engine"], *cells, "-" if speed is None else f"{speed:,.1f}")
    return table


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True), default=Path("runs/laptop"))
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="File [model.walsh].")
@click.option(
    "--rows", type=click.Choice(["int8", "int4"]), help="Codes of embedding and head [int8, or what the file has]."
)
@click.option("--prefer", type=click.Choice(["size", "speed"]), default="size", show_default=True)
@click.option("--format", "form", type=click.Choice(["walsh", "spin"]), default="walsh", show_default=True)
@click.option("--force", is_flag=True, help="Replace a file.")
@click.option("--measure/--no-measure", default=True, help="Measure memory and speed of both.")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="To generate when measuring.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of PyTorch when measuring.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def compress(
    checkpoint: Path,
    output: Path | None,
    rows: str | None,
    prefer: str,
    form: str,
    force: bool,
    measure: bool,
    tokens: int,
    threads: int,
    as_json: bool,
) -> None:
    """Make a file for inference of CHECKPOINT: a run, a checkpoint, or any file that walsh reads.

    The file holds configuration, tokenizer and weights rounded for strict arithmetic; each tensor is packed in the way
    that makes it smallest, or that is decoded fastest. Optimizer state is no part of either size. Measurements run one
    after another, each in a process of its own.
    """
    from walsh.codec.sources import read_source, strict_form_of, to_spin, without_unused_rows
    from walsh.codec.writer import assemble, store, write_atomically

    target = new_file(output or Path("model.walsh"), force)
    if form == "spin" and rows == "int4":
        raise ParameterError("--rows int4 with --format spin: that container holds int8 rows; leave one out")
    source = read_source(checkpoint)
    if not source.config.ternary:
        raise StrictError("the model's weights are not ternary: a file holds ternary ones; train with ternary = true")
    source = without_unused_rows(source)
    stored = None
    if form == "spin":
        content = to_spin(source)
    else:
        weights = strict_form_of(source, {"int8": 8, "int4": 4, None: None}[rows])
        stored = store(weights, source.config.to_dict(), source.tokenizer, prefer)
        content = assemble(stored, source.config.to_dict(), source.tokenizer)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".walsh-") as folder:
        # Whatever is measured is what will stand under the name.
        made = Path(folder) / target.name
        write_atomically(made, content)
        found = _costs(source, checkpoint, made, tokens, threads) if measure else []
        made.replace(target)
    console = make_console()
    if as_json:
        from walsh.codec.report import rows as packing_rows

        packed = [] if stored is None else [asdict(row) | {"why": row.reason} for row in packing_rows(stored)]
        record = {"file": str(target), "bytes": len(content), "before": source.size, "packings": packed, "costs": found}
        click.echo(json.dumps(record, indent=1))
        return
    if stored is not None:
        console.print(_packing_table(stored))
    console.print(
        f"{target}: {show_bytes(len(content))}, {100 * len(content) / source.size:.1f} % of {show_bytes(source.size)}",
        highlight=False,
        soft_wrap=True,
    )
    if found:
        console.print(_cost_table(found))
        for row in found:
            if "problem" in row:
                console.print(row["problem"], style="dim", highlight=False, soft_wrap=True)
