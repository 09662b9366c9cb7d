"""``walsh generate``: continue texts with a trained model, in the engine or in PyTorch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from walsh.engine.model import Sampling

Pieces = Iterator[tuple[int, str]]


class Continuation:
    """What continues texts: pieces as they come, and how many tokens a text has.

    Attributes:
        pieces: of (number of the prompt, text).
        count: tokens of a text.
        where: engine and device, to be shown.
    """

    def __init__(self, pieces: Pieces, count: Callable[[str], int], where: str) -> None:
        self.pieces, self.count, self.where = pieces, count, where


def _from_checkpoint(
    path: Path,
    device: str | None,
    texts: tuple[str, ...],
    limit: int,
    sampling: Sampling,
    stop: tuple[str, ...],
    say: Callable[[str], None],
) -> Continuation:
    """A checkpoint as it was trained; several prompts are one batch."""
    from walsh.model.generation import SamplingConfig
    from walsh.model.text import load_model, stream_text
    from walsh.training.distributed import choose_device

    model, tokenizer = load_model(path, choose_device(device))
    pieces = stream_text(model, tokenizer, texts, limit, SamplingConfig(**vars(sampling)), stop, say)
    return Continuation(pieces, lambda text: len(tokenizer.encode(text)), f"torch, {model.device}")


def _from_file(
    path: Path,
    engine: str | None,
    device: str | None,
    strict: bool,
    texts: tuple[str, ...],
    limit: int,
    sampling: Sampling,
    stop: tuple[str, ...],
    say: Callable[[str], None],
) -> Continuation:
    """A file, or a checkpoint rounded like one; one prompt after the other, each with its own seed."""
    from walsh.model.loaded import load

    model = load(path, engine, device, strict)
    window = model.config.block_size
    for number, text in enumerate(texts):
        if (length := len(model.encode(text))) > window:
            say(f"prompt {number} has {length} tokens, the context {window}: only the last {window} are seen")

    def pieces() -> Pieces:
        for number, text in enumerate(texts):
            mine = replace(sampling, seed=sampling.seed + number)
            for piece in model.pieces(text, limit, mine, stop):
                yield number, piece

    where = f"{model.engine}, {device or 'cpu'}{', strict' if model.strict else ''}"
    return Continuation(pieces(), lambda text: len(model.encode(text)), where)


@click.command()
@click.argument("model", type=click.Path(path_type=Path), default=Path("runs/laptop"))
@click.option("--prompt", "prompts", multiple=True, help="Text to continue. Repeatable: a batch. [an empty one]")
@click.option("--max-tokens", type=click.IntRange(min=0), default=200, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True, help="0: most likely token."
)
@click.option("--top-k", type=click.IntRange(min=0), default=50, show_default=True, help="0: all.")
@click.option("--top-p", type=click.FloatRange(min=0, min_open=True, max=1), default=1.0, show_default=True)
@click.option("--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--engine", type=click.Choice(["wasm", "torch"]), help="[wasm for files, torch for checkpoints]")
@click.option("--strict", is_flag=True, help="Round a checkpoint as a file is: the same tokens on every engine.")
@click.option("--device", help="Of torch, such as cpu or cuda [a GPU for a checkpoint, if there is one].")
@click.option("--quiet", is_flag=True, help="Print the continuation only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end instead of text as it comes.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def generate(
    model: Path,
    prompts: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    stop: tuple[str, ...],
    seed: int,
    engine: str | None,
    strict: bool,
    device: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Continue --prompt with MODEL: a .walsh or SPIN file, a run's folder, or a checkpoint's.

    Files with int8 activations give the same tokens in both engines, on every machine.
    """
    from walsh.codec.sources import detect
    from walsh.engine.model import Sampling

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    texts = prompts or ("",)
    plain = not model.is_file() and engine != "wasm" and not strict
    if not plain:
        detect(model)
    began = time.perf_counter()
    if plain:
        found = _from_checkpoint(model, device, texts, max_tokens, sampling, stop, say)
    else:
        found = _from_file(model, engine, device, strict, texts, max_tokens, sampling, stop, say)
    say(f"loaded in {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    answers = [""] * len(texts)
    alone = len(texts) == 1 and not as_json
    if alone and not quiet:
        click.echo(texts[0], nl=False)
    for number, piece in found.pieces:
        answers[number] += piece
        if alone:
            click.echo(piece, nl=False)
    if alone:
        click.echo()
    elif as_json:
        rows = [{"prompt": text, "text": answer} for text, answer in zip(texts, answers, strict=True)]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        for text, answer in zip(texts, answers, strict=True):
            click.echo(("" if quiet else text) + answer)
            click.echo("---")
    seconds = time.perf_counter() - began
    count = sum(found.count(answer) for answer in answers)
    say(f"{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):.0f} a second, on {found.where}")
