"""The engine's module under wasmtime: instances, linear memory and typed errors.

A module is compiled once per process. An instance has its own memory; nothing is shared between instances. Negative
results of an export become the exception of their class, with the engine's own message.
"""

from __future__ import annotations

import atexit
import functools
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.engine.module import module_path
from walsh.errors import (
    BackendError,
    CapacityError,
    DTypeError,
    FormatError,
    NonFiniteError,
    ParameterError,
    RangeError,
    ShapeError,
    StrictError,
    WalshError,
)

try:
    import wasmtime
except ModuleNotFoundError:  # the extra `wasm` is not installed: said when an engine is asked for
    wasmtime = None  # type: ignore[assignment]  # stands for its absence

Array = NDArray[Any]

KINDS: tuple[type[WalshError], ...] = (
    FormatError,
    ShapeError,
    DTypeError,
    NonFiniteError,
    ParameterError,
    RangeError,
    StrictError,
    CapacityError,
)
"""Error classes in the order of the engine's codes, from 1."""


@functools.cache
def compiled() -> tuple[Any, Any]:
    """(wasmtime engine, module), compiled once per process.

    Raises:
        BackendError: if wasmtime or the module is missing.
        FormatError: if the module is not the one of its record.
    """
    if wasmtime is None:
        raise BackendError("the engine needs wasmtime: pip install 'walsh[wasm]'")
    path = module_path()
    config = wasmtime.Config()
    # The module is LLVM's and optimised. Cranelift's own pass would move the products of an unrolled row behind all of
    # its loads, which then go to the stack and back: an int8 head takes half as long again.
    config.cranelift_opt_level = "none"
    config.wasm_relaxed_simd = False  # the Internet Computer refuses it, and its results may differ by machine
    engine = wasmtime.Engine(config)
    return engine, wasmtime.Module.from_file(engine, str(path))


# wasmtime's finalisers need its own module, which the interpreter may have taken apart before ours.
atexit.register(compiled.cache_clear)


class Instance:
    """One instance of the module with its memory."""

    def __init__(self) -> None:
        engine, module = compiled()
        self._store = wasmtime.Store(engine)
        exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        self._functions: dict[str, Any] = {
            export.name: exports[export.name] for export in module.exports if export.name.startswith("walsh_")
        }
        memory = exports["memory"]
        if not isinstance(memory, wasmtime.Memory):
            raise BackendError("the module exports no memory; build it again")
        self._memory = memory

    def call(self, name: str, *arguments: int | float) -> Any:
        """Call an export and return what it returns.

        Raises:
            WalshError: of the class that a negative result stands for.
            BackendError: if the module trapped, which no data can make it do: a bug.
        """
        try:
            result = self._functions[f"walsh_{name}"](self._store, *arguments)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as trap:
            raise BackendError(f"the engine trapped in {name}: {str(trap).splitlines()[0]}; please report it") from None
        if isinstance(result, int) and -len(KINDS) <= result < 0:
            raise self.error(result)
        return result

    def error(self, code: int) -> WalshError:
        """The exception of a negative result, with the engine's last message."""
        return KINDS[-code - 1](self._message())

    def _message(self) -> str:
        start, length = (self._functions[f"walsh_error_{part}"](self._store) for part in ("message", "length"))
        return self.bytes_at(start, length).decode("utf-8", errors="replace")

    @property
    def memory_bytes(self) -> int:
        """Linear memory in use; it never shrinks, so this is the peak."""
        return int(self._memory.data_len(self._store))

    def view(self, pointer: int, shape: tuple[int, ...], dtype: str) -> Array:
        """An array in linear memory; valid until the next call, which may move it."""
        kind = np.dtype(dtype).newbyteorder("<")
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        pointer &= 0xFFFFFFFF  # wasmtime gives addresses as signed numbers
        if size == 0:
            return np.empty(shape, dtype=kind)
        buffer: Any = self._memory.get_buffer_ptr(self._store, size, pointer)
        array: Array = np.frombuffer(buffer, dtype=kind).reshape(shape)
        return array

    def bytes_at(self, pointer: int, length: int) -> bytes:
        """A copy of bytes in linear memory."""
        return self.view(pointer, (length,), "uint8").tobytes()

    def result(self, length: int) -> bytes:
        """The bytes that the last call left."""
        return self.bytes_at(self.call("result"), length)

    def arrays(self) -> Arrays:
        """A place for the arrays of one call: ``with instance.arrays() as arrays``."""
        return Arrays(self)


class Arrays:
    """Arrays in linear memory that live as long as a ``with`` block."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._taken: list[tuple[int, int]] = []

    def __enter__(self) -> Arrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pointer, size in self._taken:
            self._instance.call("free", pointer, size)

    def room(self, size: int) -> int:
        """Address of so many bytes, zeroed and aligned to 16.

        Raises:
            CapacityError: if linear memory ends first.
        """
        pointer = int(self._instance.call("alloc", size)) & 0xFFFFFFFF
        if pointer == 0:
            raise CapacityError(f"{size} bytes do not fit into linear memory (4 GiB)")
        self._taken.append((pointer, size))
        return pointer

    def put(self, array: Array) -> int:
        """Address of a copy of an array."""
        array = np.asarray(array)
        pointer = self.room(array.nbytes)
        self._instance.view(pointer, array.shape, array.dtype.str)[...] = array
        return pointer

    def get(self, pointer: int, shape: tuple[int, ...], dtype: str) -> Array:
        """A copy of an array at an address."""
        return np.array(self._instance.view(pointer, shape, dtype), dtype=np.dtype(dtype))
