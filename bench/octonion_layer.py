"""The octonion layer against one dense layer of the same width, forward and backward, timed in interleaved pairs.

    dense      y = x W^T,  dx = dy W,  dW = dy^T x                         W [C, C], float32 and, beside it, bfloat16
    octonion   cayley_dickson_bit_linear: ternary weights from float latent [8, C/8, C/8], beta, dx, dW, dbeta

Absolute times drift on shared machines while the ratio of neighbours in time does not: every round times each layer
once, in an order that rotates, and the gate is on ratios. After timing stops each octonion result is checked against
the direct method, so that nothing wrong is called fast.

    python bench/octonion_layer.py --pairs 15 --check
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from walsh.kernels.torch.cayley_dickson import cayley_dickson_bit_linear

GATES = {"octonion float32": 1.6, "octonion int8": 2.0}
"""The least ratio of medians, dense float32 over octonion."""

Step = Callable[[], tuple[Tensor, ...]]


def dense_step(x: Tensor, dy: Tensor, dtype: torch.dtype) -> Step:
    width = x.shape[-1]
    x = x.to(dtype, copy=True).requires_grad_()
    w = (torch.randn(width, width) / width**0.5).to(dtype).requires_grad_()
    dy = dy.to(dtype)

    def step() -> tuple[Tensor, ...]:
        y = torch.nn.functional.linear(x, w)
        return (y.detach(), *torch.autograd.grad(y, (x, w), dy))

    return step


def octonion_step(x: Tensor, dy: Tensor, w: Tensor, beta: Tensor, bits: int | None, method: str = "auto") -> Step:
    x, w, beta = (t.clone().requires_grad_() for t in (x, w, beta))

    def step() -> tuple[Tensor, ...]:
        y = cayley_dickson_bit_linear(x, w, beta, activation_bits=bits, method=method)
        return (y.detach(), *torch.autograd.grad(y, (x, w, beta), dy))

    return step


def measure(steps: dict[str, Step], pairs: int, console: Console) -> dict[str, list[float]]:
    """Seconds of every step in every round; one round before them is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    with console.status("timing") as status:
        for round_number in range(pairs + 1):
            status.update(f"round {round_number} of {pairs}" if round_number else "warming up")
            shift = round_number % len(names)
            for name in names[shift:] + names[:shift]:
                start = time.perf_counter()
                steps[name]()
                elapsed = time.perf_counter() - start
                if round_number:
                    times[name].append(elapsed)
    return times


def ratio_interval(baseline: list[float], other: list[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Ratio of medians with its 95 % interval: rounds are resampled, so that pairs stay together."""
    generator = random.Random(0)
    rounds = range(len(baseline))
    ratios = []
    for _ in range(resamples):
        chosen = generator.choices(rounds, k=len(baseline))
        ratios.append(statistics.median(baseline[i] for i in chosen) / statistics.median(other[i] for i in chosen))
    ratios.sort()
    ratio = statistics.median(baseline) / statistics.median(other)
    return ratio, ratios[int(0.025 * resamples)], ratios[int(0.975 * resamples)]


def quantile(values: list[float], q: float) -> float:
    """Linear interpolation between the order statistics."""
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), q))


def largest_error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest error of y, dx, dw, dbeta, each relative to the root mean square of what was expected."""
    return max(float((f - e).abs().max() / e.square().mean().sqrt()) for f, e in zip(found, expected, strict=True))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def summarise(times: dict[str, list[float]], conditions: dict[str, Any], errors: dict[str, float]) -> dict[str, Any]:
    baseline = times["dense float32"]
    tokens, width = conditions["tokens"], conditions["width"]
    layers = {}
    for name, values in times.items():
        ratio, low, high = ratio_interval(baseline, values)
        median = statistics.median(values)
        layers[name] = {
            "seconds": values,
            "median": median,
            "p20": quantile(values, 0.2),
            "p80": quantile(values, 0.8),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "dense_equivalent_flops_per_second": 6 * tokens * width**2 / median,
            "error": errors.get(name),
            "gate": GATES.get(name),
        }
    return {"conditions": conditions, "layers": layers}


def show(result: dict[str, Any], console: Console) -> None:
    conditions = result["conditions"]
    console.print(", ".join(f"{key} {value}" for key, value in conditions.items()), style="dim")
    table = Table(title="One layer, forward and backward")
    for column in (
        "layer",
        "median ms",
        "p20 - p80",
        "times dense float32",
        "95 %",
        "gate",
        "TFLOP/s dense eq.",
        "error",
    ):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, row in result["layers"].items():
        missed = row["gate"] is not None and row["ratio"] < row["gate"]
        table.add_row(
            name,
            f"{row['median'] * 1e3:.1f}",
            f"{row['p20'] * 1e3:.1f} - {row['p80'] * 1e3:.1f}",
            f"[{'red' if missed else 'default'}]{row['ratio']:.2f}[/]",
            f"{row['ratio_low']:.2f} - {row['ratio_high']:.2f}",
            "" if row["gate"] is None else f">= {row['gate']:.1f}",
            f"{row['dense_equivalent_flops_per_second'] / 1e12:.2f}",
            "" if row["error"] is None else f"{row['error']:.1e}",
        )
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pairs", default=15, show_default=True, type=click.IntRange(min=1), help="Rounds that count.")
@click.option("--tokens", default=1024, show_default=True, type=click.IntRange(min=1), help="Rows M of x.")
@click.option("--width", default=4096, show_default=True, type=click.IntRange(min=8), help="C; a multiple of 8.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="PyTorch's threads.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
@click.option("--check", is_flag=True, help="Exit with 1 unless every gate is met.")
def main(pairs: int, tokens: int, width: int, threads: int, json_path: Path | None, check: bool) -> None:
    """Time the octonion layer against a dense float32 layer on this machine."""
    if width % 8:
        raise click.BadParameter(f"width {width}: expected a multiple of 8", param_hint="--width")
    console = Console(width=None if sys.stdout.isatty() else 130)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, dy = torch.randn(tokens, width), torch.randn(tokens, width)
    w = torch.randn(8, width // 8, width // 8)
    beta = torch.rand(width // 8) + 0.5
    steps = {
        "dense float32": dense_step(x, dy, torch.float32),
        "octonion float32": octonion_step(x, dy, w, beta, None),
        "octonion int8": octonion_step(x, dy, w, beta, 8),
        "dense bfloat16": dense_step(x, dy, torch.bfloat16),
    }
    times = measure(steps, pairs, console)
    bits: dict[str, int | None] = {"octonion float32": None, "octonion int8": 8}
    errors = {n: largest_error(steps[n](), octonion_step(x, dy, w, beta, b, "direct")()) for n, b in bits.items()}
    conditions = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "tokens": tokens,
        "width": width,
        "pairs": pairs,
    }
    result = summarise(times, conditions, errors)
    show(result, console)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    wrong = {name: error for name, error in errors.items() if not error < 1e-3}
    if wrong:
        raise click.ClickException(f"results differ from the direct method: {wrong}; the times mean nothing")
    if check:
        missed = [name for name, gate in GATES.items() if result["layers"][name]["ratio"] < gate]
        if missed:
            raise click.ClickException(f"below the gate: {', '.join(missed)}")


if __name__ == "__main__":
    main()
