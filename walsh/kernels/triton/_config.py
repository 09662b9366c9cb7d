"""Block sizes of every kernel that has a choice: measured ones from ``configs.json``, or the kernel's own rule.

``{"devices": {device name: {"target": "sm_90", "configs": {key: {field: number}}}}}``, written by
:mod:`walsh.kernels.triton.tune` on the machine that it names. A key holds op, M, N, K, D and dtype, every size rounded
up to a power of two, since batches and widths vary more than the best tile does. What each op means by its sizes is
said in :mod:`walsh.kernels.triton._workloads`.

A kernel states its rule's choice as a frozen dataclass of numbers and calls :func:`configured`, which returns it with
the fields that the table knows better. No entry for this device or shape: the rule's choice, unchanged.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from walsh.errors import ParameterError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PATH = Path(__file__).with_name("configs.json")

Entry = Mapping[str, int]
"""Fields of a choice by name, as the table holds them."""

Choice = TypeVar("Choice", bound="DataclassInstance")

_KEY = re.compile(r"(\w+)/M(\d+)/N(\d+)/K(\d+)/D(\d+)/(\w+)")


@dataclass(frozen=True)
class Rows:
    """Tile of a row-wise kernel: rows and columns of one program, and its warps."""

    rows: int
    block: int
    warps: int = 4


@dataclass(frozen=True)
class Tile:
    """Tile of an attention kernel: queries, keys, warps and pipeline stages."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2


def bucket(size: int) -> int:
    """The smallest power of two that is at least ``size``, and at least 1."""
    return 1 << max(0, size - 1).bit_length()


@dataclass(frozen=True)
class Shape:
    """What a choice is made for: an op with its sizes, each a power of two, and its dtype."""

    op: str
    m: int
    n: int
    k: int
    d: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """The name of this shape in the table."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op}/M{self.m}/N{self.n}/K{self.k}/D{self.d}/{dtype}"

    @staticmethod
    def parse(key: str) -> Shape:
        """The shape of this name.

        Raises:
            ParameterError: the name is not one that :attr:`key` gives.
        """
        match = _KEY.fullmatch(key)
        dtype = getattr(torch, match[6], None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            raise ParameterError(f"configuration key {key!r}: expected OP/M#/N#/K#/D#/DTYPE; run the tuner again")
        m, n, k, d = (int(match[place]) for place in range(2, 6))
        return Shape(match[1], m, n, k, d, dtype)


def shape_of(op: str, sizes: tuple[int, int, int], d: int, dtype: torch.dtype) -> Shape:
    """The shape of an op with these M, N, K, rounded up to powers of two."""
    m, n, k = map(bucket, sizes)
    return Shape(op, m, n, k, d, dtype)


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, Any]]:
    """What was measured, by device name: ``target`` and ``configs``."""
    devices: dict[str, dict[str, Any]] = json.loads(PATH.read_text())["devices"]
    return devices


@dataclass
class _State:
    """What the context managers below have set."""

    given: list[Mapping[str, Entry]] = field(default_factory=list)
    asked: list[dict[Shape, Any]] = field(default_factory=list)


_STATE = _State()


@contextlib.contextmanager
def given(entries: Mapping[str, Entry]) -> Iterator[None]:
    """Inside the ``with`` block these entries, by key, are the table, whatever the device."""
    _STATE.given.append(entries)
    try:
        yield
    finally:
        _STATE.given.pop()


@contextlib.contextmanager
def asked() -> Iterator[dict[Shape, Any]]:
    """Collect the shapes that a choice is made for inside the ``with`` block, each with its rule's choice."""
    shapes: dict[Shape, Any] = {}
    _STATE.asked.append(shapes)
    try:
        yield shapes
    finally:
        _STATE.asked.remove(shapes)


def _entries(device: torch.device) -> Mapping[str, Entry]:
    if _STATE.given:
        return _STATE.given[-1]
    if device.type != "cuda" or not table():
        return {}
    configs: Mapping[str, Entry] = table().get(torch.cuda.get_device_name(device), {}).get("configs", {})
    return configs


def configured(shape: Shape, device: torch.device, rule: Choice) -> Choice:
    """The choice measured on this device for this shape, or else the rule's.

    Raises:
        ParameterError: the table has a field that the choice does not have.
    """
    for shapes in _STATE.asked:
        shapes.setdefault(shape, rule)
    entries = _entries(device)
    entry = entries.get(shape.key) if entries else None
    if entry is None:
        return rule
    known = {member.name for member in fields(rule)}
    if unknown := sorted(set(entry) - known):
        raise ParameterError(f"configuration {shape.key} has {unknown}: expected {sorted(known)}; run the tuner again")
    return replace(rule, **entry)
