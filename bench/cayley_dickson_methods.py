"""Which method forms a Cayley-Dickson product fastest at which size: the measurement behind ``auto``.

    direct, expanded, fast: forward and both gradients, float32         x [M, D*K], w [D, K, K], M tokens, D*K the width
    crossed, expanded: the exact integer product of int8 activations   (decides ``integer_product``)

    python bench/cayley_dickson_methods.py --repeats 7

Every cell is the median over interleaved rounds; the best of a row is marked.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from walsh.kernels.torch import convolution

Step = Callable[[], object]


def medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step, in interleaved rounds after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def float_steps(d: int, m: int, k: int) -> dict[str, Step]:
    x, dy, w = torch.randn(m, d, k), torch.randn(m, d, k), torch.randn(d, k, k)

    def step(method: str) -> Step:
        def run() -> object:
            y = convolution.product(x, w, method)
            return y, convolution.gradients(dy, x, w, None, (True, True, False), method)

        return run

    return {method: step(method) for method in ("direct", "expanded", "fast")}


def integer_steps(d: int, m: int, k: int) -> dict[str, Step]:
    a = torch.randint(-127, 128, (m, d * k), dtype=torch.int8)
    q = torch.randint(-1, 2, (d, k, k), dtype=torch.int8)
    return {
        "crossed": lambda: convolution.crossed_integer_product(a, q),
        "expanded": lambda: convolution.expanded_integer_product(a, q),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", default=7, show_default=True, type=click.IntRange(min=1), help="Rounds that count.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="PyTorch's threads.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
def main(repeats: int, threads: int, json_path: Path | None) -> None:
    """Time every method over dimensions, tokens and widths."""
    torch.set_num_threads(threads)
    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(title=f"milliseconds, {threads} threads, torch {torch.__version__}")
    for column in ("arithmetic", "D", "tokens", "K = N", "direct / crossed", "expanded", "fast"):
        table.add_column(column, justify="right")
    rows = []
    grid = [(d, m, k) for d in (2, 4, 8, 16) for m in (1, 16, 64, 256, 1024) for k in (16, 32, 64, 128, 256)]
    with console.status("timing"):
        for kind, make in (("float32", float_steps), ("int8", integer_steps)):
            for d, m, k in grid:
                found = medians(make(d, m, k), repeats)
                best = min(found, key=lambda name: found[name])
                rows.append({"arithmetic": kind, "d": d, "tokens": m, "k": k, "seconds": found, "best": best})
                cells = [f"[bold]{s * 1e3:.3f}*[/]" if n == best else f"{s * 1e3:.3f}" for n, s in found.items()]
                table.add_row(kind, str(d), str(m), str(k), *cells)
    console.print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
