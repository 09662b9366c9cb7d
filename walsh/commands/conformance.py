"""``walsh conformance``: hold backends to the vectors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from walsh.commands.fuzz import fuzz
from walsh.commands.options import Seconds, check_output
from walsh.commands.selection import Choice, make_backends, narrow_to_function, select_cases
from walsh.commands.validate import validate
from walsh.suite import display
from walsh.suite.backend import AdapterBroken, Backend
from walsh.suite.catalog import LANES
from walsh.suite.deviations import load_deviations
from walsh.suite.page import write_badge, write_page
from walsh.suite.policy import Policy, load_policy
from walsh.suite.progress import track
from walsh.suite.report import footer, header, write_junit, write_report
from walsh.suite.runner import BackendRun, Outcome, combine_exits, run_backend
from walsh.suite.schema import locate_data
from walsh.suite.vectors import MIN_CASES, Case, Suite, load_suite


@dataclass(frozen=True)
class Options:
    """What the command line asked for; names as there."""

    backends: tuple[str, ...]
    function: str | None
    tensors: str
    ops: tuple[str, ...]
    globs: tuple[str, ...]
    lanes: tuple[str, ...]
    device: str | None
    timeout: float
    jobs: int
    vectors: Path | None
    json_path: Path | None
    junit_path: Path | None
    html_path: Path | None
    badge_path: Path | None
    list_only: bool
    max_failures: int
    verbose: bool
    debug: bool

    @property
    def choice(self) -> Choice:
        """The part that is about backends."""
        op = self.ops[0] if self.function is not None else None
        return Choice(self.backends, self.function, op, self.tensors, self.device, self.timeout, self.vectors)


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(invoke_without_command=True)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="reference, torch, a registered name, pkg.mod:Class or 'cmd:COMMAND ...'. Repeatable. "
    "Default: reference, and torch if it is installed.",
)
@click.option("--function", metavar="PKG.MOD:FN", help="Run one function instead of a backend; needs --op.")
@click.option(
    "--tensors",
    type=click.Choice(["numpy", "torch"]),
    default="numpy",
    show_default=True,
    help="What --function is given; gradients need torch.",
)
@click.option("--op", "ops", multiple=True, metavar="OP", help="Only this op or call. Repeatable.")
@click.option("--case", "globs", multiple=True, metavar="GLOB", help="Only cases named so: 'rope/*'. Repeatable.")
@click.option("--lane", "lanes", multiple=True, type=click.Choice(LANES), help="Only this lane. Repeatable.")
@click.option("--device", help="Such as cuda.")
@click.option(
    "--timeout",
    type=Seconds(),
    default=60.0,
    show_default=True,
    help="Seconds per case, for cmd: backends.",
)
@click.option(
    "--jobs", type=click.IntRange(min=0), default=1, show_default=True, help="Processes per backend; 0: one per core."
)
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option("--json", "json_path", type=_FILE, help="Write a report as JSON lines.")
@click.option("--junit", "junit_path", type=_FILE, help="Write JUnit XML.")
@click.option(
    "--html", "html_path", type=_FILE, help="Write one self-contained page with the matrix and every failure."
)
@click.option("--badge", "badge_path", type=_FILE, help="Write a badge: .svg, or .json for a shields.io endpoint.")
@click.option("--list", "list_only", is_flag=True, help="List the selected cases and stop.")
@click.option(
    "--max-failures",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Failures shown in detail, per backend.",
)
@click.option("--verbose", "-v", is_flag=True, help="Print a line per case.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def conformance(ctx: click.Context, /, **given: Any) -> None:
    """Hold backends to the conformance vectors.

    Exit codes: 0 conforming, 1 failure, 2 unexpected pass, 3 vectors incomplete or invalid, 4 adapter broken, 64 bad
    usage.
    """
    if ctx.invoked_subcommand is None:
        ctx.exit(_run(Options(**given)))


@conformance.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if the committed vectors differ.")
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def generate(check: bool, vectors: Path | None, debug: bool) -> None:
    """Write the vectors anew from the references; for a change of a definition only.

    Exit code 3 if a vector is not what its lane promises or, with --check, if the committed ones differ.
    """
    del debug  # read by the group
    # Here, because generating needs every reference and running needs none.
    from walsh.suite.generate import generate as build

    summary = build(locate_data(vectors), check)
    verb = "as committed" if check else "written"
    click.echo(f"{summary.total} cases in {summary.files} files, {summary.size / 2**20:.1f} MiB, {verb}")


@conformance.command()
@click.argument("backends", nargs=-1, metavar="BACKEND...")
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def tighten(backends: tuple[str, ...], vectors: Path | None, debug: bool) -> None:
    """Measure how much of its bounds each BACKEND of walsh uses, and hold it to 4 times that in policy.json.

    Default: reference and torch. Third parties are never held to less than the a-priori bound.
    """
    del debug  # read by the group
    from walsh.suite.backends import load_backend
    from walsh.suite.tighten import tighten as measure

    root = locate_data(vectors)
    with ExitStack() as stack:
        made = [load_backend(name) for name in backends or ("reference", "torch")]
        for backend in made:
            stack.callback(backend.close)
        for one in measure(root, made, load_suite(root).cases):
            click.echo(f"{one.backend:10} {one.op:15} {one.lane:11} {one.dtype:9} {one.share:8.4f}  {one.case}")


conformance.add_command(fuzz)
conformance.add_command(validate)


def _run(options: Options) -> int:
    console = display.make_console()
    _check_usage(options)
    root = locate_data(options.vectors)
    suite, policy = load_suite(root), load_policy(root)
    cases = select_cases(suite.cases, options.ops, options.globs, options.lanes)
    if options.function is not None:
        cases = narrow_to_function(cases, options.ops[0])
    if options.list_only:
        for case in cases:
            click.echo(f"{case.name}  {case.call.name}  {case.lane}  {' '.join(case.flags)}".rstrip())
        return 0
    console.print(f"{len(cases)} of {len(suite.cases)} cases; vectors {suite.digest}", soft_wrap=True)
    started = time.perf_counter()
    labels, runs = [], []
    with ExitStack() as stack:
        made = make_backends(options.choice, console)
        for _, backend in made:
            stack.callback(backend.close)
        for label, backend in made:
            labels.append(label)
            runs.append(_run_one(console, backend, label, cases, suite, policy, options))
    seconds = time.perf_counter() - started
    code = combine_exits(run.exit_code for run in runs)
    for label, run in zip(labels, runs, strict=True):
        _print_failures(console, options, label, run)
    display.print_problems(console, runs)
    console.print()
    display.print_verdict(console, runs, suite, code, seconds)
    display.print_matrix(console, runs)
    if options.json_path is not None:
        first = header(suite, policy, sys.argv, [run.description for run in runs], len(cases))
        write_report(options.json_path, first, runs, footer(runs, code, seconds))
    if options.junit_path is not None:
        write_junit(options.junit_path, runs)
    if options.html_path is not None:
        created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_page(options.html_path, suite, labels, runs, code, options.choice.repeat, created)
    if options.badge_path is not None:
        write_badge(options.badge_path, runs, code)
    return int(code)


def _check_usage(options: Options) -> None:
    if options.function is not None and len(options.ops) != 1:
        raise click.UsageError("--function needs exactly one --op")
    for path in (options.json_path, options.junit_path, options.html_path, options.badge_path):
        if path is not None:
            check_output(path)
    if options.badge_path is not None and options.badge_path.suffix not in (".svg", ".json"):
        raise click.UsageError(f"--badge {options.badge_path}: expected a name that ends in .svg or .json")


def _run_one(
    console: Console, backend: Backend, label: str, cases: list[Case], suite: Suite, policy: Policy, options: Options
) -> BackendRun:
    """One backend; how far it is is shown meanwhile, and a line per case if asked for."""
    try:
        name = str(backend.describe()["name"])
    except AdapterBroken as error:
        return BackendRun({"name": label, "version": "unknown"}, (), (), str(error))
    deviations = load_deviations(suite.root, name, [case.name for case in suite.cases])
    with track(console, name, len(cases)) as steps:

        def advance(outcome: Outcome) -> None:
            steps.advance()
            if options.verbose:
                display.print_line(console, outcome)

        return run_backend(backend, cases, policy, deviations, advance, _crew(options, label, suite))


def _crew(options: Options, label: str, suite: Suite) -> Callable[[Sequence[Case]], Iterable[Outcome]] | None:
    """The processes that were asked for; None for this one alone."""
    jobs = options.jobs or os.cpu_count() or 1
    if jobs == 1 or options.function is not None:
        return None
    from walsh.suite.parallel import Crew

    device = None if label == "reference" else options.device
    return Crew(jobs, label, device, options.timeout, suite.root, MIN_CASES).run


def _print_failures(console: Console, options: Options, label: str, run: BackendRun) -> None:
    bad = [outcome for outcome in run.outcomes if outcome.outcome in ("fail", "error", "xpass")]
    for outcome in bad[: options.max_failures]:
        display.print_failure(console, outcome, options.choice.repeat(label, outcome.case.name))
        if options.debug and outcome.trace:
            console.print(escape(outcome.trace), soft_wrap=True)
    if len(bad) > options.max_failures:
        left = len(bad) - options.max_failures
        console.print(f"\n... and {left} more of {escape(run.name)}; --max-failures or --json shows them")
