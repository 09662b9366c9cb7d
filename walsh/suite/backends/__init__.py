"""Backends that vectors can be run against, by name.

A name is one of ``BUILTIN``, one that a package registered under the entry point group ``walsh.backends``, a class as
``pkg.mod:Class``, or ``cmd:COMMAND ...``, a program that speaks the process protocol. A class is called with
``device=...`` if a device was asked for, else without arguments. To add one of our own: one file, one line here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from walsh.errors import BackendError
from walsh.suite.backend import Backend

BUILTIN: dict[str, str] = {
    "canister": "walsh.suite.backends.canister:CanisterBackend",
    "reference": "walsh.suite.backends.reference:ReferenceBackend",
    "torch": "walsh.suite.backends.torch:TorchBackend",
    "triton": "walsh.suite.backends.triton:TritonBackend",
    "wasm": "walsh.suite.backends.wasm:WasmBackend",
}
"""walsh's own backends."""

GROUP = "walsh.backends"
"""The entry point group of third parties."""


def load_backend(name: str, device: str | None = None, timeout: float = 60.0) -> Backend:
    """Make a backend.

    Args:
        name: see the module.
        device: such as ``cuda``; the backend's default if None.
        timeout: seconds that a process backend may take for one case.

    Raises:
        BackendError: if there is none of this name, it cannot be imported, or cannot run here.
    """
    if name.startswith("cmd:"):
        from walsh.suite.backends.process import ProcessBackend

        if device is not None:
            raise BackendError(f"device {device!r}: a command chooses its device itself; put it into the command")
        return ProcessBackend(name.removeprefix("cmd:"), timeout)
    make = load_object(_find_target(name), "backend")
    try:
        backend: Backend = make() if device is None else make(device=device)
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"backend {name!r} cannot be made: {type(error).__name__}: {error}") from error
    return backend


def _find_target(name: str) -> str:
    if name in BUILTIN:
        return BUILTIN[name]
    registered = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    if name in registered:
        return registered[name]
    if ":" in name:
        return name
    known = ", ".join([*BUILTIN, *registered])
    raise BackendError(f"backend {name!r}: expected {known}, pkg.mod:Class or cmd:COMMAND")


def load_object(target: str, what: str) -> Any:
    """The object that ``pkg.mod:name`` means; modules in the working directory are found.

    Raises:
        BackendError: if the module cannot be imported or has no such object.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise BackendError(f"{what} {target!r}: expected pkg.mod:name")
    here = str(Path.cwd())
    if here not in sys.path:
        # At the end: a file beside the user must not hide an installed module.
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise BackendError(
            f"{what} {target!r}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise BackendError(f"{what} {target!r}: {module_name} has no {attribute}")
    return found
