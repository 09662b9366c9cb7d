"""Seeded bugs: how strong the vectors are, as a number.

A mutant is one small change of a backend's source that a reviewer could overlook. ``registry/<op>.toml`` lists them::

    [[mutant]]
    id = "rope-torch-backward"           # <op>-<backend>-<what>
    backend = "torch"                    # the backend that is run
    class = "sign"                       # the kind of mistake, one of CLASSES
    module = "walsh.kernels.torch.rope"  # whose source changes
    old = "return rotate(dy, cos, -sin)" # occurs exactly once in it
    new = "return rotate(dy, cos, sin)"
    killer = "gradient"                  # the lane that must notice
    why = "the gradient is rotated forward"

or ``edits``, a list of {module, old, new}, where a mistake has two halves. ``walsh_engine::rope`` is a module of the
engine, in Rust. A mutant is killed by vectors alone: a case of its op that fails. `rewrite` changes the source on
import, `rust` compiles a changed copy, `worker` forks a process for each, `campaign` gathers the kill matrix.
"""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from walsh.errors import ParameterError, VectorError
from walsh.suite.catalog import LANES, OPS
from walsh.suite.schema import check, load_canonical

REGISTRY = Path(__file__).parent / "registry"

RUST = "walsh_engine"
"""The crate whose modules are Rust."""

BACKENDS: tuple[str, ...] = ("reference", "torch", "triton", "rust")
"""The backends that have mutants, in the order of reports."""

CLASSES: dict[str, str] = {
    "sign": "a sign is flipped",
    "index": "the wrong element, row or component",
    "operand-order": "operands change places, or factors are gathered in another order",
    "transposition": "a matrix is transposed",
    "rounding": "another rounding, or one too many",
    "epsilon": "an epsilon of another size or in another place",
    "threshold": "a comparison that is off at its edge",
    "tail": "the last row, column, stage or chunk",
    "accumulator": "sums in too narrow a type, or in another order",
    "scale-drift": "a factor, as small as 1e-4",
    "state-leak": "something of one sequence or call reaches another",
    "stale-cache": "an old value is used again",
    "off-by-one": "one position, token or step early or late",
    "aliasing": "an output shares memory with something else",
    "clobbered-input": "an input is changed",
    "symmetric-codec": "encoder and decoder are wrong in the same way",
    "gradient-lost": "a gradient is missing or incomplete",
    "backward-table": "a wrong table in the backward",
    "missing-reduction": "a sum over too little, or over the wrong thing",
    "dtype": "a result of another dtype",
    "lost-nan": "NaN or infinity disappears, or comes from nowhere",
    "guard": "a wrong argument is let through",
}
"""Kinds of mistakes."""


@dataclass(frozen=True)
class Edit:
    """A replacement in a module's source; ``old`` occurs in it exactly once."""

    module: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """One seeded bug.

    Attributes:
        id: unique.
        op: the room whose vectors are run.
        backend: the backend that is run.
        kind: one of ``CLASSES``.
        edits: what changes.
        killer: the lane that must notice.
        why: what the mistake is.
    """

    id: str
    op: str
    backend: str
    kind: str
    edits: tuple[Edit, ...]
    killer: str
    why: str


