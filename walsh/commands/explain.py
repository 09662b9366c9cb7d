"""``walsh explain CASE``: everything about one vector, and its tensors for a debugger."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from walsh.commands.options import Seconds
from walsh.commands.selection import Choice, make_backends, select_cases
from walsh.suite import display
from walsh.suite.backend import AdapterBroken
from walsh.suite.policy import load_policy
from walsh.suite.runner import BackendRun, Outcome, combine_exits, run_case
from walsh.suite.schema import locate_data
from walsh.suite.tensors import Array, write_tensors
from walsh.suite.vectors import Case, ExpectedError, load_suite


@click.command()
@click.argument("case")
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="As of walsh conformance. Repeatable.")
@click.option("--function", metavar="PKG.MOD:FN", help="One function instead of a backend.")
@click.option("--tensors", type=click.Choice(["numpy", "torch"]), default="numpy", help="What --function is given.")
@click.option("--device", help="Such as cuda.")
@click.option("--timeout", type=Seconds(), default=60.0, help="Seconds, for cmd: backends.")
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), help="Save tensors as safetensors files here."
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def explain(ctx: click.Context, /, case: str, save: Path | None, debug: bool, **given: Any) -> None:
    """Run CASE (op/group/id, or a glob that fits one) again and show all about it.

    With --save, inputs, expected and actual tensors are written for a debugger. Exit codes as of walsh conformance.
    """
    console = display.make_console()
    root = locate_data(given["vectors"])
    suite, policy = load_suite(root), load_policy(root)
    found = select_cases(suite.cases, (), (case,), ())
    if len(found) > 1:
        raise click.UsageError(
            f"{case}: fits {len(found)} cases, such as {found[0].name} and {found[1].name}; name one"
        )
    chosen = found[0]
    op = chosen.call.name.removesuffix(".backward") if given["function"] else None
    choice = Choice(op=op, **given)
    display.print_case(console, chosen)
    runs = []
    with ExitStack() as stack:
        for label, backend in make_backends(choice, console):
            stack.callback(backend.close)
            try:
                description = backend.describe()
                outcome = run_case(backend, description, chosen, policy, keep=True)
            except AdapterBroken as error:
                runs.append(BackendRun({"name": label}, (), (), str(error)))
                continue
            runs.append(BackendRun(description, (outcome,)))
            display.print_failure(console, outcome, choice.repeat(label, chosen.name))
            if debug and outcome.trace:
                console.print(escape(outcome.trace), soft_wrap=True)
            if save is not None:
                for path in save_tensors(save, outcome):
                    console.print(f"  saved      {escape(str(path))}", soft_wrap=True)
    display.print_problems(console, runs)
    ctx.exit(int(combine_exits(run.exit_code for run in runs)))


def save_tensors(folder: Path, outcome: Outcome) -> list[Path]:
    """Write inputs, expected and actual tensors of a case.

    Returns:
        the files: ``<case>.inputs.safetensors``, ``.expected.`` and ``.<backend>.``, slashes in names made dashes. What
        does not exist (the result of an invalid case, a result known by its digest only) is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Mapping[str, Array]] = {
        "inputs": outcome.case.load_inputs(),
        "expected": _expected(outcome.case),
        outcome.backend: outcome.actual,
    }
    written = []
    for part, tensors in parts.items():
        if tensors:
            path = folder / f"{_file_name(outcome.case.name)}.{_file_name(part)}.safetensors"
            write_tensors(path, tensors)
            written.append(path)
    return written


def _file_name(text: str) -> str:
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in text)


def _expected(case: Case) -> dict[str, Array]:
    if isinstance(case.expected, ExpectedError):
        return {}
    return {name: value.value() for name, value in case.expected.items() if value.digest is None}
