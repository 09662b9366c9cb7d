"""``walsh inspect``: what a model consists of, in parameters and bytes, and how a file stores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from walsh.errors import ParameterError
from walsh.model import accounting
from walsh.model.config import WalshConfig
from walsh.suite.display import make_console


def _configuration(source: Path, vocabulary: int | None) -> tuple[WalshConfig, accounting.Shapes]:
    """Configuration and shapes of a checkpoint, or of a training configuration."""
    if source.suffix == ".toml" or not source.exists():
        from walsh.commands.train import find_config
        from walsh.training.config import load_config

        config = load_config(find_config(str(source)))
        kind = config.data.tokenizer or {"pydoc": "bytes", "shakespeare": "characters"}.get(config.data.corpus, "gpt2")
        known = {"bytes": 257, "gpt2": 50257, "characters": 66}  # tiny Shakespeare's 65 characters and the end token
        model = config.make_model_config(vocabulary or known[kind])
        return model, model.weight_shapes()
    from walsh.model.checkpoint import load_checkpoint
    from walsh.model.text import find_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(source), optimizer=False)
    model = WalshConfig.from_dict(checkpoint.model)
    present = {name: tuple(w.shape) for name, w in checkpoint.weights.items() if name in model.weight_shapes()}
    return model, present


def _file(source: Path, characters: str | None) -> tuple[WalshConfig, accounting.Shapes, dict[str, Any]]:
    """Configuration and shapes of a file, and how it stores them."""
    from walsh.codec import reader, spin
    from walsh.codec.report import rows
    from walsh.codec.sources import detect, read_source

    read = read_source(source, characters=characters)
    shapes = {name: tuple(w.shape) for name, w in read.trained.items() if name in read.config.weight_shapes()}
    stored: dict[str, Any] = {"format": detect(source), "bytes": source.stat().st_size}
    stored["tokenizer"] = None if read.tokenizer is None else read.tokenizer.to_dict()["kind"]
    if read.file is not None:
        stored["packings"] = [
            {"kind": r.kind, "packing": r.packing, "tensors": r.tensors, "bytes": r.bytes, "bits": r.bits}
            for r in rows(read.file.stored)
        ]
        stored["tensors"] = reader.summary(read.file)
    elif stored["format"] == "spin":
        records, _, version = spin.read_records(source.read_bytes())
        stored["version"] = version
        stored["tensors"] = [{"name": r.name, "packing": r.marker, "shape": list(r.values.shape)} for r in records]
    return read.config, shapes, stored


def _show_file(console: Console, stored: dict[str, Any], every: bool) -> None:
    version = f" version {stored['version']}" if "version" in stored else ""
    console.print(
        f"stored as {stored['format']}{version}, {stored['bytes']:,} bytes, tokenizer {stored['tokenizer']}",
        highlight=False,
    )
    for row in stored.get("packings", []):
        console.print(
            f"  {row['kind']:<18}{row['packing']:<15}{row['tensors']:>5} tensors{row['bytes']:>14,} bytes"
            f"{row['bits']:>7.2f} bits a value",
            highlight=False,
        )
    for row in stored.get("tensors", []) if every else []:
        size = f"{row['bytes']:>12,} bytes" if "bytes" in row else ""
        console.print(
            f"  {row['name']:<42}{row['packing']:<14}{row['shape']!s:<18}{size}", highlight=False, markup=False
        )


@click.command()
@click.argument("source", type=click.Path(path_type=Path), default=Path("runs/laptop"))
@click.option("--vocabulary", type=click.IntRange(min=1), help="Tokens, for a configuration [its tokenizer's].")
@click.option("--tensors", is_flag=True, help="List every tensor of a file.")
@click.option("--characters", help="Of a published file whose vocabulary is characters.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def inspect(source: Path, vocabulary: int | None, tensors: bool, characters: str | None, as_json: bool) -> None:
    """Count parameters and bytes of SOURCE: a run, a checkpoint, a .walsh, SPIN or .pt file, or a configuration.

    A configuration is a TOML file or a name in configs/. Optimizer state is no part of a model and not counted. Packed
    sizes are those of the tensors, without container and tokenizer; a file is besides shown as it stores them.
    """
    stored = None
    described = source.suffix == ".toml" or not source.exists()
    if vocabulary is not None and not described:
        raise ParameterError(f"--vocabulary with {source}: a model has its own; leave it out")
    if characters is not None and not source.is_file():
        raise ParameterError(f"--characters with {source}: of published files only; leave it out")
    if source.is_file() and source.suffix != ".toml":
        config, shapes, stored = _file(source, characters)
    else:
        config, shapes = _configuration(source, vocabulary)
    parts = accounting.count_parts(config, shapes)
    total = accounting.count_parameters(config, shapes)
    published = accounting.count_parameters(config, accounting.published_shapes(config))
    record: dict[str, Any] = {
        "config": config.to_dict(),
        "parameters": total,
        "parameters_as_published": published,
        "parts": [vars(part) for part in parts],
        "multiplications_per_token": accounting.count_multiplications(config),
        "bytes": {
            "float32": 4 * total,
            "packed 2 bits, rows int8": accounting.packed_bytes(config),
            "packed 1.6 bits, rows int8": accounting.packed_bytes(config, 1.6),
            "packed 1.6 bits, rows 4 bits": accounting.packed_bytes(config, 1.6, 4),
        },
    }
    if stored is not None:
        record["file"] = stored
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    console = make_console()
    table = Table(box=None, pad_edge=False)
    for title in ("part", "parameters", "ternary", "scales"):
        table.add_column(title, justify="left" if title == "part" else "right")
    for part in parts:
        table.add_row(part.name, f"{part.parameters:,}", f"{part.ternary:,}", f"{part.scales:,}")
    table.add_row("all", f"{total:,}", f"{sum(p.ternary for p in parts):,}", f"{sum(p.scales for p in parts):,}")
    console.print(
        f"{config.algebra}{', ternary' if config.ternary else ''}, {config.n_layer} layers, {config.n_embd} wide, "
        f"{config.n_head} heads, vocabulary {config.vocab_size:,}, context {config.block_size}",
        highlight=False,
    )
    console.print(table)
    if published != total:
        console.print(f"as published, with 1,021 rows in both hash tables: {published:,}", highlight=False)
    console.print(f"multiplications per token, expanded: {record['multiplications_per_token']:,}", highlight=False)
    for name, size in record["bytes"].items():
        console.print(f"{name:<30}{size:>14,} bytes", highlight=False)
    if stored is not None:
        _show_file(console, stored, tensors)
