"""What a profiled canister recorded, over all the instances that it lived in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import wasmtime
from numpy.typing import NDArray

from walsh.errors import ParameterError
from walsh.ic.metering import Metered
from walsh.ic.profile import Frame, Row, SegmentProfile, StackProfile, folded, frames, rows


class Recorder:
    """Reads the profile memories of instances, and adds what the host charged.

    Args:
        metered: the program.
    """

    def __init__(self, metered: Metered) -> None:
        self.metered = metered
        self._export = {"segments": SegmentProfile.EXPORT, "stacks": StackProfile.EXPORT, None: ""}[metered.breakdown]
        self._finished: list[tuple[bytes, Counter[tuple[int, str]]]] = []
        self._memory: wasmtime.Memory | None = None
        self._current: wasmtime.Global | None = None
        self._store: wasmtime.Store | None = None
        self._host: Counter[tuple[int, str]] = Counter()

    def attach(self, store: wasmtime.Store, exports: Mapping[str, object]) -> None:
        """Record from a new instance."""
        self._store, self._host = store, Counter()
        memory = exports.get(self._export) if self._export else None
        current = exports.get(StackProfile.CURRENT) if self._export else None
        self._memory = memory if isinstance(memory, wasmtime.Memory) else None
        self._current = current if isinstance(current, wasmtime.Global) else None

    def detach(self) -> None:
        """Keep what the instance recorded: it is about to be replaced."""
        if self._memory is not None and self._store is not None:
            self._finished.append((bytes(self._memory.read(self._store, 0)), self._host))
            self._memory = None

    def reset(self) -> None:
        """Forget what was recorded so far."""
        self._finished, self._host = [], Counter()
        if self._memory is None or self._store is None:
            return
        if self._current is not None:
            # The tree stays, since a global points behind it; only its numbers go.
            view = self._words()
            view[2::4] = view[3::4] = 0
        else:
            self._words()[:] = 0

    def _words(self) -> NDArray[np.uint64]:
        assert self._memory is not None
        assert self._store is not None
        size = self._memory.data_len(self._store)
        return np.ctypeslib.as_array(self._memory.data_ptr(self._store), shape=(size,)).view(np.uint64)

    def begin(self) -> None:
        """A message begins: the host calls."""
        if self._current is not None and self._store is not None:
            self._current.set_value(self._store, 0)

    def host(self, amount: int, reason: str) -> None:
        """Record what the host charged to the running function."""
        if self._current is not None and self._store is not None and amount:
            self._host[int(self._current.value(self._store)), reason] += amount

    def _dumps(self) -> list[tuple[bytes, Counter[tuple[int, str]]]]:
        if self._memory is None or self._store is None:
            return self._finished
        return [*self._finished, (bytes(self._memory.read(self._store, 0)), self._host)]

    def rows(self) -> list[Row]:
        """Instructions by function and opcode; without system calls, and without pages.

        Raises:
            ParameterError: if segments are not recorded.
        """
        if self.metered.breakdown != "segments":
            raise ParameterError(f"breakdown {self.metered.breakdown!r}: expected 'segments' to tell opcodes")
        slots = sum(np.frombuffer(dump, np.uint64) for dump, _ in self._dumps())
        data = slots.tobytes() if isinstance(slots, np.ndarray) else b""
        return rows(data, self.metered.sites, self.metered.names, self.metered.costs)

    def folded(self) -> str:
        """Instructions by call stack in the folded format; system calls are leaves, and everything adds up.

        Raises:
            ParameterError: if stacks are not recorded.
        """
        if self.metered.breakdown != "stacks":
            raise ParameterError(f"breakdown {self.metered.breakdown!r}: expected 'stacks' to tell call stacks")
        nodes: list[Frame] = []
        for dump, host in self._dumps():
            found = {frame.node: frame for frame in frames(dump, self.metered.names)}
            nodes += found.values()
            nodes += [Frame(0, (*found[node].stack, reason), amount, 0) for (node, reason), amount in host.items()]
        return folded(nodes)
