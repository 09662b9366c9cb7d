# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Measure block sizes on this machine's GPU and store the best in ``configs.json`` under the device's name.

    python -m walsh.kernels.triton.tune --rows 2048 --features 512 --algebra octonion --dtype bfloat16 [--op log_sum]

What is tuned are the choices that a model of this width makes in training and in decoding one token: its calls are
recorded without being run, and every shape that they ask the table for is measured with
:func:`walsh.kernels.triton._workloads.workload`. The candidates are pruned by shape and registers, timed once, and the
best quarter of them again, longer. The rule's own choice stays unless another is faster by more than the noise, and
then there is no entry: a table of what was learned. Nothing is written without a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from walsh.algebra import DIMENSIONS
from walsh.errors import BackendError
from walsh.kernels.triton import _config, _launch
from walsh.kernels.triton._config import Entry, Shape
from walsh.kernels.triton._workloads import OPS, candidates, workload

Option = TypeVar("Option")

Timer = Callable[[Callable[[], object], int], float]
"""Median time of a call, from a budget in milliseconds."""

MARGIN = 0.03
"""How much faster than the rule's choice another must be: below that it is noise."""

SHORT, LONG = 10, 100
"""Milliseconds for every candidate, and for those that were best."""


def search(rule: Option, options: Iterable[Option], seconds: Callable[[Option, int], float]) -> Option:
    """The fastest option, or ``rule`` if none is faster than it by :data:`MARGIN`.

    Args:
        rule: what is chosen without measuring; timed like the others.
        options: the candidates, with or without ``rule``.
        seconds: time of an option from a budget; raises for one that does not compile or does not fit the device.
    """

    def time(those: Iterable[int], budget: int) -> list[tuple[float, int]]:
        found = []
        for place in those:
            try:
                found.append((seconds(every[place], budget), place))
            except Exception as error:  # whatever a compiler or a driver raises, the next candidate may work
                print(f"  {every[place]}: {type(error).__name__}")
        return sorted(found)

    every = [rule, *(option for option in options if option != rule)]
    first = time(range(len(every)), SHORT)
    best = {place for _, place in first[: max(4, len(first) // 4)]}
    second = time(sorted(best | {0}), LONG)
    times = {place: value for value, place in second}
    if not second or (0 in times and second[0][0] >= times[0] * (1 - MARGIN)):
        return rule
    return every[second[0][1]]


def wanted(rows: int, features: int, algebra: str, dtype: torch.dtype) -> list[Shape]:
    """The shapes that a model of this width asks the table for, in training on ``rows`` tokens and in decoding."""
    from walsh.kernels.triton import _cases

    with _launch.record_launches(), _config.asked() as shapes:
        for _, call in _cases.model_cases(rows, features, algebra, dtype):
            call()
    return list(shapes)


def tune_shape(shape: Shape, device: torch.device, timer: Timer) -> Entry | None:
    """The entry of one shape, or None where the rule's choice is not beaten.

    Args:
        shape: what is tuned.
        device: where the workload runs.
        timer: measures a call; another one in tests.
    """
    call = workload(shape, device)
    with _config.given({}), _config.asked() as shapes:
        call()
    rule = shapes[shape]

    def seconds(choice: Any, budget: int) -> float:
        with _config.given({shape.key: entry_of(choice)}):
            return timer(call, budget)

    choice = search(rule, candidates(shape, rule), seconds)
    return None if choice == rule else entry_of(choice)


def entry_of(choice: Any) -> Entry:
    """The numbers of a choice, as the table holds them; flags follow from the shape."""
    return {name: value for name, value in asdict(choice).items() if type(value) is int}


def gpu_timer(call: Callable[[], object], budget: int) -> float:
    """Median time in milliseconds on the GPU."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=max(1, budget // 4), rep=budget, return_mode="median"))


def target_name(device: torch.device) -> str:
    """The name of the compiler's target for this device, such as ``sm_90`` or ``gfx942``."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def store(path: Path, device: str, target: str, entries: Mapping[str, Entry], dropped: Iterable[str] = ()) -> None:
    """Write entries into the table under this device, and take out those that no longer beat the rule."""
    document = json.loads(path.read_text())
    document["note"] = "Measured by walsh.kernels.triton.tune, by device and shape; other shapes go by rule."
    record = document["devices"].setdefault(device, {"configs": {}})
    record["target"] = target
    record["configs"].update({key: dict(entry) for key, entry in entries.items()})
    for key in dropped:
        record["configs"].pop(key, None)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    _config.table.cache_clear()


def tune(shapes: Iterable[Shape], device: torch.device, timer: Timer) -> Iterator[tuple[Shape, Entry | None]]:
    """Each shape with its entry, or with None where the rule stays."""
    for shape in shapes:
        entry = tune_shape(shape, device, timer)
        print(f"{shape.key}: {entry or 'by rule'}", flush=True)
        yield shape, entry


def tune_here(shapes: Iterable[Shape]) -> int:
    """Tune shapes on this machine's GPU and store what was found.

    Returns:
        The number of entries that the table now has for them.

    Raises:
        BackendError: there is no GPU, or kernels are interpreted.
    """
    if not torch.cuda.is_available() or _launch.INTERPRET:
        raise BackendError("there is no GPU here, or TRITON_INTERPRET is set: tiles are measured on real hardware only")
    device = torch.device("cuda")
    count = 0
    for shape, entry in tune(shapes, device, gpu_timer):
        # Stored one by one: a run that is cut off keeps what it measured.
        entries, dropped = ({shape.key: entry}, ()) if entry else ({}, (shape.key,))
        store(_config.PATH, torch.cuda.get_device_name(device), target_name(device), entries, dropped)
        count += bool(entry)
    return count


def main() -> int:
    """Tune the shapes of one model on this machine's GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2048, help="tokens M of a training step")
    parser.add_argument("--features", type=int, default=512, help="width of the model, all components together")
    parser.add_argument("--algebra", choices=[*sorted(DIMENSIONS), "hadamard"], default="octonion")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--op", action="append", choices=OPS, help="only this op; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the shapes; needs no GPU")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    shapes = wanted(arguments.rows, arguments.features, arguments.algebra, dtype)
    shapes = [shape for shape in shapes if shape.op in (arguments.op or OPS)]
    if arguments.list:
        for shape in shapes:
            print(shape.key)
        return 0
    print(f"{tune_here(shapes)} of {len(shapes)} shapes have an entry now; commit {_config.PATH.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
