"""Counts as gates: exact values beside committed ones, failing in both directions.

A count has no noise, so any difference is a change of the code: one that grew is a regression, one that shrank is a
gain that the committed value must follow, or the next regression hides in it.

    walsh bench counts              compares with bench/counts.json
    walsh bench counts --accept     commits what was found

Counted: framework calls that compute (views are free), new storages, the bytes of them and the most that was alive at
once, in one call of a provider; launches of Triton kernels (``launches.py``); bytes of models; whatever a provider
counts itself, such as Internet Computer instructions. Values that depend on the version of PyTorch stand in a section
that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from walsh.errors import FormatError
from walsh.kernels._operation import IMPLEMENTATIONS
from walsh.measure.case import Case, Provider
from walsh.suite.schema import dump_canonical, load_canonical

ACCEPT = "walsh bench counts --accept"
"""The one line that commits new values."""


class CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """Counts calls and storages of everything that runs inside; the storages of ``inputs`` are not new.

    Each storage is held weakly until the end: that keeps its address from being given to another one, without which
    counts would depend on where memory happens to be free.
    """

    def __init__(self, inputs: Iterable[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.calls = self.allocations = self.allocated = self.peak = 0
        self._seen: dict[int, Any] = {}
        self._alive: dict[int, int] = {}
        self._remember(list(inputs))

    def _remember(self, values: Any) -> list[tuple[int, int]]:
        """Key and bytes of the storages among ``values`` that were not seen before."""
        new = []
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                reference: Any = StorageWeakRef(leaf.untyped_storage())  # type: ignore[no-untyped-call]  # likewise
                if reference.cdata not in self._seen:
                    self._seen[reference.cdata] = reference
                    new.append((reference.cdata, leaf.untyped_storage().nbytes()))
        return new

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one framework call and see what it made; an operation of ours counts as what runs inside it."""
        self._remember((args, kwargs))
        self._alive = {key: size for key, size in self._alive.items() if not self._seen[key].expired()}
        inside = IMPLEMENTATIONS.get(func)
        if inside is not None:
            with self:
                return inside(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        # A view computes nothing: its result shares the storage of an argument, and the operator says so.
        if not func.is_view:
            self.calls += 1
        for key, size in self._remember(result):
            self.allocations += 1
            self.allocated += size
            self._alive[key] = size
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def count_call(case: Case, provider: Provider) -> dict[str, int]:
    """The counts of one call: ``calls``, ``allocations``, ``allocated_bytes``, ``peak_bytes``, and its own."""
    found = dict(provider.counts)
    if provider.exact_counts:
        inputs = case.fresh(0)
        provider.run(inputs)  # once without counting: tables that are made at the first call are kept
        with CountingMode(inputs.values()) as mode:
            provider.run(inputs)
        found |= {
            "calls": mode.calls,
            "allocations": mode.allocations,
            "allocated_bytes": mode.allocated,
            "peak_bytes": mode.peak,
        }
    return found


def section_of(provider: Provider) -> str:
    """Where a provider's counts are committed: what they depend on besides our code."""
    if not provider.exact_counts:
        return "any"
    version = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    return f"torch {version}, {'int8 dot' if _int8_dot() else 'no int8 dot'}"


def _int8_dot() -> bool:
    from walsh.kernels.torch.integer import native_limit  # here, because counting models needs no kernels

    return native_limit(torch.device("cpu")) == 128


@dataclass(frozen=True)
class Count:
    """One exact value and its committed counterpart (None: there is none)."""

    section: str
    name: str
    value: int
    committed: int | None

    @property
    def problem(self) -> str:
        """Why this fails, or empty."""
        if self.committed is None or self.value == self.committed:
            return ""
        direction = "grew" if self.value > self.committed else "shrank"
        return f"{self.name} {direction}: {self.value:,}, committed {self.committed:,} [{self.section}]"


Committed = dict[str, dict[str, int]]


def load_committed(path: Path) -> Committed:
    """The committed values by section and name; none if there is no file.

    Raises:
        FormatError: if the file is not canonical JSON of whole numbers.
    """
    if not path.exists():
        return {}
    document = load_canonical(path.read_bytes(), path.name)
    for section, values in document.items():
        for name, value in values.items():
            if type(value) is not int:
                raise FormatError(f"{path.name}: {section}/{name} is {value!r}, expected a whole number")
    return dict(document)


def compare_counts(found: Mapping[str, Mapping[str, int]], committed: Committed) -> list[Count]:
    """Every value that was found, beside the committed one of its section and name."""
    return [
        Count(section, name, value, committed.get(section, {}).get(name))
        for section, values in sorted(found.items())
        for name, value in sorted(values.items())
    ]


def problems_of(counts: Iterable[Count], committed: Committed, complete: bool) -> list[str]:
    """What fails, each with the remedy.

    Args:
        counts: that were found.
        committed: all committed values.
        complete: every count was taken, so that a committed one which is not there has vanished, and one that is not
            committed is new. Sections without committed values (another PyTorch) are no failure.
    """
    counts = list(counts)
    problems = [count.problem for count in counts if count.problem]
    if complete:
        names = {(count.section, count.name) for count in counts}
        sections = {count.section for count in counts}
        problems += [
            f"{count.name} is new: {count.value:,} [{count.section}]"
            for count in counts
            if count.committed is None and count.section in committed
        ]
        problems += [
            f"{name} vanished: committed {value:,} [{section}]"
            for section, values in committed.items()
            if section in sections
            for name, value in values.items()
            if (section, name) not in names
        ]
    return [f"{problem}; if that is meant: {ACCEPT}" for problem in problems]


def accept(path: Path, found: Mapping[str, Mapping[str, int]]) -> None:
    """Commit what was found; sections that were not counted here stay as they are."""
    merged: Committed = load_committed(path) | {section: dict(values) for section, values in found.items()}
    path.write_bytes(dump_canonical(merged))
