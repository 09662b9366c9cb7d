"""The binary format's alphabet: LEB128 integers, names, vectors, value types and limits, written and read.

Format: W3C, *WebAssembly Core Specification*, section 5.2, Values.
"""

from __future__ import annotations

from dataclasses import dataclass

from walsh.ic.errors import UnsupportedWasmError, WasmError

I32, I64, F32, F64, V128, FUNCREF, EXTERNREF = 0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70, 0x6F
VALUE_TYPES = {"i32": I32, "i64": I64, "f32": F32, "f64": F64, "v128": V128}
_KNOWN_TYPES = frozenset({I32, I64, F32, F64, V128, FUNCREF, EXTERNREF})


def unsigned(value: int) -> bytes:
    """LEB128 of a natural number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """LEB128 of an integer."""
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def text(value: str) -> bytes:
    """A name: length and UTF-8."""
    raw = value.encode()
    return unsigned(len(raw)) + raw


def vector(items: list[bytes]) -> bytes:
    """A count and that many encoded items."""
    return unsigned(len(items)) + b"".join(items)


@dataclass(frozen=True)
class Limits:
    """Sizes in pages of 64 KiB (memory) or elements (table)."""

    minimum: int
    maximum: int | None

    def encode(self) -> bytes:
        """The binary form."""
        if self.maximum is None:
            return b"\0" + unsigned(self.minimum)
        return b"\1" + unsigned(self.minimum) + unsigned(self.maximum)


class Reader:
    """A position in bytes; every method reads one thing and moves past it.

    Raises:
        WasmError: from every method, when the bytes end early or break their format.
    """

    def __init__(self, data: bytes, position: int = 0, end: int | None = None) -> None:
        self.data, self.at, self.end = data, position, len(data) if end is None else end

    def byte(self) -> int:
        """One byte."""
        if self.at >= self.end:
            raise WasmError(
                f"the module ends at byte {self.at}, in the middle of a section; expected more: is it whole?"
            )
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        """``count`` bytes."""
        if self.at + count > self.end:
            raise WasmError(
                f"{count} bytes wanted at byte {self.at} but {self.end - self.at} left; is the module whole?"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def u32(self) -> int:
        """LEB128 below 2**32."""
        start, value, shift = self.at, 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= 35:
                raise WasmError(f"integer at byte {start} is longer than the five bytes of a 32-bit LEB128")
        if value >= 1 << 32:
            raise WasmError(f"integer {value} at byte {start}: expected less than 2**32")
        return value

    def integer(self, bits: int) -> int:
        """Signed LEB128 of at most ``bits`` bits."""
        start, value, shift = self.at, 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= bits + 7 - bits % 7:
                raise WasmError(f"integer at byte {start} is longer than a {bits}-bit LEB128")
        value -= (byte & 0x40) << (shift - 6)
        if not -1 << (bits - 1) <= value < 1 << (bits - 1):
            raise WasmError(f"integer {value} at byte {start}: expected {bits} bits")
        return value

    def name(self) -> str:
        """A length and UTF-8."""
        start = self.at
        try:
            return self.take(self.u32()).decode()
        except UnicodeDecodeError as error:
            raise WasmError(f"name at byte {start} is not UTF-8: {error.reason}") from error

    def value_type(self) -> int:
        """A value type's code."""
        code = self.byte()
        if code not in _KNOWN_TYPES:
            proposal = "garbage collection or typed references" if 0x60 < code < 0x75 else None
            if proposal:
                raise UnsupportedWasmError(
                    f"value type {code:#x} at byte {self.at - 1} needs {proposal}; a replica refuses it"
                )
            raise WasmError(
                f"value type {code:#x} at byte {self.at - 1}: expected one of i32 i64 f32 f64 v128 funcref externref"
            )
        return code

    def limits(self, what: str) -> Limits:
        """Smallest and largest size of a memory or table."""
        flags = self.byte()
        if flags & 2:
            raise UnsupportedWasmError(f"{what} is shared (threads); a replica refuses it: build without atomics")
        if flags & 4:
            raise UnsupportedWasmError(f"{what} has 64-bit addresses; counting covers wasm32: build for wasm32")
        if flags > 1:
            raise WasmError(f"{what} has limits of kind {flags:#x}: expected 0 or 1")
        return Limits(self.u32(), self.u32() if flags else None)
