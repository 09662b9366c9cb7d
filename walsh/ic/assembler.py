"""Encoded instructions by name: ``code("i64.const", 5)``, the little that a metering pass emits."""

from __future__ import annotations

from functools import lru_cache

from walsh.ic.binary import signed, unsigned
from walsh.ic.opcodes import BY_NAME

EMPTY_BLOCK = -64
"""Block type without parameters and results."""

_SIGNED = frozenset({"block", "i32", "i64"})


@lru_cache(1 << 16)
def code(name: str, *immediates: int) -> bytes:
    """One instruction. A memory access takes (memory, offset) and is unaligned.

    >>> code("i64.const", 64).hex()
    '42c000'
    """
    opcode = BY_NAME[name]
    out = opcode.encoding
    if opcode.immediates[:1] == ("memarg",):
        memory, offset = immediates
        # Bit 6 of the alignment says that a memory index follows.
        return out + b"\x40" + unsigned(memory) + unsigned(offset)
    for kind, value in zip(opcode.immediates, immediates, strict=True):
        out += signed(value) if kind in _SIGNED else unsigned(value)
    return out


@lru_cache(1 << 16)
def sequence(*items: str | tuple[str | int, ...]) -> bytes:
    """Instructions one after another: a string has no immediates, a tuple carries them."""
    out = bytearray()
    for item in items:
        if isinstance(item, str):
            out += code(item)
        else:
            name, *immediates = item
            out += code(str(name), *(int(value) for value in immediates))
    return bytes(out)
