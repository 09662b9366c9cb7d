"""A running instance: its heap, globals and counters, and how they are kept or taken back.

Beside the instance lies a copy of the heap as of the last committed message. Page tracking knows which pages a message
wrote, so a commit copies those into the copy, a rollback those back. A heap that grew cannot shrink: then a new
instance is made and filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import wasmtime
from numpy.typing import NDArray

from walsh.ic.errors import OutOfInstructionsError, TrapError
from walsh.ic.metering import COUNTER
from walsh.ic.paging import ACCESSED, MAP, READ_BIT, WRITE_BIT, WRITTEN
from walsh.ic.replica.program import BEGIN, FUNCTIONS, HEAP, RESTORE, SAVE, SAVED, Program, engine
from walsh.ic.replica.recorder import Recorder

_CHECKED = 64
"""After how many charges by the host the limit is checked."""

SystemCall = tuple[wasmtime.FuncType, Callable[..., Any]]


class Instance:
    """One canister's Wasm state.

    Args:
        program: what runs.
        calls: a type and a Python function for each system call.
    """

    def __init__(self, program: Program, calls: Mapping[str, SystemCall]) -> None:
        self.program = program
        self._calls = calls
        self._heap: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._globals = b""
        self._committed = False
        self._limit, self._charged, self._charges, self._touched = 0, 0, 0, (0, 0)
        self.recorder = Recorder(program.metered)
        self._instantiate()

    def _instantiate(self) -> None:
        linker = wasmtime.Linker(engine())
        for name in self.program.imports:
            kind, function = self._calls[name]
            linker.define_func("ic0", name, kind, function)
        self.store = wasmtime.Store(engine())
        try:
            self._exports = linker.instantiate(self.store, self.program.module).exports(self.store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            raise TrapError(f"the module cannot be instantiated: {error}") from error
        self._counter = self._global(COUNTER)
        self._memory = self._export_memory(HEAP) if self.program.has_heap else None
        self._seen = np.zeros(0, np.uint8)
        self._saved = self._export_memory(SAVED)
        self._paged = [self._global(ACCESSED), self._global(WRITTEN)] if self.program.has_heap else []
        self.recorder.attach(self.store, self._exports)
        self._map = self._view(self._export_memory(MAP)) if self.program.has_heap else np.zeros(0, np.uint8)

    def _global(self, name: str) -> wasmtime.Global:
        found = self._exports[name]
        assert isinstance(found, wasmtime.Global)
        return found

    def _export_memory(self, name: str) -> wasmtime.Memory:
        found = self._exports[name]
        assert isinstance(found, wasmtime.Memory)
        return found

    def _view(self, memory: wasmtime.Memory) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array(memory.data_ptr(self.store), shape=(memory.data_len(self.store),))

    # -- what a message uses

    @property
    def heap(self) -> NDArray[np.uint8]:
        """uint8 [bytes]: the heap itself; valid until it grows."""
        if self._memory is not None and self._memory.data_len(self.store) != self._seen.size:
            self._seen = self._view(self._memory)
        return self._seen

    @property
    def counter(self) -> int:
        """Instructions of the running message: what the code counted, and what the host charged."""
        return int(self._counter.value(self.store)) + self._charged

    def charge(self, amount: int, reason: str) -> None:
        """Charge what the host does for the message.

        It is kept apart from the code's counter, which is slow to write from here. The code's own checks lag behind by
        it, hence the checks here and at the end of the message, which decide.

        Raises:
            OutOfInstructionsError: past the limit, now or within the next calls.
        """
        self._charged += amount
        self.recorder.host(amount, reason)
        self._charges += 1
        if self._charges % _CHECKED == 0 or self._charged > self._limit:
            self.check()

    def check(self) -> None:
        """Raise OutOfInstructionsError if the counter is past the limit."""
        if self.counter > self._limit:
            raise OutOfInstructionsError(f"the message takes more than {self._limit} instructions")

    @property
    def pages(self) -> tuple[int, int]:
        """Heap pages accessed and written by the running message."""
        counts = [int(item.value(self.store)) for item in self._paged] or [0, 0]
        return counts[0] + self._touched[0], counts[1] + self._touched[1]

    def touch(self, start: int, size: int, write: bool) -> None:
        """Mark and charge the heap pages of a range that the host reads or writes."""
        if not size:
            return
        policy = self.program.policy
        first, last = start // policy.page_bytes, (start + size - 1) // policy.page_bytes
        bits = READ_BIT | WRITE_BIT if write else READ_BIT
        if first == last and self._map[first] & bits == bits:
            return
        span = self._map[first : last + 1]
        accessed = int(np.count_nonzero(span & READ_BIT == 0))
        written = int(np.count_nonzero(span & WRITE_BIT == 0)) if write else 0
        span |= bits
        self._touched = (self._touched[0] + accessed, self._touched[1] + written)
        if not policy.at_end:
            self.charge(accessed * policy.access + written * policy.write, "heap pages")

    # -- running

    def begin(self, limit: int) -> None:
        """Get ready for a message that may take ``limit`` instructions."""
        if self.program.fresh:
            self._rebuild()
        self._internal(BEGIN, wasmtime.Val.i64(limit - (limit >> 63 << 64)))
        self._limit, self._charged, self._charges, self._touched = limit, 0, 0, (0, 0)
        self._map[: -(-self.heap.size // self.program.policy.page_bytes)] = 0
        self.recorder.begin()

    def call(self, name: str) -> None:
        """Run an exported function without arguments.

        Raises:
            TrapError: if it traps; OutOfInstructionsError if that is the reason.
        """
        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        self._run(function)

    def call_table(self, index: int, argument: int) -> None:
        """Run a callback: the function at an index of table 0, with an i32.

        Raises:
            TrapError: if there is none of that type, or it traps.
        """
        table = self._exports[FUNCTIONS] if self.program.has_table else None
        if not isinstance(table, wasmtime.Table) or index >= table.size(self.store):
            raise TrapError(f"callback {index} lies outside the table")
        function = table.get(self.store, index)
        if not isinstance(function, wasmtime.Func):
            raise TrapError(f"callback {index} is null")
        if [str(kind) for kind in function.type(self.store).params] != ["i32"]:
            raise TrapError(f"callback {index} does not take one i32")
        self._run(function, argument - (argument >> 31 << 32))

    def _run(self, function: wasmtime.Func, *arguments: int) -> None:
        try:
            function(self.store, *arguments)
        except wasmtime.Trap as error:
            self.check()
            reason = error.message.strip().splitlines()[-1].strip()
            raise TrapError(f"the canister trapped: {reason.removeprefix('wasm trap: ')}") from error
        self.check()

    # -- keeping and taking back

    def commit(self, whole: bool = False) -> None:
        """Keep what the message did; ``whole`` also keeps what instantiation did."""
        heap = self.heap
        if heap.size > self._heap.size:
            self._heap = np.concatenate([self._heap, np.zeros(heap.size - self._heap.size, np.uint8)])
        if whole:
            self._heap[:] = heap
        else:
            self._copy(heap, self._heap)
        self._internal(SAVE)
        self._globals = self._view(self._saved).tobytes()
        self._committed = True

    def rollback(self) -> None:
        """Return to the state of the last commit."""
        heap = self.heap
        if heap.size != self._heap.size:
            self._rebuild()
            return
        self._copy(self._heap, heap)
        self._internal(RESTORE)

    def _copy(self, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        """Copy the pages that the message wrote."""
        size = self.program.policy.page_bytes
        for page in np.flatnonzero(self._map[: -(-target.size // size)] & WRITE_BIT):
            part = slice(int(page) * size, (int(page) + 1) * size)
            target[part] = source[part]

    def _internal(self, name: str, *arguments: wasmtime.Val) -> None:
        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        function(self.store, *arguments)

    def _rebuild(self) -> None:
        """A new instance with the committed heap and globals."""
        self.recorder.detach()
        self._instantiate()
        if not self._committed:
            return
        if self._memory is not None:
            missing = self._heap.size // 65536 - self._memory.size(self.store)
            if missing > 0:
                self._memory.grow(self.store, missing)
            self.heap[:] = self._heap
        self._view(self._saved)[:] = np.frombuffer(self._globals, np.uint8)
        self._internal(RESTORE)
