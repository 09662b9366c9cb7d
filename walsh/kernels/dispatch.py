"""One name for each operation, whatever runs it: ``walsh.kernels.NAME`` picks the backend.

In this order: the argument ``backend=``, the environment variable ``WALSH_BACKEND``, the device of the tensors. By
device, arrays go to ``reference``, CPU tensors to ``torch``, GPU tensors to ``triton`` where it is installed and to
``torch`` where it is not. A backend that was asked for by name and cannot run is a ``BackendError``: another one never
takes its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from walsh.errors import BackendError, DTypeError

BACKENDS: dict[str, str] = {
    "reference": "walsh.reference",
    "torch": "walsh.kernels.torch",
    "triton": "walsh.kernels.triton",
}
"""The packages by name."""


def _devices(values: Any) -> Iterator[str]:
    """Device types of the tensors among these values and the containers in them; ``array`` for NumPy arrays."""
    if isinstance(values, Mapping):
        yield from _devices(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _devices(value)
    elif type(values).__module__.partition(".")[0] == "numpy" and hasattr(values, "__array__"):
        yield "array"
    elif hasattr(values, "device"):
        yield str(getattr(values.device, "type", values.device))


def _check_mixture(arguments: Iterable[Any]) -> None:
    """Refuse a call that has tensors and arrays of reals; integers, such as seeds and positions, may be either."""
    given = list(arguments)
    arrays = [value for value in given if type(value).__name__ == "ndarray" and value.dtype.kind == "f"]
    tensors = [value for value in given if type(value).__module__.partition(".")[0] == "torch"]
    if arrays and any(hasattr(value, "device") for value in tensors):
        raise DTypeError(
            f"arguments are torch tensors and NumPy arrays, the first {arrays[0].dtype}{list(arrays[0].shape)}: "
            "expected one kind; torch.from_numpy makes tensors of arrays"
        )


def _by_device(values: Any) -> str:
    devices = set(_devices(values))
    if devices == {"array"}:
        return "reference"
    if "cuda" in devices and importlib.util.find_spec("triton") is not None:
        return "triton"
    return "torch"


def choose_backend(values: Any, backend: str | None = None) -> str:
    """The name of the backend for a call with these arguments.

    Args:
        values: the arguments, tensors among them.
        backend: asked for by name, or None.

    Returns:
        ``reference``, ``torch`` or ``triton``.

    Raises:
        BackendError: another name, given here or in ``WALSH_BACKEND``.
    """
    source = "argument backend" if backend is not None else "environment variable WALSH_BACKEND"
    asked = backend if backend is not None else os.environ.get("WALSH_BACKEND") or None
    if asked is None:
        return _by_device(values)
    if asked not in BACKENDS:
        raise BackendError(f"{source} is {asked!r}: expected one of {', '.join(BACKENDS)}, or nothing to go by device")
    return asked


def load(backend: str, strict: bool = False) -> Any:
    """The package of a backend, or its strict part.

    Raises:
        BackendError: it cannot be imported here; the message says why.
    """
    try:
        package = importlib.import_module(BACKENDS[backend])
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {backend!r}: module {error.name!r} is not installed; expected it beside walsh; "
            f"install walsh[{backend}], or choose another backend"
        ) from error
    return package.strict if strict else package


def dispatch(name: str, strict: bool = False) -> Callable[..., Any]:
    """The operation of this name, which takes ``backend=`` besides its own arguments.

    Args:
        name: as SPEC.md has it.
        strict: that of strict arithmetic.

    Returns:
        A function; it raises what the operation raises, and BackendError.
    """

    def call(*args: Any, backend: str | None = None, **keywords: Any) -> Any:
        _check_mixture((*args, *keywords.values()))
        chosen = choose_backend((args, keywords), backend)
        package = load(chosen, strict)
        if not hasattr(package, name):
            raise BackendError(f"backend {chosen!r} has no {name}: expected another backend; name it with backend=")
        return getattr(package, name)(*args, **keywords)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = (
        f"``{name}`` of SPEC.md{', strict' if strict else ''}, on the backend of its tensors or ``backend=``."
    )
    return call
