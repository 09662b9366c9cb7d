"""Golden vectors from the references: generated, committed, regenerated and compared.

One module per op; each offers ``groups()``, the files of its room. `build` turns inputs into cases, `numbers` makes the
inputs, `bounds` and `propagation` say how far a sound backend may be off, `grids` proves that an exact vector is exact.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from walsh.errors import VectorError
from walsh.suite import tensors, vectors
from walsh.suite.catalog import OPS
from walsh.suite.generate.build import Group

__all__ = ["Summary", "generate", "groups"]


@dataclass(frozen=True)
class Summary:
    """What was generated: number of files and bytes, and the cases in all, per op, and per op and lane."""

    files: int
    size: int
    total: int
    ops: dict[str, int]
    lanes: dict[str, int]


SPLIT = ("cayley_dickson", "hadamard", "embedding")
"""Ops whose gradients have a module of their own."""


def groups(op: str) -> Iterator[Group]:
    """The groups of one op."""
    for name in (op, f"{op}_gradients") if op in SPLIT else (op,):
        yield from importlib.import_module(f"walsh.suite.generate.{name}").groups()


def generate(root: Path, check: bool = False, lower_floors: bool = False) -> Summary:
    """Write all vectors and the manifest, or compare them with those that stand there.

    Args:
        root: the data folder; ``root/vectors`` is replaced as a whole.
        check: write nothing; generate into a temporary folder and compare.
        lower_floors: allow fewer cases than the manifest asks for, because some were removed on purpose.

    Returns:
        what was generated.

    Raises:
        VectorError: a case is not what its lane promises; with ``check``, the first file that differs.
    """
    with tempfile.TemporaryDirectory(dir=None if check else root) as name:
        fresh = Path(name)
        for op in OPS:
            for group in groups(op):
                group.write(fresh)
        if not check and (root / "manifest.json").exists():
            shutil.copy(root / "manifest.json", fresh)
        vectors.write_manifest(fresh, lower_floors)
        summary = _summarise(fresh)
        if check:
            _compare(root, fresh)
        else:
            _replace(root, fresh)
    return summary


def _summarise(root: Path) -> Summary:
    manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    sizes = [path.stat().st_size for path in (root / "vectors").rglob("*") if path.is_file()]
    floors = manifest["floors"]
    return Summary(len(sizes), sum(sizes), floors["total"], floors["ops"], floors["lanes"])


def _replace(root: Path, fresh: Path) -> None:
    """Move the new vectors in by renaming, so that a crash leaves the old ones or the new ones."""
    old = fresh / "old"
    if (root / "vectors").exists():
        (root / "vectors").rename(old)
    (fresh / "vectors").rename(root / "vectors")
    (fresh / "manifest.json").replace(root / "manifest.json")


def _compare(root: Path, fresh: Path) -> None:
    """Byte for byte; float64 values under the rules bound and ulp up to the last bits that differ between machines.

    NumPy's exp, log, sin, cos and matrix products are not the same to the last bit on every processor. A file that
    differs is therefore looked at once more, and everything but those values must still be equal.
    """
    names = {path.relative_to(fresh).as_posix() for path in (fresh / "vectors").rglob("*") if path.is_file()}
    standing = {path.relative_to(root).as_posix() for path in (root / "vectors").rglob("*") if path.is_file()}
    for name in sorted(names ^ standing):
        raise VectorError(f"{name}: {'not committed' if name in names else 'not generated any more'}; generate again")
    exact = True
    for name in sorted(names):
        ours, theirs = (fresh / name).read_bytes(), (root / name).read_bytes()
        if ours != theirs:
            exact = False
            if not _equivalent(root / name, fresh / name):
                raise VectorError(f"{name}: differs from what is generated; generate again, or undo the edit")
    if exact and (fresh / "manifest.json").read_bytes() != (root / "manifest.json").read_bytes():
        raise VectorError("manifest.json: differs from what is generated; generate again, or undo the edit")


CLOSE = 2.0**-40
"""Relative distance of float64 values that counts as the same value computed on another machine."""


def _equivalent(standing: Path, fresh: Path) -> bool:
    if standing.suffix == ".json":
        return _alike(json.loads(standing.read_bytes()), json.loads(fresh.read_bytes()), False)
    ours, theirs = tensors.read_tensors(fresh), tensors.read_tensors(standing)
    return ours.keys() == theirs.keys() and all(_close(ours[key], theirs[key]) for key in ours)


def _close(a: tensors.Array, b: tensors.Array, tolerance: float = CLOSE) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype != np.float64 or not np.isfinite(a).all():
        return a.tobytes() == b.tobytes()
    return bool((np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(a).max(initial=0.0))).all())


def _alike(a: Any, b: Any, free: bool) -> bool:
    """Equality of documents; inside a result under rule bound or ulp (``free``) float64 bits need only be close."""
    if isinstance(a, dict) and isinstance(b, dict):
        free = free or a.get("compare", {}).get("rule") in ("bound", "ulp")
        if a.keys() != b.keys():
            return False
        if free and a.get("dtype") == "float64" and "bits" in a:
            plain = ("dtype", "shape", "bits")
            # A magnitude is rounded to 20 bits, so one of its last bits may be a step of 2^-20.
            ours, theirs = (tensors.decode({key: spec[key] for key in plain}, Path()) for spec in (a, b))
            return _close(ours, theirs, CLOSE if "compare" in a else 2.0**-18) and all(
                _alike(a[key], b[key], free) for key in a if key not in plain
            )
        return all(_alike(a[key], b[key], free) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(x, y, free) for x, y in zip(a, b, strict=True))
    return bool(a == b)
