"""``walsh ablate``: compare algebras at equal cost."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from walsh.errors import ParameterError
from walsh.suite.display import make_console


@click.command()
@click.argument("config", default="ablation")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder [runs/CONFIG-MATCH].")
@click.option(
    "--match", type=click.Choice(["parameters", "bytes", "flops", "width"]), help="Equal what [the configuration's]."
)
@click.option("--seeds", type=click.IntRange(min=1), help="Take the first so many seeds.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change the base. Repeatable.")
@click.option("--plan", is_flag=True, help="Print the sizes and train nothing.")
@click.option("--device", help="Such as cpu or cuda [a GPU if there is one].")
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU [all].")
@click.option("--quiet", is_flag=True, help="Print nothing but the paths.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def ablate(
    config: str,
    output: Path | None,
    match: str | None,
    seeds: int | None,
    overrides: tuple[str, ...],
    plan: bool,
    device: str | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Train every variant of CONFIG from every seed at equal cost, and report.

    What is done already is kept: Ctrl-C and go on with the same command. The report has paired differences with
    t-intervals; below five seeds it gives no verdict.
    """
    import torch

    from walsh.commands.train import find_config
    from walsh.model.accounting import count_multiplications, count_parameters, packed_bytes
    from walsh.reporting.ablation import write_ablation
    from walsh.training.ablation import compare, load_ablation, run_ablation, size_variants
    from walsh.training.distributed import open_world
    from walsh.training.run import data_folder, prepare_data

    if threads:
        torch.set_num_threads(threads)
    path = find_config(config)
    chosen, base = load_ablation(path, overrides)
    if seeds is not None and seeds > len(chosen.seeds):
        raise ParameterError(f"--seeds {seeds}: {path.name} has {len(chosen.seeds)}; add some to its list")
    chosen = chosen.model_copy(update={"match": match or chosen.match, "seeds": chosen.seeds[:seeds]})
    folder = output or Path("runs") / f"{path.stem}-{chosen.match}"
    console = make_console()
    if plan:
        data = prepare_data(base.data, data_folder(base.data, folder), Console(stderr=True))
        for name, model in size_variants(chosen, base, data.tokenizer.vocab_size).items():
            console.print(
                f"{name:<36}{model.n_embd:>6} / {model.ffn_hidden:<6} wide {count_parameters(model):>12,} parameters"
                f"{packed_bytes(model):>12,} bytes {count_multiplications(model):>12,} multiplications",
                highlight=False,
                soft_wrap=True,
            )
        return
    with open_world(device) as world:
        runs = run_ablation(chosen, base, folder, world, console, quiet)
        found = compare(runs, chosen.baseline)
        for one in [] if quiet else found:
            console.print(f"{one.variant:<36}{one.mean:.4f} bits a byte  {one.difference:+.4f}  {one.verdict}")
        for written in write_ablation(chosen, found, f"Ablation at equal {chosen.match}", folder):
            click.echo(written)
