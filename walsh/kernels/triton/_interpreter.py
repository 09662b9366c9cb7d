# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Triton's interpreter without its repetitions: the same values, in a fraction of the time.

The interpreter runs a kernel as Python over NumPy arrays, for which it replaces the functions of ``triton.language``.
It does so anew for every launch and for every call of a device function (``tl.sum`` is one), which takes a millisecond
each time, many times what the call itself takes. Here they are replaced once per process and stay so: a process that
interprets kernels compiles none.
"""

from __future__ import annotations

import dataclasses
from typing import Any


class _Kept:
    """Stands for replacements that are not to be taken back."""

    def restore(self) -> None:
        """Leave everything as it is."""


def replace_language_once() -> None:
    """Let Triton's interpreter replace the functions of ``triton.language`` once for each module that kernels see."""
    from triton.language import core
    from triton.runtime import interpreter

    original: Any = getattr(interpreter, "_patch_lang", None)
    if original is None or hasattr(original, "walsh_known"):  # a Triton to come is slower, but right; or done already
        return
    known: set[int] = set()
    replaced: set[bool] = set()

    def replace_first(fn: Any) -> _Kept:
        if id(fn.__globals__) not in known:
            known.add(id(fn.__globals__))
            # Kernels see ``triton.language``; its own device functions see only ``triton.language.core``.
            kind = any(value is core for value in fn.__globals__.values())
            if kind not in replaced:
                replaced.add(kind)
                original(fn)
                # Triton 3.6 takes a number from an array of one element, which NumPy 2.4 no longer allows.
                core.tensor.__index__ = lambda scalar: int(scalar.handle.data.squeeze())
        return _Kept()

    # The interpreter computes every integer sum a second time in int64 for an assertion that it then leaves out.
    builder = interpreter.interpreter_builder
    if getattr(builder.options, "sanitize_overflow", False) and not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    replace_first.walsh_known = known  # type: ignore[attr-defined]  # the mark that this was done
    interpreter._patch_lang = replace_first
