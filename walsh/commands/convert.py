"""``walsh convert``: published PyTorch checkpoints become checkpoints of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from walsh.errors import ParameterError


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` pairs, values as TOML has them; ``none`` is None."""
    import tomllib

    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ParameterError(f"setting {setting!r}: expected key=value, such as n_head=8")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = None if text == "none" else text
        found[key.strip()] = value
    return found


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder [SOURCE without suffix].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Configuration that the file lacks.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def convert(source: Path, output: Path | None, settings: tuple[str, ...]) -> None:
    """Read a published .pt file SOURCE, check every tensor, and write a checkpoint folder.

    No code in the file is run. What does not fit is an error; nothing is filled in.
    """
    from walsh.model.accounting import count_parameters
    from walsh.model.checkpoint import save_checkpoint
    from walsh.model.convert import convert as convert_file
    from walsh.model.text import open_model

    checkpoint = convert_file(source, parse_settings(settings))
    model, _ = open_model(checkpoint)
    folder = output or source.with_suffix("")
    save_checkpoint(folder, checkpoint)
    config = model.config
    shapes = {name: tuple(w.shape) for name, w in checkpoint.weights.items() if name in config.weight_shapes()}
    click.echo(
        f"{folder}: {config.algebra}, {config.n_layer} layers, {config.n_embd} wide, "
        f"{count_parameters(config, shapes):,} parameters"
    )
