"""``walsh train``: train a model from a TOML configuration."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from walsh.errors import ParameterError

PACKAGE = Path(__file__).resolve().parents[1]

CONFIGS = (Path("configs"), PACKAGE / "_configs", PACKAGE.parent / "configs")
"""Where names are looked up: here, in the wheel, in a clone."""


def find_config(name: str) -> Path:
    """A configuration by path, or by its name in ``configs/``.

    Raises:
        ParameterError: there is none of this name; names those that are known.
    """
    path = Path(name)
    if path.is_file() or path.suffix:
        return path
    for folder in CONFIGS:
        if (folder / f"{name}.toml").exists():
            return folder / f"{name}.toml"
    known = sorted({found.stem for folder in CONFIGS for found in folder.glob("*.toml")})
    raise ParameterError(f"configuration {name!r}: no such file; known by name: {', '.join(known) or 'none'}")


@click.command()
@click.argument("config", default="laptop")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run [runs/NAME].")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change the config. Repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output folder.")
@click.option("--device", help="Such as cpu or cuda [a GPU if there is one].")
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU [all].")
@click.option("--quiet", is_flag=True, help="Print nothing.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    config: str,
    output: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Train the model of CONFIG: a TOML file, or the name of one in configs/.

    Without arguments the laptop's: offline, a few minutes on two cores. On several GPUs or machines:
    torchrun --nproc-per-node=8 -m walsh train CONFIG. Ctrl-C saves; --resume goes on.

    Exit codes: 0 finished, 1 diverged, 130 interrupted, 64 bad input.
    """
    import torch

    from walsh.training.config import load_config
    from walsh.training.distributed import open_world
    from walsh.training.run import run_training

    if threads:
        torch.set_num_threads(threads)
    path = find_config(config)
    chosen = load_config(path, overrides)
    with open_world(device) as world:
        outcome = run_training(chosen, output or Path("runs") / path.stem, world, Console(), resume, quiet)
    ctx.exit({"finished": 0, "diverged": 1, "interrupted": 130}[outcome.reason])
