"""``walsh conformance fuzz``: inputs that nobody listed, between backends."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from walsh.commands.options import Seconds
from walsh.commands.selection import Choice, make_backends
from walsh.suite import display
from walsh.suite.catalog import CALLS, OPS
from walsh.suite.progress import track
from walsh.suite.runner import Exit

_ROUNDS = 1000


@click.command()
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="As of walsh conformance. Repeatable.")
@click.option("--op", "ops", multiple=True, metavar="OP", help="Only this op or call. Repeatable.")
@click.option("--rounds", type=click.IntRange(min=1), help=f"Stop after so many; {_ROUNDS} if no limit is given.")
@click.option("--seconds", type=Seconds(), help="Stop after so long.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other rounds.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fuzz-found"),
    show_default=True,
    help="Where disagreements are written, as vectors.",
)
@click.option("--device", help="Such as cuda.")
@click.option("--timeout", type=Seconds(), default=60.0, help="Seconds, for cmd: backends.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def fuzz(ctx: click.Context, /, **given: Any) -> None:
    """Draw shapes and values biased to edges, compare backends with the definition and shrink what disagrees.

    Exit codes: 0 no disagreement, 1 at least one, 4 adapter broken, 64 bad usage.
    """
    ctx.exit(_run(**given))


def _run(**given: Any) -> int:
    from walsh.suite.fuzz import fuzz as search

    for op in given["ops"]:
        if op not in OPS and op not in CALLS:
            raise click.BadParameter(f"{op!r} is neither an op nor a call; walsh ops lists them", param_hint="--op")
    console = display.make_console()
    rounds = given["rounds"] or (None if given["seconds"] is not None else _ROUNDS)
    choice = Choice(given["backends"], None, None, "numpy", given["device"], given["timeout"], None)
    with ExitStack() as stack, track(console, "rounds", rounds) as steps:
        made = make_backends(choice, console)
        for _, backend in made:
            stack.callback(backend.close)
        report = search(
            [backend for _, backend in made],
            given["ops"],
            rounds=rounds,
            seconds=given["seconds"],
            seed=given["seed"],
            output=given["output"],
            on_round=steps.reach,
        )
    if given["as_json"]:
        found = [
            {
                "call": item.call,
                "vector": str(item.path),
                "backends": {outcome.backend: outcome.message for outcome in item.outcomes},
            }
            for item in report.found
        ]
        document = {"rounds": report.rounds, "answered": report.answered, "seed": given["seed"], "found": found}
        click.echo(json.dumps(document, indent=1))
        return int(Exit.FAILURE if report.found else Exit.CONFORMING)
    again = shlex.join(["walsh", "conformance", "fuzz", *(w for n, _ in made for w in ("--backend", n))])
    for item in report.found:
        for outcome in item.outcomes:
            display.print_case(console, outcome.case)
            display.print_failure(console, outcome, f"{again} --op {item.call} --seed {given['seed']}")
        console.print(f"  vector     {escape(str(item.path))}", soft_wrap=True)
    answered = ", ".join(f"{escape(name)} answered {count}" for name, count in report.answered.items())
    console.print(f"{answered}, in {report.seconds:.1f} s")
    if not report.found:
        console.print(f"{report.rounds} rounds, no disagreement")
        return int(Exit.CONFORMING)
    calls = ", ".join(item.call for item in report.found)
    console.print(f"[bold red]{report.rounds} rounds, {len(report.found)} disagreements[/]: {calls}", soft_wrap=True)
    return int(Exit.FAILURE)
