"""Checkpoints: a folder of safetensors and JSON that appears whole or not at all.

    model.safetensors       weights under the names of SPEC.md
    optimizer.safetensors   Adam's moments, ``exp_avg.NAME`` and ``exp_avg_sq.NAME``, and random states
    checkpoint.json         format version, configurations, tokenizer, step, best loss, scaler, sha256 of both files

Nothing is unpickled. A new checkpoint is written beside the old one, which is removed only when the new one is whole.
Folders cannot be exchanged in one step, so a process that dies between two renames leaves the old one under another
name, where it is still found (:func:`present`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from walsh.data.download import file_digest
from walsh.errors import DataError, FormatError

VERSION = 1
_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on, or a model to generate.

    Attributes:
        weights: by the names of SPEC.md.
        optimizer: tensors by name; empty in a checkpoint for inference.
        model: the model's configuration.
        tokenizer: its record.
        state: everything else, as JSON: step, training configuration, best loss, scaler, counters.
    """

    weights: Mapping[str, Tensor]
    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; an interruption leaves the previous one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (there := present(folder)) != folder:
        there.rename(folder)
    for ending in ("partial", "old"):  # of processes that were killed: a run has one writer
        for left in folder.parent.glob(f".{folder.name}.*.{ending}"):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    for name, tensors in zip(_FILES, (checkpoint.weights, checkpoint.optimizer), strict=True):
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        # Tied tensors are stored once, under the name that SPEC.md gives; the model knows which are tied.
        safetensors.torch.save_file(plain, partial / name)
    record = {
        "version": VERSION,
        "model": dict(checkpoint.model),
        "tokenizer": dict(checkpoint.tokenizer),
        "state": dict(checkpoint.state),
        "sha256": {name: file_digest(partial / name) for name in _FILES},
    }
    (partial / "checkpoint.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def present(folder: Path) -> Path:
    """Where the checkpoint of this name is: there, or where a process that died while it saved had put it."""
    if folder.exists():
        return folder
    return next(folder.parent.glob(f".{folder.name}.*.old"), folder)


def load_checkpoint(folder: Path, optimizer: bool = True) -> Checkpoint:
    """Read and verify a checkpoint.

    Args:
        folder: that :func:`save_checkpoint` wrote.
        optimizer: read the optimizer's tensors too.

    Raises:
        DataError: if there is none.
        FormatError: if a file is missing, damaged or of another version.
    """
    folder = present(folder)
    path = folder / "checkpoint.json"
    if not path.is_file():
        raise DataError(f"{folder}: no checkpoint there; train one with: walsh train")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, digests = record["version"], record["sha256"]
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"{path}: not a checkpoint record") from None
    if version != VERSION:
        raise FormatError(f"{path}: version {version}; this walsh reads version {VERSION}")
    tensors: list[dict[str, Tensor]] = []
    for file_name in _FILES[: 2 if optimizer else 1]:
        file = folder / file_name
        if not file.is_file():
            raise FormatError(f"{file}: missing; the checkpoint is incomplete")
        found = file_digest(file)
        if found != digests.get(file_name):
            raise FormatError(
                f"{file}: sha256 {found[:12]}, its record says {str(digests.get(file_name))[:12]}; damaged"
            )
        try:
            tensors.append(safetensors.torch.load_file(file))
        except safetensors.SafetensorError as error:
            raise FormatError(f"{file}: {error}") from None
    return Checkpoint(
        weights=tensors[0],
        optimizer=tensors[1] if optimizer else {},
        model=record["model"],
        tokenizer=record["tokenizer"],
        state=record["state"],
    )
