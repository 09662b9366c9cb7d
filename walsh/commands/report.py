"""``walsh report``: pages from stored rows, comparisons of two runs, tables of the README."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.markup import escape

from walsh.errors import BackendError
from walsh.suite.display import make_console

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def require_extra() -> None:
    """Raise unless the packages that reports need are installed.

    Raises:
        BackendError: naming the extra.
    """
    try:
        import matplotlib  # noqa: F401  # only whether it is there
        import pandas  # type: ignore[import-untyped]  # noqa: F401  # likewise; no type information
        import pyarrow  # type: ignore[import-untyped]  # noqa: F401  # likewise; no type information
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed: pip install 'walsh[report]'") from None


@click.group()
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def report(debug: bool) -> None:
    """Make pages from stored measurements."""
    del debug  # read by the main group


@report.command()
@click.argument("root", type=_FOLDER, default=ROOT / "reports")
@click.option("--claims", type=_FILE, default=ROOT / "bench" / "claims.toml", help="Published figures.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write; default: ROOT.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a stored report differs from its rows.")
def build(root: Path, claims: Path, out: Path | None, check: bool) -> None:
    """Build report.md, report.html, rows.parquet, rows.csv and claims.md from ROOT/*/rows.jsonl.

    The same rows give the same bytes, on the same versions of pandas, pyarrow and Matplotlib.
    """
    require_extra()
    from walsh.reporting.build import OUTPUTS
    from walsh.reporting.build import build as make

    if not check:
        make(root, claims, out)
        for name in OUTPUTS:
            click.echo(str((out or root) / name))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(root, claims, Path(folder))
        stale = [
            name
            for name in OUTPUTS
            if not (root / name).exists() or (root / name).read_bytes() != (Path(folder) / name).read_bytes()
        ]
    if stale:
        raise click.ClickException(f"stale: {', '.join(stale)}; `walsh report build` makes them anew")
    click.echo("as stored")


@report.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option("--all", "everything", is_flag=True, help="Also rows that did not change.")
@click.pass_context
def compare(ctx: click.Context, old: Path, new: Path, everything: bool) -> None:
    """Compare two runs (rows.jsonl) by ratios and counts; exit with 1 if anything got slower."""
    require_extra()
    from walsh.measure.rows import read_run
    from walsh.reporting.compare import compare_runs
    from walsh.reporting.terminal import show_comparison

    found = compare_runs(read_run(old), read_run(new))
    show_comparison(make_console(), found, everything)
    ctx.exit(1 if found.regressions else 0)


@report.command()
@click.argument("document", type=_FILE, default=ROOT / "README.md")
@click.option("--root", type=_FOLDER, default=ROOT / "reports", help="Stored results.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a table is stale.")
def readme(document: Path, root: Path, check: bool) -> None:
    """Make the tables between the markers of DOCUMENT anew."""
    require_extra()
    from walsh.reporting.build import write_text
    from walsh.reporting.inputs import read_material
    from walsh.reporting.readme import refresh

    before = document.read_text("utf-8")
    after = refresh(before, read_material(root))
    if check and before != after:
        raise click.ClickException(f"{document.name} has stale tables; `walsh report readme` makes them anew")
    if not check:
        write_text(document, after)
    make_console().print(escape(f"{document.name}: {'fresh' if before == after else 'written'}"))
