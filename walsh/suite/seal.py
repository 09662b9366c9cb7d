"""While a backend runs: expected values under seal, a clock and a judge that cannot be exchanged, no borrowed answers.

A backend in this process could walk the stack to the runner's case, collect its garbage, read the vector files, patch
``time.perf_counter`` or the comparer, or call another implementation. Between ``sealed`` and its end

- :func:`require_unsealed`, which guards every expected value, refuses and remembers;
- an audit hook remembers files of the suite that are opened, and walks through the interpreter's objects;
- the definitions (for third parties all kernels of walsh) are replaced, in the function objects themselves, by code
  that refuses and remembers;
- afterwards the clock and the functions of the judge are compared with what they were.

This stops the cheats that people write, in earnest or by accident. It is no prison: whoever means to attack a judge
that shares their process will win, and is to be run as ``cmd:`` instead, where nothing of this is in reach.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

from walsh.errors import BackendError
from walsh.suite.catalog import CALLS

REFERENCE = "walsh.reference"
KERNELS = "walsh.kernels"

SHARED: frozenset[str] = frozenset({"hash_indices", "export"})
"""Functions of the definitions that walsh's own backends may call: integers and rounding done once, on the host."""

CLOCK: tuple[str, ...] = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "time")
_CLOCK = {name: getattr(time, name) for name in CLOCK}

perf_counter = time.perf_counter
"""The clock that the runner uses, bound before any backend is imported."""

_JUDGES = ("runner", "comparer", "guard", "seal", "vectors", "tensors", "policy", "deviations")

_SEARCHES = ("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames")


class _Seal:
    """The state; one per process, because functions and audit hooks are."""

    def __init__(self) -> None:
        self.closed = False
        self.violations: list[str] = []
        self.folder = ""
        self.third_party = False
        self.hooked = False
        self.protected: dict[str, list[tuple[FunctionType, CodeType]]] = {}

    def note(self, what: str) -> None:
        """Remember a violation once."""
        if what not in self.violations:
            self.violations.append(what)


_seal = _Seal()


class Sealed(BackendError):  # noqa: N818  # names the state that was met
    """Asked for, while a backend was running, what it must not see."""


def require_unsealed(what: str) -> None:
    """Refuse while a backend runs.

    Raises:
        Sealed: and the case fails, whether the backend catches this or not.
    """
    if _seal.closed:
        _seal.note(f"asked for {what}")
        raise Sealed(f"{what} is not available while a backend runs")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _seal.closed:
        return
    if event == "open":
        path = arguments[0]
        if isinstance(path, bytes):
            path = path.decode("utf-8", "replace")
        if isinstance(path, str) and _is_inside(path, _seal.folder):
            _seal.note(f"opened {Path(path).name}, a file of the suite,")
    elif event in _SEARCHES:
        _seal.note(f"looked through the interpreter's objects ({event})")
    elif event == "import" and _seal.third_party:
        name = str(arguments[0])
        if name.startswith((REFERENCE, KERNELS)):
            _seal.note(f"imported {name}")


def _is_inside(path: str, folder: str) -> bool:
    return bool(folder) and str(Path(path).absolute()).startswith(folder)


