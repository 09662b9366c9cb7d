"""Finding what is measured: one file per op and per end-to-end job, each with ``cases(setting)``.

    def cases(setting: Setting) -> Iterable[Case | Absent]

The files stand in ``bench/`` of the checkout; another folder with files of these names can be given. Every op of the
checkout also gets a small case from its conformance vectors (``vector_cases.py``).
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from walsh.errors import ParameterError
from walsh.measure.case import Absent, Case, Setting
from walsh.measure.vector_cases import vector_case
from walsh.suite.catalog import OPS

JOBS = ("train_step", "prefill", "decode", "load", "compress", "canister")
"""End-to-end jobs, beside the ops."""


def locate_cases(folder: Path | None = None) -> Path:
    """The folder of case files.

    Raises:
        ParameterError: if there is none: an installed wheel has no ``bench/``.
    """
    found = folder or Path(__file__).resolve().parents[2] / "bench"
    if not any((found / f"{name}.py").is_file() for name in (*OPS, *JOBS)):
        raise ParameterError(f"no case files in {str(found)!r}: run in a checkout, or give a folder with --cases")
    return found


def find_cases(
    folder: Path, setting: Setting, rooms: Iterable[str] = (), globs: Iterable[str] = ()
) -> Iterator[Case | Absent]:
    """The cases of a folder, in the order of SPEC.md, each when it is made: models among their inputs take seconds.

    Args:
        folder: of case files.
        setting: device and size of the run.
        rooms: ops and jobs; none means all.
        globs: patterns of case names; none means all.

    Raises:
        ParameterError: for an unknown op.
    """
    rooms, globs = tuple(rooms), tuple(globs)
    unknown = set(rooms) - {*OPS, *JOBS}
    if unknown:
        raise ParameterError(f"{sorted(unknown)} are neither ops nor jobs; known: {', '.join((*OPS, *JOBS))}")
    for name in rooms or (*OPS, *JOBS):
        path = folder / f"{name}.py"
        if not path.is_file():
            yield Absent(name, "all", f"{folder.name}/{name}.py does not exist")
            continue
        small = [vector_case(setting, name)] if folder == locate_cases() and name in OPS else []
        for entry in itertools.chain(_import(path).cases(setting), filter(None, small)):
            named = entry.name if isinstance(entry, Case) else entry.case
            if not globs or any(fnmatchcase(named, glob) for glob in globs):
                yield entry


def load_cases(
    folder: Path, setting: Setting, rooms: Iterable[str] = (), globs: Iterable[str] = ()
) -> tuple[list[Case], list[Absent]]:
    """What :func:`find_cases` finds, apart: what can be run, and what is absent.

    Raises:
        ParameterError: for an unknown op, a case name that occurs twice, or if nothing is left.
    """
    found = list(find_cases(folder, setting, rooms, globs))
    cases = [entry for entry in found if isinstance(entry, Case)]
    absent = [entry for entry in found if isinstance(entry, Absent)]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"cases {twice} occur twice: expected unique names")
    if not cases and not absent:
        raise ParameterError("no case fits; `walsh bench --list` shows them")
    return cases, absent


def _import(path: Path) -> Any:
    name = f"walsh_bench_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
