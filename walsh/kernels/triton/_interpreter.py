# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Triton's interpreter without its repetitions: the same values, in a fraction of the time.

The interpreter runs a kernel as Python over NumPy arrays, for which it replaces the functions of ``triton.language``.
It does so anew for every launch and for every call of a device function (``tl.sum`` is one), which takes a millisecond
each time, many times what the call itself takes. Here they are replaced once per process and stay so: a process that
interprets kernels compiles none. And it describes every value anew, its type, its shape, its NumPy dtype, where a
kernel knows a few dozen types: here each is described once.
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
    describe_once(core, interpreter)
    builder = interpreter.interpreter_builder
    if getattr(builder.options, "sanitize_overflow", False) and not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    replace_first.walsh_known = known  # type: ignore[attr-defined]  # the mark that this was done
    interpreter._patch_lang = replace_first


def describe_once(core: Any, interpreter: Any) -> None:
    """Remember what the interpreter derives from a type: its checked shape, its size, and its NumPy dtype.

    Args:
        core: the module ``triton.language.core``.
        interpreter: the module ``triton.runtime.interpreter``.
    """
    types: dict[Any, dict[str, Any]] = {}
    shapes: dict[Any, tuple[Any, Any]] = {}
    arrays: dict[str, Any] = {}
    make_type, make_tensor, find_array = core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype
    compare = core.tuple.__eq__

    def type_once(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, core.constexpr) else size for size in shape])
        key = (element_ty.name, sizes)
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = {**self.__dict__, "sizes": sizes}
        self.__dict__.update(types[key])

    def tensor_once(self: Any, handle: Any, type: Any) -> None:  # noqa: A002  # the name it replaces is called by
        sizes = type.sizes if type.is_block() else ()
        if sizes not in shapes:
            make_tensor(self, handle, type)
            shapes[sizes] = (self.shape, self.numel)
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[sizes]

    def array_once(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        if name not in arrays:
            arrays[name] = find_array(tt_dtype)
        return arrays[name]

    core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype = type_once, tensor_once, array_once
    # Types of one shape share it now, which most comparisons find out at once.
    core.tuple.__eq__ = lambda self, other: core.constexpr(True) if self is other else compare(self, other)