def source_path(module: str) -> Path:
    """The file of a module, found without importing what is mutated.

    Raises:
        VectorError: if there is none.
    """
    root = Path(__file__).resolve().parents[2]
    crate, _, inner = module.partition("::")
    if crate == RUST:
        path = (root.parent / "canister" / "engine" / "src" / Path(*inner.split("::"))).with_suffix(".rs")
        if path.is_file():
            return path
        raise VectorError(f"module {module!r} has no source in canister/; mutants of the engine need a checkout")
    relative = Path(*module.split(".")[1:])
    for candidate in (root / relative.with_suffix(".py"), root / relative / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise VectorError(f"module {module!r} has no source in {root.name}/")


def apply_edits(source: str, edits: Iterable[Edit], where: str) -> str:
    """The changed source.

    Raises:
        VectorError: if an old text does not occur exactly once, or the new source is no Python.
    """
    edits = tuple(edits)
    for edit in edits:
        count = source.count(edit.old)
        if count != 1:
            raise VectorError(f"{where}: {edit.old!r} occurs {count} times in {edit.module}, expected once")
        source = source.replace(edit.old, edit.new)
    if any(edit.module.startswith(f"{RUST}::") for edit in edits):
        return source  # whether it is Rust, the compiler says
    try:
        compile(source, where, "exec")
    except SyntaxError as error:
        raise VectorError(f"{where}: the changed source is no Python: {error}") from None
    return source


def _mutant(op: str, entry: Mapping[str, Any]) -> Mutant:
    known = {"id", "backend", "class", "module", "old", "new", "edits", "killer", "why"}
    where = f"mutant {entry.get('id')!r} of {op}"
    if set(entry) - known:
        raise VectorError(f"{where}: unknown keys {sorted(set(entry) - known)}")
    try:
        parts = entry.get("edits") or [{name: entry[name] for name in ("module", "old", "new")}]
        edits = tuple(Edit(**{name: str(part[name]) for name in ("module", "old", "new")}) for part in parts)
        mutant = Mutant(entry["id"], op, entry["backend"], entry["class"], edits, entry["killer"], entry["why"])
    except KeyError as error:
        raise VectorError(f"{where}: has no {error}") from None
    if mutant.backend not in BACKENDS or mutant.kind not in CLASSES or mutant.killer not in LANES:
        raise VectorError(f"{where}: unknown backend, class or lane")
    if not mutant.id.startswith(f"{op}-{mutant.backend}-"):
        raise VectorError(f"{where}: the id must begin with {op}-{mutant.backend}-")
    return mutant


@cache
def load_registry() -> tuple[Mutant, ...]:
    """All mutants, in the order of the rooms.

    Raises:
        VectorError: if an entry is malformed or an id occurs twice.
    """
    mutants: list[Mutant] = []
    for op in OPS:
        path = REGISTRY / f"{op}.toml"
        if path.is_file():
            with path.open("rb") as file:
                mutants += [_mutant(op, entry) for entry in tomllib.load(file)["mutant"]]
    twice = [name for name, count in Counter(mutant.id for mutant in mutants).items() if count > 1]
    if twice:
        raise VectorError(f"mutant {twice[0]!r} occurs twice; ids are unique")
    return tuple(mutants)


def find_mutant(name: str) -> Mutant:
    """The mutant of this id.

    Raises:
        ParameterError: if there is none.
    """
    for mutant in load_registry():
        if mutant.id == name:
            return mutant
    raise ParameterError(f"mutant {name!r}: not in the registry; walsh mutants --list shows them")


def check_sources(mutants: Iterable[Mutant]) -> None:
    """Raise unless every edit of these mutants fits its module.

    Raises:
        VectorError: naming the first that does not.
    """
    for mutant in mutants:
        for module in dict.fromkeys(edit.module for edit in mutant.edits):
            edits = [edit for edit in mutant.edits if edit.module == module]
            apply_edits(source_path(module).read_text("utf-8"), edits, mutant.id)


def load_excused(root: Path) -> dict[str, str]:
    """Reasons by id of the mutants that may survive: ``root/mutants/excused.json``.

    Raises:
        VectorError: if the file is malformed or excuses a mutant that does not exist.
    """
    path = root / "mutants" / "excused.json"
    if not path.is_file():
        return {}
    document = load_canonical(path.read_bytes(), "mutants/excused.json")
    check("excused", document, "mutants/excused.json")
    excused = {entry["id"]: entry["reason"] for entry in document["excused"]}
    unknown = set(excused) - {mutant.id for mutant in load_registry()}
    if unknown:
        raise VectorError(f"mutants/excused.json: {sorted(unknown)[0]!r} is not in the registry; remove it")
    return excused


def available(backend: str) -> bool:
    """Whether this backend can be run here."""
    if backend == "rust":
        from walsh.suite.mutants.rust import can_build

        return can_build()
    needs = {"reference": "numpy", "torch": "torch", "triton": "triton"}.get(backend)
    return needs is not None and importlib.util.find_spec(needs) is not None


def to_json(document: Any) -> str:
    """A report as JSON, one space of indentation."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
