"""Counts of the shipped canister as a canbench-compatible file, ``canister/ic/canbench_results.yml``.

    python -m walsh.ic.canister.bench           measure the published shapes and the small models, and write the file
    python -m walsh.ic.canister.bench --check   measure again and compare: any difference fails, in either direction
    python -m walsh.ic.canister.bench --check --quick     only the small models

Counts are exact and belong to the committed module: the file names its digest and the version of the cost table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from walsh.engine.build import WORKSPACE
from walsh.errors import FormatError
from walsh.ic import scenarios
from walsh.ic.canister.client import Client
from walsh.ic.canister.module import read_record
from walsh.ic.costs import default_costs

RESULTS = WORKSPACE / "ic" / "canbench_results.yml"
QUICK: dict[str, dict[str, Any]] = {
    "small octonion": {"algebra": "octonion", "n_head": 8, "head_mixing": True},
    "small hadamard": {"algebra": "hadamard", "n_head": 32, "head_mixing": True},
}
"""Small models: 2 layers, 64 wide, 1000 ids."""

Result = dict[str, int]
"""calls, instructions, heap_increase and stable_memory_increase (pages) of one benchmark."""


def _config(name: str) -> dict[str, Any]:
    if name in QUICK:
        return {"n_layer": 2, "n_embd": 64, "vocab_size": 1000, "block_size": 256} | QUICK[name]
    return scenarios.config_of(name)


def _result(client: Client, run: Callable[[], list[scenarios.Cost]]) -> Iterator[tuple[str, Result]]:
    """Results of scenarios, with the pages by which memories grew."""
    instance, stable = client.canister.instance, client.canister.stable
    before = instance.heap.size // 65536, stable.pages
    costs = run()
    grown = instance.heap.size // 65536 - before[0], stable.pages - before[1]
    for place, cost in enumerate(costs):
        last = place + 1 == len(costs)
        yield (
            cost.scenario,
            {
                "calls": cost.messages,
                "instructions": cost.instructions,
                "heap_increase": grown[0] if last else 0,
                "stable_memory_increase": grown[1] if last else 0,
            },
        )


def measure(name: str) -> dict[str, Result]:
    """Every benchmark of one model."""
    quick = name in QUICK
    client, prepared = scenarios.prepare(scenarios.painted_file(_config(name)))
    tokens = 32 if quick else 256
    jobs: list[Callable[[], list[scenarios.Cost]]] = [
        lambda: prepared,
        lambda: [scenarios.single(client, 128, tokens)],
        lambda: [scenarios.batched(client, 4, 128, tokens // 4)],
        lambda: scenarios.one_by_one(client, 8, 128),
    ]
    results = {}
    for job in jobs:
        for scenario, result in _result(client, job):
            results[f"{name}: {scenario}"] = result
    return results


def write(results: dict[str, Result]) -> str:
    """The file's text."""
    lines = [
        f"# Written by python -m walsh.ic.canister.bench; module {read_record()['sha256']},",
        f"# cost table {default_costs().version}. Instructions are exact: the gate has no tolerance.",
        "benches:",
    ]
    for name in sorted(results):
        lines += [f'  "{name}":', "    total:"]
        lines += [f"      {key}: {value}" for key, value in results[name].items()]
        lines.append("    scopes: {}")
    return "\n".join([*lines, "version: 0.4.1", ""])


def read(text: str) -> dict[str, Result]:
    """What :func:`write` wrote.

    Raises:
        FormatError: for any other text.
    """
    results: dict[str, Result] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('  "') and line.endswith('":'):
            name = line[3:-2]
            results[name] = {}
        elif line.startswith("      ") and name:
            key, _, value = line.strip().partition(": ")
            if not value.lstrip("-").isdigit():
                raise FormatError(f"line {number}: {line!r}: expected a count")
            results[name][key] = int(value)
    return results


def compare(expected: dict[str, Result], found: dict[str, Result]) -> list[str]:
    """What differs, as sentences; costs that fell differ as much as costs that rose."""
    problems = []
    for name in found:
        if name not in expected:
            problems.append(f"{name}: not in the file")
            continue
        for key, value in found[name].items():
            was = expected[name].get(key)
            if was != value:
                change = f" ({(value - was) / was:+.2%})" if was else ""
                problems.append(f"{name}: {key} is {value}, was {was}{change}")
    return problems


def main() -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description="Counts of the canister.")
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    parser.add_argument("--quick", action="store_true", help="only the small models")
    parser.add_argument("--file", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = [*QUICK] if given.quick else [*QUICK, *scenarios.SHAPES]
    found: dict[str, Result] = {}
    for name in names:
        print(f"measuring {name}", file=sys.stderr)
        found |= measure(name)
    if not given.check:
        given.file.write_text(write(found), encoding="ascii")
        print(f"wrote {len(found)} benchmarks")
        return 0
    problems = compare(read(given.file.read_text(encoding="ascii")), found)
    print("\n".join(problems) or f"{len(found)} benchmarks as committed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
