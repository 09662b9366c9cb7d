"""``walsh analyze``: what the algebra does inside a model, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import click

from walsh.errors import ParameterError


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), default=Path("runs/laptop"))
@click.option(
    "--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File to look at [English on Python]."
)
@click.option("--tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="At most.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder [CHECKPOINT/analysis].")
@click.option("--device", help="Such as cpu or cuda [a GPU if there is one].")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON; draw nothing.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def analyze(
    checkpoint: Path, text: Path | None, tokens: int, output: Path | None, device: str | None, as_json: bool
) -> None:
    """Draw component energy, sparsity, mixers and norms by layer of the model of CHECKPOINT: PNG and HTML."""
    from walsh.data import open_corpus
    from walsh.data.tokenizers import CharacterTokenizer
    from walsh.model.analysis import analyse
    from walsh.model.text import load_model
    from walsh.training.distributed import choose_device

    model, tokenizer = load_model(checkpoint, choose_device(device))
    try:
        given = text.read_text(encoding="utf-8") if text else None
    except UnicodeDecodeError as error:
        raise ParameterError(f"--text {text}: not UTF-8 ({error.reason} at byte {error.start}); give a text") from None
    words = given if given is not None else "".join(open_corpus("pydoc").train())[: 8 * tokens]
    if isinstance(tokenizer, CharacterTokenizer) and text is None:
        words = "".join(character for character in words if character in tokenizer.characters)
    found = analyse(model, tokenizer.encode(words)[:tokens].tolist())
    if as_json:
        parts = {
            name: None if value is None else getattr(value, "tolist", lambda v=value: v)()
            for name, value in vars(found).items()
        }
        click.echo(json.dumps(parts).replace("NaN", "null"))
        return
    from walsh.reporting.analysis import write_analysis

    for path in write_analysis(found, model.config, checkpoint.resolve().name, output or checkpoint / "analysis"):
        click.echo(path)