def _refusal(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  # its code replaces that of functions with any arguments
    from walsh.suite.seal import borrowed

    return borrowed()


def borrowed() -> Any:
    """What a protected function does while it is protected.

    Raises:
        Sealed: always.
    """
    frame = sys._getframe(1)
    _seal.note(f"called {frame.f_globals['__name__']}, another implementation,")
    raise Sealed("another implementation's answer is not this backend's")


def _functions(home: str) -> Iterator[FunctionType]:
    """Functions and methods of the imported definitions and kernels but those of ``home``.

    What a decorator wraps is looked for under it: every caller ends there, by whatever name it was imported.
    """
    for name, module in list(sys.modules.items()):
        if module is None or not name.startswith((REFERENCE, KERNELS)) or (home and name.startswith(home)):
            continue
        for value in list(vars(module).values()):
            for member in list(vars(value).values()) if isinstance(value, type) else [value]:
                inner: Any = getattr(member, "__func__", member)
                while hasattr(inner, "__wrapped__"):
                    inner = inner.__wrapped__
                if isinstance(inner, FunctionType) and inner.__module__ == name and not inner.__closure__:
                    yield inner


def _protect(home: str) -> list[tuple[FunctionType, CodeType]]:
    """Pairs of a function and its code, for all that compute an answer of the catalogue."""
    if home == "walsh":
        return []
    key = f"{home} {len(sys.modules)}"
    if key not in _seal.protected:
        answers = {call.function for call in CALLS.values()} | {"attend", "butterflies", "product", "across"}
        allowed = SHARED if home else frozenset()
        found = {}
        for function in _functions(home):
            name = function.__name__.removesuffix("_backward")
            if name in answers and name not in allowed:
                found[id(function)] = (function, function.__code__)
        # The adapter of the definitions is the definitions.
        _seal.protected[key] = [] if home == REFERENCE else list(found.values())
    return _seal.protected[key]


def home_of(backend: Any) -> str:
    """The package whose functions a backend is made of: its own, so that calling them is no cheat.

    Returns:
        ``walsh.reference``, ``walsh.kernels.torch`` and so on for walsh's adapters; ``walsh`` for a function of walsh
        that is run by itself; empty for third parties.
    """
    module = type(backend).__module__
    function = getattr(backend, "_function", None)
    if module == "walsh.suite.backends.function" and function is not None:
        return "walsh" if str(getattr(function, "__module__", "")).startswith("walsh.") else ""
    if module == "walsh.suite.backends.reference":
        return REFERENCE
    return f"{KERNELS}.{module.rpartition('.')[2]}" if module.startswith("walsh.suite.backends.") else ""


@contextmanager
def sealed(backend: Any, folder: Path) -> Iterator[list[str]]:
    """Close the seal while a backend runs.

    Args:
        backend: about to run.
        folder: the suite's vectors, which nobody may open meanwhile.

    Yields:
        the list of violations, complete once the seal is open again: clauses such as ``asked for the expected value``.
    """
    if not _seal.hooked:
        sys.addaudithook(_audit)
        _seal.hooked = True
    home = home_of(backend)
    pairs = _protect(home)
    judges = _judges()
    violations: list[str] = []
    _seal.violations = violations
    _seal.folder, _seal.third_party, _seal.closed = str(folder.absolute()), not home, True
    for function, _ in pairs:
        function.__code__ = _refusal.__code__
    leave, judge = os._exit, os.getpid()

    def stay(status: int) -> NoReturn:
        if os.getpid() == judge:
            raise SystemExit(f"os._exit({status})")  # or the run would end as if all were well, with code 0
        leave(status)

    os._exit = stay
    try:
        yield violations
    finally:
        if os.getpid() != judge:
            leave(0)  # a child that the backend forked: were it to go on, there would be two verdicts
        os._exit = leave
        for function, code in pairs:
            function.__code__ = code
        _seal.closed = False
        violations += _exchanged(judges)


def _judge_modules() -> Iterator[ModuleType]:
    for name in _JUDGES:
        module = sys.modules.get(f"walsh.suite.{name}")
        if module is not None:
            yield module


def _judges() -> list[tuple[ModuleType, str, Any, CodeType | None]]:
    """Every function and class of the judge with its code."""
    return [
        (module, name, value, getattr(value, "__code__", None))
        for module in _judge_modules()
        for name, value in list(vars(module).items())
        if callable(value)
    ]


def _exchanged(judges: list[tuple[ModuleType, str, Any, CodeType | None]]) -> list[str]:
    """What was replaced; it is put back, so that the next case is judged by the right one."""
    found = []
    for name, function in _CLOCK.items():
        if getattr(time, name) is not function:
            setattr(time, name, function)
            found.append(f"replaced time.{name}")
    for module, name, value, code in judges:
        if vars(module).get(name) is not value:
            setattr(module, name, value)
            found.append(f"replaced {module.__name__}.{name}")
        elif code is not None and getattr(value, "__code__", None) is not code:
            value.__code__ = code  # type: ignore[union-attr]  # it had one, and it is still the same object
            found.append(f"replaced the code of {value.__module__}.{name}")
    return found
