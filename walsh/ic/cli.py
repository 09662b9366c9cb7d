"""``walsh ic``: what a Wasm module costs on the Internet Computer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from walsh.errors import ParameterError
from walsh.ic.costs import default_costs
from walsh.ic.count import Count, count_call, count_method, exported_functions, is_canister
from walsh.ic.metering import instrument
from walsh.ic.replica.canister import EMPTY


@click.group()
def ic() -> None:
    """Exact instruction counts and canisters of the Internet Computer."""


@ic.command()
@click.argument("module", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("export", required=False)
@click.argument("arguments", type=int, nargs=-1)
@click.option("--argument", "argument", help="Candid bytes for a canister's method, in hex.")
@click.option("--init", help="Candid bytes for canister_init, in hex.")
@click.option("--query", is_flag=True, help="Call the canister's method as a query.")
@click.option(
    "--pages", type=click.Choice(list(default_costs().pages)), help="Page charges; canisters always have some."
)
@click.option("--top", type=click.IntRange(0), default=12, show_default=True, help="Functions to list.")
@click.option("--folded", type=click.Path(path_type=Path), help="Write call stacks, folded for flame graphs.")
@click.option("--instrumented", type=click.Path(path_type=Path), help="Write the module that counts itself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count(
    module: Path,
    export: str | None,
    arguments: tuple[int, ...],
    argument: str | None,
    init: str | None,
    query: bool,
    pages: str | None,
    top: int,
    folded: Path | None,
    instrumented: Path | None,
    as_json: bool,
) -> None:
    """Count the instructions of one call, as a replica charges them.

    MODULE is a Wasm file. EXPORT is one of its functions, called with integer ARGUMENTS; of a canister it is a method,
    called in the miniature replica with the bytes of --argument. Without EXPORT the functions are listed.
    """
    wasm = module.read_bytes()
    if instrumented is not None:
        instrumented.write_bytes(instrument(wasm))
    if export is None:
        for name in exported_functions(wasm):
            click.echo(name)
        return
    if is_canister(wasm):
        if arguments:
            raise ParameterError(f"arguments {arguments}: a canister's method takes Candid bytes, with --argument HEX")
        found = count_method(wasm, export, _hex(argument), init=_hex(init), query=query, pages=pages)
    else:
        if argument is not None or init is not None or query:
            raise ParameterError("--argument, --init and --query are for canisters; give integers after EXPORT")
        found = count_call(wasm, export, arguments, pages=pages)
    if folded is not None:
        folded.write_text(found.stacks, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(_plain(found), indent=1))
    else:
        _show(found, top)


def _hex(text: str | None) -> bytes:
    if text is None:
        return EMPTY
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ParameterError(f"{text!r} is not hex: {error}; encode the argument as Candid first") from error


def _plain(found: Count) -> dict[str, object]:
    """A count as JSON writes it."""
    plain = {key: value for key, value in asdict(found).items() if key not in {"rows", "stacks"}}
    return {**plain, "by_function": dict(found.by_function()), "by_category": dict(found.by_category())}


def _show(found: Count, top: int) -> None:
    console = Console(highlight=False)
    console.print(f"{found.total:,} instructions   costs {found.version}, pages {found.pages_policy}")
    parts = [("code", found.code), ("system calls", found.system)]
    parts.append((f"pages ({found.accessed} accessed, {found.written} written)", found.pages))
    _print(console, "part", parts, found.total)
    _print(console, "opcodes", found.by_category(), found.code)
    _print(console, "function", found.by_function()[:top], found.code)
    if found.error is not None:
        console.print(f"failed: {found.error}", style="red", markup=False)


def _print(console: Console, title: str, rows: Sequence[tuple[str, int]], whole: int) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column("instructions", justify="right")
    table.add_column("share", justify="right")
    for name, amount in rows:
        if amount:
            table.add_row(name, f"{amount:,}", f"{amount / max(whole, 1):.1%}")
    console.print()
    console.print(table)
