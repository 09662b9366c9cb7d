"""Memory that notices: poisoned outputs between guard zones, inputs whose every byte is remembered.

What stands in an output when the backend returns is the answer: it is copied at once, and a change that comes later,
from a thread that went on, is seen. Inputs can be disguised: the same memory with other values, so that a backend that
remembers answers by shape or address remembers a wrong one.

An output array is a window into a larger buffer. Before a run the window is filled with a poison that no arithmetic
produces (NaNs with a payload; a byte pattern for integers) and both sides with a guard pattern. Integers can equal
their poison by chance, so an element counts as never written only if two runs with two poisons both left it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from walsh.suite.tensors import DTYPES, Array, is_float
from walsh.suite.vectors import Output

_ALIGNMENT = 64
_MIN_GUARD = 256
_MAX_GUARD = 1 << 20
_GUARD_BYTE = 0xC3

_NAN_POISON = {
    "float64": (0x7FF8A5A5A5A5A5A5, 0xFFF85A5A5A5A5A5A),
    "float32": (0x7FC5A5A5, 0xFFCA5A5A),
    "float16": (0x7EA5, 0xFE5A),
    "bfloat16": (0x7FE5, 0xFFDA),
}
_BYTE_POISON = (0xA5, 0x5A)


def bits_of(array: Array) -> Array:
    """The same memory as unsigned integers."""
    return array.view(f"u{array.dtype.itemsize}")


def _poison(dtype: str, which: int) -> Array:
    """The poison value, as an unsigned integer scalar of the dtype's width."""
    size = DTYPES[dtype].itemsize
    value = (
        _NAN_POISON[dtype][which] if dtype in _NAN_POISON else int.from_bytes([_BYTE_POISON[which]] * size, "little")
    )
    return np.array(value, dtype=f"u{size}")


class GuardedOutput:
    """One output array with guard zones on both sides.

    Attributes:
        array: the poisoned window that a backend fills; contiguous.
    """

    def __init__(self, output: Output, which: int) -> None:
        """Allocate and poison; ``which`` (0 or 1) chooses the poison."""
        dtype = DTYPES[output.dtype]
        size = int(np.prod(output.shape, dtype=np.int64)) * dtype.itemsize
        # A kernel that runs over usually does so by a row or two: the zones must be as wide.
        row = (output.shape[-1] if output.shape else 1) * dtype.itemsize
        guard = min(max(2 * row, _MIN_GUARD), _MAX_GUARD)
        guard = -(-guard // _ALIGNMENT) * _ALIGNMENT
        self._buffer = np.full(guard + size + guard, _GUARD_BYTE, dtype=np.uint8)
        self._guard, self._size, self._itemsize = guard, size, dtype.itemsize
        self._poison = _poison(output.dtype, which)
        window = self._buffer[guard : guard + size]
        window.view(f"u{dtype.itemsize}")[...] = self._poison
        self.array: Array = window.view(dtype).reshape(output.shape)
        self._answer: Array | None = None

    def poison(self) -> None:
        """Poison the window again, after a run whose answer does not matter."""
        bits_of(self.array)[...] = self._poison

    def settle(self) -> None:
        """The backend has returned: what stands in the window now is its answer."""
        self._answer = self.array.copy()

    @property
    def answer(self) -> Array:
        """What stood in the window when the backend returned."""
        return self.array if self._answer is None else self._answer

    def written_late(self) -> bool:
        """Whether the window has changed since the backend returned."""
        return bool((bits_of(self.array) != bits_of(self.answer)).any())

    def overrun(self) -> str | None:
        """Where a guard zone was written to, in elements before the start or past the end; None if nowhere."""
        before = np.flatnonzero(self._buffer[: self._guard] != _GUARD_BYTE)
        after = np.flatnonzero(self._buffer[self._guard + self._size :] != _GUARD_BYTE)
        if before.size:
            distance = -(-(self._guard - int(before[-1])) // self._itemsize)
            return f"{distance} element(s) before its start"
        if after.size:
            return f"{int(after[0]) // self._itemsize + 1} element(s) past its end"
        return None

    def unwritten(self) -> Array:
        """bool, of the output's shape: where the poison still stands."""
        return np.asarray(bits_of(self.answer) == self._poison)


class WatchedInputs:
    """Input arrays, contiguous or strided, with a memory of every byte around them.

    Attributes:
        arrays: what the backend gets, by flat name.
    """

    def __init__(self, inputs: Mapping[str, Array], strided: bool) -> None:
        """Take over fresh arrays; ``strided`` copies each into every second place of a poisoned, offset buffer."""
        self._bases: dict[str, Array] = {}
        self.arrays: dict[str, Array] = {}
        for name, array in inputs.items():
            base, view = _scatter(array) if strided and array.ndim and array.size else (array, array)
            self._bases[name], self.arrays[name] = base, view
        self._before = {name: base.tobytes() for name, base in self._bases.items()}

    def disguise(self) -> bool:
        """Move the values of every input along its first axis that allows it; False if that changes nothing.

        Values stay those of the same column, so that ids, codes, packed rows and lengths stay valid.
        """
        changed = False
        for name, array in self.arrays.items():
            # Bits of a byte string belong to its place, and so do the columns of packed weights.
            axes = array.ndim - (array.dtype == np.uint8)
            axis = next((i for i in range(axes) if array.shape[i] > 1), None)
            if axis is not None:
                array[...] = np.roll(array, 1, axis=axis)
                changed = changed or self._bases[name].tobytes() != self._before[name]
        return changed

    def reveal(self) -> None:
        """Put the true values back."""
        for name, base in self._bases.items():
            base[...] = np.frombuffer(bytearray(self._before[name]), dtype=base.dtype).reshape(base.shape)

    def clobbered(self) -> str | None:
        """The name of an input that no longer holds what it held; None if all do."""
        return next((name for name, base in self._bases.items() if base.tobytes() != self._before[name]), None)


def misbehaviour(inputs: WatchedInputs, outputs: Mapping[str, GuardedOutput]) -> str:
    """What a run did to memory that was not its own, one clause; empty if nothing."""
    clobbered = inputs.clobbered()
    if clobbered is not None:
        return f"input {clobbered} was changed"
    for name, output in outputs.items():
        overrun = output.overrun()
        if overrun is not None:
            return f"output {name} was written {overrun}"
    return ""


def _scatter(array: Array) -> tuple[Array, Array]:
    """A poisoned buffer and a view of every second element in it, offset by one, that equals ``array``."""
    base = np.empty((*array.shape[:-1], 2 * array.shape[-1] + 3), dtype=array.dtype)
    if is_float(array.dtype):
        base.view(f"u{array.dtype.itemsize}")[...] = _poison(array.dtype.name, 0)
    elif array.dtype == np.bool_:
        base[...] = True
    else:
        base.view(f"u{array.dtype.itemsize}")[...] = _poison(array.dtype.name, 0)
    view = base[..., 1 : 1 + 2 * array.shape[-1] : 2]
    view[...] = array
    return base, view
