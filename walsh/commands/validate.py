"""``walsh conformance validate-backend``: does a program speak the process protocol?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape

from walsh.commands.options import Seconds
from walsh.suite import display
from walsh.suite.runner import Exit
from walsh.suite.schema import locate_data
from walsh.suite.validate import passed, validate_backend
from walsh.suite.vectors import load_suite

_STYLE = {"ok": "green", "fail": "bold red", "none": "dim"}


@click.command("validate-backend")
@click.argument("command")
@click.option("--timeout", type=Seconds(), default=20.0, show_default=True, help="Seconds a message.")
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def validate(
    ctx: click.Context, /, command: str, timeout: float, vectors: Path | None, as_json: bool, debug: bool
) -> None:
    """Talk to COMMAND step by step and say what is wrong with its answers; numbers are not judged.

    COMMAND is quoted, as after cmd: 'node backend.mjs'. Exit codes: 0 it speaks the protocol, 4 it does not.
    """
    del debug  # read by the group
    console = display.make_console()
    cases = load_suite(locate_data(vectors)).cases
    steps = []
    for step in validate_backend(command.removeprefix("cmd:"), cases, timeout):
        steps.append(step)
        if not as_json:
            console.print(
                f"[{_STYLE[step.outcome]}]{step.outcome:5}[/] {step.name}: {escape(step.detail)}", soft_wrap=True
            )
    good = passed(steps)
    if as_json:
        click.echo(
            json.dumps({"command": command, "passed": good, "steps": [asdict(step) for step in steps]}, indent=1)
        )
    elif good:
        console.print(
            f"It speaks the protocol. Next: walsh conformance --backend {escape(repr('cmd:' + command))}",
            soft_wrap=True,
        )
    else:
        console.print("See conformance/INTERPRETING.md, The process protocol, and schema/message.schema.json.")
    ctx.exit(int(Exit.CONFORMING if good else Exit.BROKEN))
