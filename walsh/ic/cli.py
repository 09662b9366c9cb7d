"""``walsh ic``: what Wasm modules and models cost on the Internet Computer, and a canister on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from walsh.errors import ParameterError, WalshError
from walsh.ic.canister.module import with_names
from walsh.ic.costs import default_costs
from walsh.ic.count import Count, count_call, count_method, exported_functions, is_canister
from walsh.ic.metering import instrument
from walsh.ic.profile import readable
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
    wasm = with_names(module.read_bytes())
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
    table.add_column(title, no_wrap=True, max_width=max(20, console.width - 28))
    table.add_column("instructions", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, amount in rows:
        if amount:
            table.add_row(readable(name), f"{amount:,}", f"{amount / max(whole, 1):.1%}")
    console.print()
    console.print(table)


MODEL = click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))


def _say(text: str) -> None:
    click.echo(text, err=True)


@ic.command()
@MODEL
@click.option("--context", "contexts", type=int, multiple=True, help="Context to measure a token at. Repeatable.")
@click.option("--tokens", type=click.IntRange(min=1), help="New tokens of a message [as many as fit, at most 256].")
@click.option("--split/--no-split", default=True, show_default=True, help="Split a token into its parts.")
@click.option("--quiet", is_flag=True, help="Do not say what is being done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cost(model: Path, contexts: tuple[int, ...], tokens: int | None, split: bool, quiet: bool, as_json: bool) -> None:
    """Measure what MODEL (a .walsh file) costs in the canister, exactly.

    Instructions per token by part and by context, tokens per update, cycles and dollars, seconds on chain, uploading
    and loading, memory. Nothing leaves this machine.
    """
    from walsh.ic.cost import measure
    from walsh.ic.display import show_report
    from walsh.ic.recording import read_model

    report = measure(read_model(model), contexts, tokens, split, (lambda _: None) if quiet else _say)
    if as_json:
        click.echo(json.dumps(report.plain(), indent=1))
    else:
        show_report(report, Console(highlight=False))


def _canister_of(model: Path, quiet: bool = False) -> Any:
    """The canister in miniature with a model in it."""
    from walsh.ic.recording import install_model, open_canister, read_model

    content = read_model(model)
    if not quiet:
        _say("compiling the canister with counters, uploading and loading the model ...")
    client = open_canister()
    install_model(client, content)
    return client


@ic.command()
@MODEL
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
def serve(model: Path, port: int) -> None:
    """Serve a canister with MODEL on localhost, to be called with JSON over HTTP. Ctrl-C ends it."""
    from walsh.ic.serve import Server

    client = _canister_of(model)
    try:
        server = Server(client, port)
    except OSError as error:
        raise ParameterError(f"port {port}: {error.strerror}; expected a free one, or --port 0") from error
    body = '{"method": "start_session", "args": "(record {})", "caller": "alice"}'
    click.echo(f"canister {client.canister.name} at {server.url} (/health, /metrics, POST /call)")
    click.echo(f"try: curl -s {server.url}/call -d '{body}'")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("\nended")
    finally:
        server.server_close()


@ic.command()
@MODEL
@click.option("--prompt", help="Continue this text once, instead of a conversation.")
@click.option("--ids", help="The same with token ids, separated by commas: for models without a tokenizer.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=50, show_default=True, help="0: all.")
@click.option("--seed", type=click.IntRange(min=0, max=2**64 - 1), default=0, show_default=True)
@click.option("--quiet", is_flag=True, help="Print the continuation only.")
def chat(
    model: Path,
    prompt: str | None,
    ids: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    quiet: bool,
) -> None:
    """Talk to MODEL in the canister in miniature, with the instructions and the cost of every answer.

    Ctrl-D or an empty line ends a conversation, /new begins another.
    """
    from walsh.ic.chat import Chat

    if prompt is not None and ids is not None:
        raise ParameterError("--prompt and --ids: expected one of them")
    tokens = None if ids is None else _ids(ids)
    talk = Chat(_canister_of(model, quiet), {"temperature": temperature, "top_k": top_k, "seed": seed})

    def say(given: str | list[int]) -> None:
        turn = talk.say(given, max_tokens, lambda text: click.echo(text, nl=False))
        click.echo("" if turn.text else " ".join(map(str, turn.tokens)))
        if not quiet:
            _say(f"[{turn.line()}]")

    if tokens is not None or prompt is not None:
        say(tokens if tokens is not None else prompt or "")
        return
    while text := _line():
        try:
            if text.strip() == "/new":
                talk.restart()
            else:
                say(text)
        except WalshError as error:
            _say(f"{error} (/new begins another conversation)")


def _ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise ParameterError(f"--ids {text!r}: expected token ids separated by commas, such as 1,2,3")
    return [int(part) for part in parts]


def _line() -> str:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return ""


@ic.command()
@MODEL
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def receipt(model: Path, as_json: bool) -> int:
    """Compare predicted instructions with a PocketIC server's counter, message by message.

    POCKET_IC_BIN names the server's program. Exit code 0: equal; 1: some differ; 4: there is no server.
    """
    from walsh.ic.display import show_receipt
    from walsh.ic.pocketic import find_server
    from walsh.ic.receipt import obtain
    from walsh.ic.recording import read_model

    find_server()
    lines = obtain(read_model(model))
    if as_json:
        click.echo(json.dumps([vars(line) | {"equal": line.equal} for line in lines], indent=1))
    else:
        show_receipt(lines, Console(highlight=False))
    return 0 if all(line.equal for line in lines) else 1
