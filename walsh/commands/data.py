"""``walsh data``: corpora and token files."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console


@click.group()
def data() -> None:
    """Fetch, tokenize and look at corpora."""


@data.command()
@click.argument("corpus", default="pydoc")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder [runs/data/CORPUS].")
@click.option("--tokenizer", type=click.Choice(["characters", "bytes", "gpt2"]), help="[the corpus's own]")
@click.option("--limit", type=click.IntRange(min=1), help="Documents at most.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def prepare(corpus: str, output: Path | None, tokenizer: str | None, limit: int | None) -> None:
    """Tokenize CORPUS: pydoc, shakespeare, tinystories, fineweb-edu or file:PATH.

    Downloads go to WALSH_DATA (or ~/.cache/walsh), are resumed and checked.
    """
    from walsh.training.config import parse_config
    from walsh.training.run import data_folder, prepare_data

    section = {"corpus": corpus, "tokenizer": tokenizer, "limit": limit}
    config = parse_config({"data": {key: value for key, value in section.items() if value is not None}}, "options").data
    folder = output or data_folder(config, Path("runs") / "none")
    made = prepare_data(config, folder, Console(stderr=True))
    click.echo(f"{folder}: {len(made.train):,} tokens to train on, {len(made.validation):,} held out")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tokens", type=click.IntRange(min=0), default=200, show_default=True, help="To show of each part.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def show(folder: Path, tokens: int, as_json: bool) -> None:
    """Say what prepared data in FOLDER are, and show how each part begins."""
    from walsh.data import load_dataset

    found = load_dataset(folder)
    record = {
        "tokenizer": found.tokenizer.kind,
        "vocabulary": found.tokenizer.vocab_size,
        "digest": found.tokenizer.digest,
        "train": len(found.train),
        "validation": len(found.validation),
    }
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    for key, value in record.items():
        click.echo(f"{key:<12}{value}")
    for name, part in (("train", found.train), ("validation", found.validation)):
        click.echo(f"--- {name}\n{found.tokenizer.decode(part[:tokens])}")
