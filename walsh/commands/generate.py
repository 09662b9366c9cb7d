"""``walsh generate``: continue texts with a trained model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), default=Path("runs/laptop"))
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
@click.option("--device", help="Such as cpu or cuda [a GPU if there is one].")
@click.option("--quiet", is_flag=True, help="Print the continuation only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end instead of text as it comes.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def generate(
    checkpoint: Path,
    prompts: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    stop: tuple[str, ...],
    seed: int,
    device: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Continue --prompt with the model of CHECKPOINT: a run's folder, or a checkpoint's."""
    from walsh.model.generation import SamplingConfig
    from walsh.model.text import generate_text, load_model, stream_text
    from walsh.training.distributed import choose_device

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    model, tokenizer = load_model(checkpoint, choose_device(device))
    sampling = SamplingConfig(temperature, top_k, top_p, repetition_penalty, seed)
    texts = prompts or ("",)
    began = time.perf_counter()
    if len(texts) == 1 and not as_json:
        pieces = []
        if not quiet:
            click.echo(texts[0], nl=False)
        for _, piece in stream_text(model, tokenizer, texts, max_tokens, sampling, stop, say):
            click.echo(piece, nl=False)
            pieces.append(piece)
        click.echo()
        answers = ["".join(pieces)]
    else:
        answers = generate_text(model, tokenizer, texts, max_tokens, sampling, stop, say)
        if as_json:
            rows = [{"prompt": text, "text": answer} for text, answer in zip(texts, answers, strict=True)]
            click.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        else:
            for text, answer in zip(texts, answers, strict=True):
                click.echo(("" if quiet else text) + answer)
                click.echo("---")
    seconds = time.perf_counter() - began
    count = sum(len(tokenizer.encode(answer)) for answer in answers)
    say(f"{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):.0f} a second, on {model.device}")
