"""Reads many Candid answers of few types: a type's table is read once, and makes a function that reads its values.

    read = Answers(did); read(b"DIDL...") -> {"Ok": {"session": 3, ...}}

Fields are named by their hashes, which are those of identifiers in the interface:

    hash(name) = sum over bytes of byte * 223 ** (bytes behind it)    mod 2 ** 32
"""

import re
import struct

_FIXED = {-5: "<B", -6: "<H", -7: "<I", -8: "<Q", -13: "<f", -14: "<d"}
_OPT, _VEC, _RECORD, _VARIANT = -18, -19, -20, -21


def field_hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value * 223 + byte) % (1 << 32)
    return value


def natural(data: bytes, at: int) -> tuple[int, int]:
    """LEB128 and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def integer(data: bytes, at: int) -> tuple[int, int]:
    value, end = natural(data, at)
    bits = 7 * (end - at)
    return (value - (1 << bits) if value >> (bits - 1) else value), end


class Answers:
    """Readers by the bytes in front of the values.

    Args:
        did: text of the interface, where names are found.
    """

    def __init__(self, did: str) -> None:
        self.names = {field_hash(name): name for name in re.findall(r"\w+", did)}
        self.known: dict[bytes, object] = {}

    def __call__(self, data: bytes):
        """The one value of an answer."""
        header = next((header for header in self.known if data.startswith(header)), None)
        if header is None:
            header, read = self.plan(data)
            self.known[header] = read
        value, end = self.known[header](data, len(header))
        assert end == len(data), f"{len(data) - end} bytes behind a value"
        return value

    def plan(self, data: bytes):
        assert data[:4] == b"DIDL"
        table, at = [], 4
        count, at = natural(data, at)
        for _ in range(count):
            kind, at = integer(data, at)
            if kind in (_OPT, _VEC):
                inner, at = integer(data, at)
                table.append((kind, inner))
            else:
                assert kind in (_RECORD, _VARIANT), kind
                fields, (size, at) = [], natural(data, at)
                for _ in range(size):
                    label, at = natural(data, at)
                    inner, at = integer(data, at)
                    fields.append((self.names.get(label, label), inner))
                table.append((kind, fields))
        values, at = natural(data, at)
        assert values == 1
        kind, at = integer(data, at)
        readers: dict[int, object] = {}

        def reader(kind: int):
            if kind not in readers:
                readers[kind] = lambda data, at: readers[kind](data, at)  # a type may hold itself
                readers[kind] = make(kind)
            return readers[kind]

        def make(kind: int):
            if kind < 0:
                return _primitive(kind)
            shape, inside = table[kind]
            if shape == _VEC and inside == -7:
                return _numbers
            if shape in (_VEC, _OPT):
                return _repeated(reader(inside))
            fields = [(name, reader(inner)) for name, inner in inside]
            return _record(fields) if shape == _RECORD else _variant(fields)

        return data[:at], reader(kind)


def _primitive(kind: int):
    if kind in (-1, -16):
        return lambda data, at: (None, at)
    if kind == -2:
        return lambda data, at: (data[at] == 1, at + 1)
    if kind == -3:
        return natural
    if kind == -15:
        return _text
    unpack, size = struct.Struct(_FIXED[kind]).unpack_from, struct.calcsize(_FIXED[kind])
    return lambda data, at: (unpack(data, at)[0], at + size)


def _text(data: bytes, at: int):
    size, at = natural(data, at)
    return data[at : at + size].decode(), at + size


def _numbers(data: bytes, at: int):
    size, at = natural(data, at)
    return list(struct.unpack_from(f"<{size}I", data, at)), at + 4 * size


def _repeated(read):
    def run(data: bytes, at: int):
        size, at = natural(data, at)
        values = []
        for _ in range(size):
            value, at = read(data, at)
            values.append(value)
        return values, at

    return run


def _record(fields):
    def run(data: bytes, at: int):
        values = {}
        for name, read in fields:
            values[name], at = read(data, at)
        return values, at

    return run


def _variant(fields):
    def run(data: bytes, at: int):
        index, at = natural(data, at)
        name, read = fields[index]
        value, at = read(data, at)
        return {name: value}, at

    return run
