"""``walsh bench``: time kernels against named baselines, beside the limits of the machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from walsh.commands.options import Seconds, check_output
from walsh.errors import BackendError, ParameterError
from walsh.suite.display import make_console

if TYPE_CHECKING:
    from walsh.measure.rows import Run

ROOT = Path(__file__).resolve().parents[2]
REPORTS, COUNTS, OUTPUT = ROOT / "reports", ROOT / "bench" / "counts.json", ROOT / "walsh-output" / "bench"
QUICK_SECONDS, FULL_SECONDS = 1.2, 10.0
"""Per case."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for; names as there."""

    rooms: tuple[str, ...]
    globs: tuple[str, ...]
    quick: bool
    device: str
    threads: int | None
    seed: int
    budget: float | None
    conformance: Path | None
    against: Path | None
    store: str | None
    out: Path | None
    folder: Path | None
    list_only: bool
    debug: bool


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_NEW_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(invoke_without_command=True)
@click.option("--op", "rooms", multiple=True, metavar="NAME", help="Only this op or job. Repeatable.")
@click.option("--case", "globs", multiple=True, metavar="GLOB", help="Only cases named so. Repeatable.")
@click.option("--quick", is_flag=True, help="Small sizes, few rounds: under three minutes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="PyTorch's threads; its own choice by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of inputs and order.")
@click.option("--budget", type=Seconds(), help="Seconds per case.")
@click.option("--conformance", type=_FILE, help="Report of `walsh conformance --json` on this commit; else it is run.")
@click.option("--against", type=_FILE, help="Earlier rows.jsonl: anything slower fails. Default: the stored run here.")
@click.option("--store", metavar="NAME", help="Keep the run as reports/NAME, the one before as previous.jsonl.")
@click.option("--out", type=_NEW_FILE, help="Write the rows here.")
@click.option("--cases", "folder", type=_FOLDER, help="Folder of case files.")
@click.option("--list", "list_only", is_flag=True, help="List the selected cases and stop.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    r"""Time kernels in interleaved pairs with a named baseline.

    Refuses backends that do not conform to the vectors. Exit code 1 if an output was wrong, a limit was exceeded, a
    gate was missed, a count changed, or a row got slower than the stored run.
    """
    if ctx.invoked_subcommand is None:
        ctx.exit(_run(Options(**given)))


def _setting(options: Options) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise BackendError("torch is not installed: pip install 'walsh[torch]'") from None
    from walsh.measure.case import Setting

    if options.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("device 'cuda': this machine has none that PyTorch can use; expected cpu")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return Setting(options.device, options.quick, options.seed)


def _check(options: Options) -> None:
    """See before anything is timed that the outcome can be compared and kept."""
    from walsh.measure.rows import read_run

    if options.store is not None and (Path(options.store).name != options.store or options.store in (".", "..")):
        raise ParameterError(f"--store {options.store!r}: expected a plain name, of a folder of reports/")
    if options.out is not None:
        check_output(options.out)
    if options.against is not None:
        read_run(options.against)


def _run(options: Options) -> int:
    _check(options)
    setting, console = _setting(options), make_console()
    from walsh.measure.cases import load_cases, locate_cases
    from walsh.measure.run import Plan, needed_backends, perform
    from walsh.measure.verdict import find_verdicts
    from walsh.suite.schema import locate_data
    from walsh.suite.vectors import load_suite

    folder = locate_cases(options.folder)
    if options.list_only:
        return _list(folder, setting, options)
    cases, absent = load_cases(folder, setting, options.rooms, options.globs)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    proof = OUTPUT / "conformance.jsonl"
    with console.status("conformance") as status:
        verdicts = find_verdicts(needed_backends(cases), options.conformance, options.device, proof)
        budget = options.budget or (QUICK_SECONDS if options.quick else FULL_SECONDS)
        manifest = load_suite(locate_data()).digest
        committed = COUNTS if options.device == "cpu" and options.folder is None else None
        plan = Plan(setting, cases, absent, verdicts, manifest, budget, sys.argv[1:], committed)
        run = perform(plan, on_step=lambda what: status.update(escape(what)))
    return _finish(console, options, run, options.conformance or proof)


def _list(folder: Path, setting: Any, options: Options) -> int:
    """Print every case that fits when it is made: not all of them need be waited for."""
    from walsh.measure.case import Case
    from walsh.measure.cases import find_cases

    fitting = 0
    for entry in find_cases(folder, setting, options.rooms, options.globs):
        if isinstance(entry, Case):
            click.echo(f"{entry.name}  {', '.join(provider.name for provider in entry.providers)}")
            fitting += 1
    if not fitting:
        raise ParameterError("no case fits; without --case, `walsh bench --list` shows all")
    return 0


def _finish(console: Console, options: Options, run: Run, proof: Path) -> int:
    """Show, compare, keep."""
    from walsh.measure.rows import read_run, write_run
    from walsh.reporting.compare import compare_runs
    from walsh.reporting.terminal import show_comparison, show_run

    show_run(console, run)
    failed = bool(run.footer["problems"])
    earlier = options.against or _stored_twin(run)
    if earlier is not None:
        found = compare_runs(read_run(earlier), run)
        console.print(
            f"\nagainst {escape(str(earlier.relative_to(ROOT) if earlier.is_relative_to(ROOT) else earlier))}"
        )
        show_comparison(console, found)
        failed = failed or bool(found.regressions)
    target = options.out or OUTPUT / f"{run.header['started'].replace(':', '').replace('+0000', 'Z')}.jsonl"
    write_run(target, run)
    if options.store is not None:
        _store(REPORTS / options.store, run, proof)
    seconds = run.footer["seconds"]
    console.print(
        f"\n{len(run.rows)} rows in {seconds:.0f} s, {len(run.footer['problems'])} problems: {escape(str(target))}"
    )
    return int(failed)


def _stored_twin(run: Run) -> Path | None:
    """The stored run of this machine and size, if there is one."""
    from walsh.measure.provenance import machine_name
    from walsh.measure.rows import read_run

    for path in sorted(REPORTS.glob("*/rows.jsonl")):
        header = read_run(path).header
        same = machine_name(header["provenance"]) == machine_name(run.header["provenance"])
        if same and header["quick"] == run.header["quick"]:
            return path
    return None


def _store(folder: Path, run: Run, proof: Path) -> None:
    from walsh.measure.rows import write_run

    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    if rows.exists():
        rows.replace(folder / "previous.jsonl")
    write_run(rows, run)
    (folder / "conformance.jsonl").write_bytes(proof.read_bytes())


@bench.command()
@click.argument("paths", nargs=-1, type=_FILE)
@click.option("--case", "globs", multiple=True, metavar="GLOB", help="Only cases named so. Repeatable.")
def history(paths: tuple[Path, ...], globs: tuple[str, ...]) -> None:
    """Show every row's ratio over stored runs: PATHS, or all in reports/ and walsh-output/bench/."""
    from walsh.measure.rows import read_run
    from walsh.reporting.terminal import show_history

    found = paths or (
        *sorted(REPORTS.glob("*/rows.jsonl")),
        *sorted(REPORTS.glob("*/previous.jsonl")),
        *(path for path in sorted(OUTPUT.glob("*.jsonl")) if path.name != "conformance.jsonl"),
    )
    if not found:
        raise click.ClickException("no stored runs; `walsh bench` makes one")
    show_history(make_console(), [(path.parent.name, read_run(path)) for path in found], globs)


@bench.command()
@click.option("--op", "rooms", multiple=True, metavar="NAME", help="Only this op or job. Repeatable.")
@click.option("--accept", "accepting", is_flag=True, help="Commit what was found.")
@click.option("--file", "path", type=_NEW_FILE, default=COUNTS, help="Committed values.")
@click.option("--cases", "folder", type=_FOLDER, help="Folder of case files.")
@click.pass_context
def counts(ctx: click.Context, rooms: tuple[str, ...], accepting: bool, path: Path, folder: Path | None) -> None:
    """Take every exact count and hold it to the committed value; nothing is timed."""
    from walsh.measure.case import Setting
    from walsh.measure.cases import load_cases, locate_cases
    from walsh.measure.counts import accept, compare_counts, load_committed, problems_of
    from walsh.measure.launches import SECTION, count_triton_launches
    from walsh.measure.run import find_counts

    cases, _ = load_cases(locate_cases(folder), Setting(quick=True), rooms)
    found = find_counts(cases)
    launches = {} if rooms or folder else count_triton_launches()
    found |= {SECTION: launches} if launches else {}
    total = sum(map(len, found.values()))
    if accepting:
        if rooms:
            raise click.UsageError("--accept takes every op: a part would drop the others")
        accept(path, found)
        click.echo(f"{total} counts committed to {path.name}")
        return
    committed = load_committed(path)
    problems = problems_of(compare_counts(found, committed), committed, complete=not rooms)
    for problem in problems:
        click.echo(problem, err=True)
    unknown = [section for section in found if section not in committed]
    for section in unknown:
        click.echo(f"no committed values for [{section}]: its {len(found[section])} counts are only shown by --accept")
    click.echo(f"{total} counts, {len(problems)} differ")
    ctx.exit(1 if problems else 0)
