"""Tokens per second, bytes and Internet Computer instructions of the engine on the published shapes, batch 1, greedy.

    26.7M Hadamard-32 with head mixing, 28.9M octonion;   8 layers, 512 features, V = 50257, painted weights

    python bench/engine_decode.py --tokens 64 --repeats 7

Seconds are the median over repeats, by the clock and of this thread's CPU time, which a busy machine hardly touches.
Instructions are exact, of one token at the given context (``walsh.ic``), pages and system calls aside.
"""

from __future__ import annotations

import json
import statistics
import time
from itertools import pairwise
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from walsh.codec import dump, four_bit_rows
from walsh.engine import Engine
from walsh.measure.engine import make_metered
from walsh.reference.strict.export import inverse_frequencies
from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

BASE = {"n_layer": 8, "n_embd": 512, "vocab_size": 50257, "block_size": 1024}
SHAPES: dict[str, dict[str, Any]] = {
    "hadamard": {**BASE, "algebra": "hadamard", "n_head": 32, "head_mixing": True},
    "octonion": {**BASE, "algebra": "octonion", "n_head": 8},
}


def paint(config: dict[str, Any]) -> dict[str, Any]:
    """Strict weights by an integer recipe: a third of the ternary codes are zero, scales keep activations near one."""
    weights: dict[str, Any] = {}
    for number, (name, shape) in enumerate(strict_weight_shapes(config).items()):
        size = int(np.prod(shape))
        hashed = (np.arange(size, dtype=np.uint64) + np.uint64(7919 * number)) * np.uint64(
            0x9E3779B97F4A7C15
        ) >> np.uint64(40)
        if name == "rope.inv_freq":
            weights[name] = inverse_frequencies(2 * size)
        elif strict_weight_dtype(name) == "int8":
            levels = 255 if ".mixer." in name or name.startswith("embedding") else 3
            codes = (hashed % np.uint64(levels)).astype(np.int16) - levels // 2
            weights[name] = codes.astype(np.int8).reshape(shape)
        else:
            value = {"beta": 0.05, "scale": 0.01}.get(name.rpartition(".")[2], 1.0)
            weights[name] = np.full(shape, value, dtype=np.float32)
    return weights


def seconds_per_token(engine: Engine, context: int, tokens: int, repeats: int) -> tuple[float, float]:
    """(clock, CPU) medians over repeats of generating ``tokens`` tokens after ``context`` others."""
    session = engine.new_session(context + tokens + 1)
    prompt = np.arange(context) * 37 % engine.vocab_size
    clock, cpu = [], []
    for _ in range(repeats):
        session.truncate(0)
        session.prefill(prompt)
        before = time.perf_counter(), time.thread_time()
        session.generate(tokens)
        clock.append((time.perf_counter() - before[0]) / tokens)
        cpu.append((time.thread_time() - before[1]) / tokens)
    return statistics.median(clock), statistics.median(cpu)


def instructions(content: bytes, context: int) -> list[int]:
    """Exact instructions of token ``context``: embedding, blocks, head, greedy choice."""
    instance = make_metered()
    session = Engine(content, verify=False, instance=instance).new_session(context)
    session.prefill(np.arange(context - 1) * 37 % 50257)
    marks = [instance.counter()]
    session.begin(7)
    marks.append(instance.counter())
    while not session.advance():
        pass
    marks.append(instance.counter())
    session.head()
    marks.append(instance.counter())
    session.sample()
    marks.append(instance.counter())
    return [after - before for before, after in pairwise(marks)]


def measure(name: str, bits: int, context: int, tokens: int, repeats: int) -> dict[str, Any]:
    """One row."""
    config = SHAPES[name]
    weights = paint(config)
    if bits == 4:
        weights = four_bit_rows(weights, config)
    content = dump(weights, config)
    engine = Engine(content, verify=False)
    clock, cpu = seconds_per_token(engine, context, tokens, repeats)
    parts = instructions(content, context)
    memory = engine.memory
    return {
        "model": f"{sum(w.size for w in weights.values()) / 1e6:.1f}M {name}, int{bits} rows",
        "layout": engine.layout,
        "file_bytes": memory.file,
        "resident_bytes": memory.weights + memory.tokenizer,
        "peak_bytes": memory.peak,
        "tokens_per_second": 1 / clock,
        "tokens_per_cpu_second": 1 / cpu,
        "instructions": dict(zip(("embedding", "blocks", "head", "choice"), parts, strict=True)),
        "instructions_per_token": sum(parts),
        "tokens_per_update": int(40e9 // sum(parts)),
    }


@click.command()
@click.option("--context", default=64, show_default=True, help="Tokens read before.")
@click.option("--tokens", default=64, show_default=True, help="Tokens generated per repeat.")
@click.option("--repeats", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def main(context: int, tokens: int, repeats: int, as_json: bool) -> None:
    """Measure and print a table."""
    rows = [measure(name, bits, context, tokens, repeats) for name in SHAPES for bits in (8, 4)]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = Table(title=f"engine, batch 1, context {context} and {tokens} new tokens")
    for title in ("model", "layout", "file MB", "resident", "tok/s", "tok/CPU s", "M instr.", "of head", "tok/update"):
        table.add_column(title, justify="left" if title in ("model", "layout") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            row["layout"],
            f"{row['file_bytes'] / 1e6:.2f}",
            f"{row['resident_bytes'] / row['file_bytes']:.2f}x",
            f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_cpu_second']:.0f}",
            f"{row['instructions_per_token'] / 1e6:.2f}",
            f"{row['instructions']['head'] / 1e6:.2f}",
            f"{row['tokens_per_update']}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
