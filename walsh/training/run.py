"""A whole run from a configuration: data prepared, model trained, results told."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from walsh.data import Dataset, open_corpus, prepare
from walsh.model.accounting import count_parameters, packed_bytes
from walsh.training.config import DataConfig, TrainingConfig
from walsh.training.distributed import World
from walsh.training.loop import Outcome, Trainer


def data_folder(config: DataConfig, folder: Path) -> Path:
    """Where a run in ``folder`` keeps its tokens: shared by all runs beside it unless the configuration says."""
    if config.folder is not None:
        return config.folder
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.corpus).strip("-")
    parts = [name, config.tokenizer, str(config.limit) if config.limit else None]
    return folder.parent / "data" / "-".join(filter(None, parts))


def prepare_data(config: DataConfig, folder: Path, console: Console) -> Dataset:
    """Fetch and tokenize the corpus of a configuration into ``folder``, or open what is there.

    Raises:
        DataError: data that cannot be had, or are of another tokenizer. ParameterError: an unknown corpus.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        fetching, tokenizing = (
            bar.add_task(what, start=False, visible=False, total=total, amount="")
            for what, total in (("fetching", None), ("tokenizing", config.limit))
        )

        def fetched(done: int, total: int | None) -> None:
            bar.start_task(fetching)
            bar.update(fetching, completed=done, total=total, visible=True, amount=f"{done / 1e6:,.1f} MB")

        def tokenized(documents: int, tokens: int) -> None:
            bar.start_task(tokenizing)
            amount = f"{documents:,} documents, {tokens:,} tokens"
            bar.update(tokenizing, completed=documents, visible=True, amount=amount)

        corpus = open_corpus(config.corpus, progress=fetched)
        return prepare(corpus, folder, config.tokenizer, config.limit, tokenized)


def run_training(
    config: TrainingConfig, folder: Path, world: World, console: Console, resume: bool = False, quiet: bool = False
) -> Outcome:
    """Train and say what was done and where it is; arguments as for ``Trainer``."""
    quiet = quiet or not world.main
    tokens = data_folder(config.data, folder)
    if world.main:
        prepare_data(config.data, tokens, Console(quiet=True) if quiet else console)
    world.wait()
    dataset = prepare_data(config.data, tokens, Console(quiet=True))
    trainer = Trainer(config, dataset, folder, world, console, resume, quiet)
    model = trainer.model.config
    if not quiet:
        console.print(
            f"{model.algebra}, {model.n_layer} layers, {model.n_embd} wide, {count_parameters(model):,} parameters "
            f"({packed_bytes(model):,} bytes packed); {config.data.corpus}: {len(dataset.train):,} tokens to train on, "
            f"{len(dataset.validation):,} held out; {trainer.global_batch} x {trainer.length} tokens a step; "
            f"{world.size} x {world.device}, {config.training.dtype}",
            highlight=False,
        )
    outcome = trainer.train()
    if not quiet:
        _tell(outcome, folder, console, config.evaluation.stated)
    return outcome


def _tell(outcome: Outcome, folder: Path, console: Console, stated: float | None) -> None:
    minutes = outcome.seconds / 60
    speed = outcome.tokens / max(outcome.seconds, 1e-9)
    say = {
        "finished": "finished",
        "interrupted": "interrupted and saved (--resume goes on)",
        "diverged": "stopped: the loss diverged; lower optimizer.learning_rate or lengthen schedule.warmup_steps",
    }[outcome.reason]
    console.print(
        f"{say} after step {outcome.step}: {minutes:.1f} minutes, {speed:,.0f} tokens a second, evaluation counted in",
        highlight=False,
    )
    if outcome.evaluation is not None:
        found = outcome.evaluation
        reached = "below" if stated is not None and found.bits_per_byte < stated else "NOT below"
        console.print(
            f"held out: {found.bits_per_byte:.3f} bits a byte, {found.loss:.3f} nats a token, {found.tokens:,} tokens"
            + ("" if stated is None else f"; {reached} the {stated} bits a byte that the configuration states"),
            highlight=False,
        )
    for name, what in (
        ("checkpoint", "model and optimizer; walsh generate and --resume take it"),
        ("best", "the model with the lowest held-out loss while it trained"),
        ("metrics.jsonl", "every step"),
        ("loss.png", "loss drawn"),
        ("tensorboard", "tensorboard --logdir"),
    ):
        if (folder / name).exists():
            console.print(f"  {folder / name}  ({what})", highlight=False, soft_wrap=True)
    if outcome.reason == "finished":
        file = f"{folder}.walsh"
        console.print("next:")
        for command, what in (
            (f"generate {folder}", "in PyTorch, as trained"),
            (f"analyze {folder}", "what the algebra does in it, drawn"),
            (f"compress {folder} -o {file}", "makes a small file of it"),
            (f"verify {file}", "reads it with every reader"),
            (f"generate {file}", "from the small file, in the engine"),
        ):
            console.print(f"  walsh {command}  ({what})", highlight=False, soft_wrap=True)
