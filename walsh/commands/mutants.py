"""``walsh mutants``: seed bugs into the backends and see whether the vectors notice."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from walsh.commands.options import check_output
from walsh.suite import display
from walsh.suite.mutants import Mutant, available, check_sources, load_excused, load_registry, to_json
from walsh.suite.mutants.campaign import (
    Campaign,
    Verdict,
    draw_sample,
    run_campaign,
    select_mutants,
    summarise,
    to_markdown,
    touched,
)
from walsh.suite.progress import track
from walsh.suite.runner import Exit
from walsh.suite.schema import locate_data
from walsh.suite.vectors import load_suite

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--op", "ops", multiple=True, metavar="OP", help="Only mutants of this op. Repeatable.")
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only of this backend. Repeatable.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this mutant. Repeatable.")
@click.option("--changed-since", metavar="REV", help="Only those of ops that changed since this git revision.")
@click.option(
    "--at-most", type=click.IntRange(min=1), metavar="N", help="If more are chosen, so many of them at random."
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    help="So many at random; with --changed-since, so many of the rest besides.",
)
@click.option("--seed", default="walsh", show_default=True, help="Of the sample, such as a date.")
@click.option("--matrix", is_flag=True, help="Run every lane, not only until the first failure.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at a time.")
@click.option("--json", "json_path", type=_FILE, help="Write the kill matrix as JSON.")
@click.option("--markdown", "markdown_path", type=_FILE, help="Write the kill matrix as Markdown.")
@click.option("--vectors", type=click.Path(path_type=Path), help="Data folder (holds manifest.json).")
@click.option("--list", "list_only", is_flag=True, help="List the selected mutants and stop.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def mutants(ctx: click.Context, /, **given: Any) -> None:
    """Seed known mistakes into the backends and run the vectors against each.

    Exit codes: 0 all killed or excused in writing, 1 a survivor, a broken mutant or a failing control,
    3 vectors or registry invalid, 64 bad usage.
    """
    ctx.exit(_run(**given))


def _choose(given: dict[str, Any]) -> list[Mutant]:
    chosen = select_mutants(load_registry(), given["ops"], given["backends"], given["ids"])
    rest, mine = chosen, list[Mutant]()
    if given["changed_since"] is not None:
        files = _changed_files(given["changed_since"], given["sample"] is not None)
        mine = touched(chosen, files)
        rest = [mutant for mutant in chosen if mutant not in mine]
        click.echo(f"{len(files)} files changed since {given['changed_since']}: {len(mine)} mutants", err=True)
    if given["sample"] is not None or given["changed_since"] is not None:
        sample = draw_sample(rest, given["sample"] or 0, given["seed"])
        chosen = [mutant for mutant in chosen if mutant in mine or mutant in sample]
    if given["at_most"] is not None and len(chosen) > given["at_most"]:
        click.echo(f"{given['at_most']} of {len(chosen)} mutants, by seed {given['seed']}", err=True)
        chosen = draw_sample(chosen, given["at_most"], given["seed"])
    return chosen


def _changed_files(revision: str, has_sample: bool) -> list[str]:
    """Files that differ from a revision. A clone may lack it; then the sample alone is run, which is said."""
    command = ["git", "diff", "--name-only", "--end-of-options", revision, "--"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = (done.stderr.strip().splitlines() or ["git failed"])[-1]
    except OSError as error:
        done, reason = None, str(error)
    if done is not None and done.returncode == 0:
        return done.stdout.splitlines()
    if not has_sample:
        raise click.UsageError(f"--changed-since {revision}: {reason}")
    click.echo(f"cannot compare with {revision} ({reason}): the sample alone", err=True)
    return []


def _run(**given: Any) -> int:
    console = display.make_console()
    chosen = _choose(given)
    if given["list_only"]:
        for mutant in chosen:
            click.echo(f"{mutant.id}  {mutant.kind}  {mutant.killer}  {mutant.why}")
        return 0
    for path in (given["json_path"], given["markdown_path"]):
        if path is not None:
            check_output(path)
    if not chosen:
        console.print("no mutant of what changed, and no sample: nothing to do")
        return 0
    check_sources(mutant for mutant in chosen if available(mutant.backend))
    root = locate_data(given["vectors"])
    suite = load_suite(root)
    campaign = _progress(console, chosen, root, given, suite.digest)
    if given["json_path"] is not None:
        given["json_path"].write_text(to_json(summarise(campaign)), encoding="utf-8")
    if given["markdown_path"] is not None:
        given["markdown_path"].write_text(to_markdown(campaign), encoding="utf-8")
    _print(console, campaign)
    return int(Exit.CONFORMING if campaign.passed else Exit.FAILURE)


def _progress(console: Console, chosen: list[Mutant], root: Path, given: dict[str, Any], manifest: str) -> Campaign:
    with track(console, "mutants", len(chosen)) as steps:

        def advance(verdict: Verdict) -> None:
            steps.advance()
            if verdict.status not in ("killed", "excused"):
                _print_survivor(console, verdict)

        return run_campaign(
            chosen,
            root,
            matrix=given["matrix"],
            jobs=given["jobs"],
            excused=load_excused(root),
            manifest=manifest,
            on_verdict=advance,
        )


def _print_survivor(console: Console, verdict: Verdict) -> None:
    mutant = verdict.mutant
    console.print(f"\n[bold red]{verdict.status.upper()}[/]  [bold]{escape(mutant.id)}[/]  ({mutant.kind})")
    console.print(f"  what       {escape(mutant.why)}")
    if verdict.message:
        console.print(f"  reason     {escape(verdict.message)}", soft_wrap=True)
    for edit in mutant.edits:
        console.print(f"  module     {edit.module}")
        console.print(f"  - {escape(edit.old.strip())}", soft_wrap=True)
        console.print(f"  + {escape(edit.new.strip())}", soft_wrap=True)
    console.print(f"  expected   a failure in lane {mutant.killer} of {mutant.op}")
    console.print(f"  repeat     [cyan]walsh mutants --id {mutant.id}[/]")


def _print(console: Console, campaign: Campaign) -> None:
    for control in campaign.controls:
        console.print(f"[bold red]CONTROL[/]  {escape(control)}", soft_wrap=True)
    for problem in campaign.problems:
        console.print(f"[bold red]PROBLEM[/]  {escape(problem)}")
    for name, count in campaign.skipped.items():
        console.print(f"not run: {count} mutants of {name}, which cannot be run here")
    surprised = [
        v for v in campaign.verdicts if campaign.matrix and v.status == "killed" and v.mutant.killer not in v.kills
    ]
    for verdict in surprised:
        found = ", ".join(verdict.kills)
        console.print(f"note: {verdict.mutant.id} was expected to fail in {verdict.mutant.killer}, failed in {found}")
    total = len(campaign.verdicts)
    style = "green" if campaign.passed else "bold red"
    console.print(f"[{style}]{campaign.killed} of {total} mutants killed[/] by vectors {campaign.manifest[:16]}")
