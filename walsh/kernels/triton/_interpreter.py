# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Triton's interpreter without its repetitions: the same values, in a fraction of the time.

The interpreter runs a kernel as Python over NumPy arrays, for which it replaces the functions of ``triton.language``:
once for the launch, and again, in a millisecond, for every call of a device function (``tl.sum`` is one), though they
stand replaced already. Here they are replaced once per launch, and put back when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class _Scopes:
    """What was replaced during one launch, as one thing to restore: the latest replacement first."""

    def __init__(self) -> None:
        self._scopes: list[Any] = []

    def add(self, scope: Any) -> None:
        """Remember what one replacement returned; Triton 3.6 returns nothing, and puts nothing back."""
        if hasattr(scope, "restore"):
            self._scopes.append(scope)

    def restore(self) -> None:
        """Put everything back."""
        while self._scopes:
            self._scopes.pop().restore()


@contextlib.contextmanager
def language_patched_once() -> Iterator[None]:
    """Within it, one launch replaces the functions of ``triton.language`` once for each module that kernels see."""
    from triton.language import core
    from triton.runtime import interpreter

    original: Callable[[Any], Any] | None = getattr(interpreter, "_patch_lang", None)
    if original is None:  # a Triton to come: slower, but right
        yield
        return
    known: set[int] = set()
    replaced: set[bool] = set()
    scopes = _Scopes()

    def first_only(fn: Any) -> _Scopes:
        if id(fn.__globals__) not in known:
            known.add(id(fn.__globals__))
            # Kernels see ``triton.language``; its own device functions see only ``triton.language.core``.
            kind = any(value is core for value in fn.__globals__.values())
            if kind not in replaced:
                replaced.add(kind)
                scopes.add(original(fn))
        return scopes

    interpreter._patch_lang = first_only
    try:
        yield
    finally:
        interpreter._patch_lang = original
