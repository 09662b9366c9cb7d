"""``walsh convert``: models from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from walsh.commands.compress import new_file, show_bytes
from walsh.errors import BackendError, ParameterError

if TYPE_CHECKING:
    from walsh.codec.sources import Source

TARGETS = ("checkpoint", "walsh", "spin", "published", "transformers")
FOLDERS = ("checkpoint", "transformers")


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


def _target(to: str | None, output: Path | None) -> str:
    """The format: asked for, or seen in the name; a checkpoint otherwise."""
    if to is not None:
        return to
    names = {".walsh": "walsh", ".spin": "spin", ".pt": "published", ".pth": "published"}
    return names.get(output.suffix if output else "", "checkpoint")


def _write_checkpoint(source: Source, folder: Path, name: str) -> None:
    import numpy as np
    import torch

    from walsh.codec.sources import tokenizer_record
    from walsh.model.checkpoint import Checkpoint, save_checkpoint

    weights = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in source.trained.items()}
    record = Checkpoint(weights, source.config.to_dict(), tokenizer_record(source), state={"converted": name})
    save_checkpoint(folder, record)


def _write_published(source: Source, path: Path) -> None:
    import tempfile

    import numpy as np
    import torch

    from walsh.model.published import published_config, published_names

    config = published_config(source.config)
    names = published_names(source.config, "embedding.indices" in source.trained)
    model = {theirs: torch.from_numpy(np.ascontiguousarray(source.trained[ours])) for ours, theirs in names.items()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".walsh-") as folder:
        torch.save({"model": model, "model_args": config}, Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)


def _write_transformers(source: Source, folder: Path) -> None:
    import numpy as np
    import torch

    from walsh.codec.sources import tokenizer_record
    from walsh.data.tokenizers import from_dict
    from walsh.model.transformer import Walsh

    try:
        from walsh.huggingface import export
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed: pip install 'walsh[hf]'") from None
    weights = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in source.trained.items()}
    export(Walsh(source.config, weights=weights), from_dict(tokenizer_record(source)), folder)


def _parts(source: Path) -> list[Path]:
    """The checkpoints inside a run, which hold what converting leaves out: the optimizer's state."""
    return [folder for folder in (source / "checkpoint", source / "best") if folder.is_dir()]


def _write(source: Source, target: str, path: Path, name: str) -> None:
    from walsh.codec.sources import strict_form_of, to_spin, without_unused_rows
    from walsh.codec.writer import write_atomically, write_walsh

    if target == "walsh":
        smaller = without_unused_rows(source)
        write_walsh(path, strict_form_of(smaller), smaller.config.to_dict(), smaller.tokenizer)
    elif target == "spin":
        write_atomically(path, to_spin(source))
    elif target == "published":
        _write_published(source, path)
    elif target == "transformers":
        _write_transformers(source, path)
    else:
        _write_checkpoint(source, path, name)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File or folder [SOURCE without suffix].")
@click.option("--to", type=click.Choice(TARGETS), help="Format [by the name of the output; a checkpoint].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Configuration that the file lacks.")
@click.option("--characters", help="Of a published model whose vocabulary is characters.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def convert(
    source: Path, output: Path | None, to: str | None, settings: tuple[str, ...], characters: str | None, force: bool
) -> None:
    """Read SOURCE, check every tensor, and write it in another format.

    SOURCE is a checkpoint or run, a .walsh or SPIN file, or a published .pt file; no code in it is run, what does not
    fit is an error, and nothing is filled in. Targets: a checkpoint folder, .walsh, .spin (the published container),
    .pt (a checkpoint for published code) or a folder for transformers.
    """
    from walsh.codec.sources import detect, read_source
    from walsh.model.accounting import count_parameters

    detect(source)
    target = _target(to, output)
    ends = {"checkpoint": "", "walsh": ".walsh", "spin": ".spin", "published": ".pt", "transformers": ".transformers"}
    path = new_file(output or source.with_suffix(ends[target]), force)
    if path.resolve() in (source.resolve(), *(folder.resolve() for folder in _parts(source))):
        raise ParameterError(f"{path} is the source: give another --output")
    read = read_source(source, parse_settings(settings), characters)
    if path.is_dir() and target not in FOLDERS:
        raise ParameterError(f"{path} is a folder: expected the name of a file")
    if path.is_file() and target in FOLDERS:
        path.unlink()  # a folder takes its place, as --force says
    _write(read, target, path, source.name)
    size = sum(part.stat().st_size for part in (path.iterdir() if path.is_dir() else [path]))
    config = read.config
    shapes = {name: tuple(w.shape) for name, w in read.trained.items() if name in config.weight_shapes()}
    click.echo(
        f"{path}: {config.algebra}, {config.n_layer} layers, {config.n_embd} wide, "
        f"{count_parameters(config, shapes):,} parameters, {show_bytes(size)}"
    )
