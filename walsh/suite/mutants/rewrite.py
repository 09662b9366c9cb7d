"""Change the source of modules while they are imported.

A finder in front of all others answers for the modules that a mutant changes: it reads their file, applies the edits
and compiles the result under the file's own name. ``linecache`` is told as well, because Triton compiles its kernels
from the source that ``inspect`` finds there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
from collections.abc import Mapping, Sequence
from types import CodeType, ModuleType

from walsh.errors import VectorError
from walsh.suite.mutants import Edit, Mutant, apply_edits, source_path


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module from changed source; never from or into a bytecode cache."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """The compiled, changed source."""
        code = compile(self._source, self.get_filename(fullname), "exec", dont_inherit=True)
        linecache.cache[self.path] = (len(self._source), None, self._source.splitlines(keepends=True), self.path)
        return code

    def get_source(self, fullname: str) -> str:
        """The changed source."""
        del fullname
        return self._source


class Rewriter(importlib.abc.MetaPathFinder):
    """Finds the modules of a mutant.

    Args:
        sources: changed source by module name.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = dict(sources)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec whose loader knows the changed source; None for other modules."""
        del path, target
        if fullname not in self._sources:
            return None
        file = source_path(fullname)
        loader = _Loader(fullname, str(file), self._sources[fullname])
        places = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, str(file), loader=loader, submodule_search_locations=places
        )


def changed_sources(mutant: Mutant) -> dict[str, str]:
    """Changed source by module name.

    Raises:
        VectorError: if an edit does not fit.
    """
    modules: dict[str, list[Edit]] = {}
    for edit in mutant.edits:
        modules.setdefault(edit.module, []).append(edit)
    return {
        module: apply_edits(source_path(module).read_text("utf-8"), edits, mutant.id)
        for module, edits in modules.items()
    }


def install(mutant: Mutant) -> None:
    """From now on this process imports the mutant.

    Raises:
        VectorError: if an edit does not fit, or a module has been imported already.
    """
    sources = changed_sources(mutant)
    for module in sources:
        if module in sys.modules:
            raise VectorError(f"{mutant.id}: {module} is imported already; a mutant needs a fresh process")
    sys.meta_path.insert(0, Rewriter(sources))
