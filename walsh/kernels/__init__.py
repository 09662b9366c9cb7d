"""Fast kernels: ``walsh.kernels.NAME`` is operation NAME of SPEC.md on the backend of its tensors.

``backend="torch"`` or ``backend="triton"`` (or ``WALSH_BACKEND``) overrides the choice; see
:mod:`walsh.kernels.dispatch`. The backends themselves are the packages ``walsh.kernels.torch`` and
``walsh.kernels.triton``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from walsh.kernels.dispatch import dispatch
from walsh.suite.catalog import CALLS

_METHODS = {"kv_cache"}  # described by the catalogue, but a class in Python
_ORDINARY = {call.function for call in CALLS.values() if call.kind == "ordinary"} - _METHODS
_STRICT = {call.function for call in CALLS.values() if call.kind == "strict"} - _METHODS


class _Operations:
    """Operations by attribute, made when first asked for."""

    def __init__(self, names: set[str], strict: bool) -> None:
        self._names, self._strict = names, strict

    @cache  # noqa: B019  # the two instances live as long as the module
    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._names:
            raise AttributeError(f"walsh.kernels has no operation {name!r}; known: {', '.join(sorted(self._names))}")
        return dispatch(name, self._strict)

    def __dir__(self) -> list[str]:
        return sorted(self._names)


strict = _Operations(_STRICT, True)
_ordinary = _Operations(_ORDINARY, False)


def __getattr__(name: str) -> Callable[..., Any]:
    return getattr(_ordinary, name)  # type: ignore[no-any-return]  # every operation is a function


def __dir__() -> list[str]:
    return sorted([*_ORDINARY, "strict"])
