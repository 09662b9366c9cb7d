"""Modules from bytes, and the instructions of their functions.

What a replica refuses (threads, 64-bit memories, several memories, exceptions, garbage collection, extended constant
expressions, relaxed SIMD) is an :class:`UnsupportedWasmError`; bytes that are no module a :class:`WasmError`. Element
and data segments are only walked, for their offset expressions. Types of operands are left to the engine's validator.

Format: W3C, *WebAssembly Core Specification*, chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from walsh.ic.binary import Reader
from walsh.ic.errors import UnsupportedWasmError, WasmError
from walsh.ic.module import (
    FUNC,
    GLOBAL,
    MAGIC,
    MEMORY,
    TABLE,
    Body,
    Export,
    FuncType,
    Global,
    Import,
    Module,
    Table,
)
from walsh.ic.opcodes import OPCODES, SIMD, Opcode, refusal

_CONSTANT = frozenset({0x0B, 0x23, 0x41, 0x42, 0x43, 0x44, 0xD0, 0xD2, SIMD + 12})
_EXTENDED = frozenset({0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E})

Immediates = tuple[int, ...]
"""Immediates of an instruction as integers; of ``br_table`` the targets, of constants in bytes nothing."""


def read_opcode(reader: Reader) -> Opcode:
    """The opcode at the reader's position.

    Raises:
        UnsupportedWasmError: for an opcode of a proposal that a replica refuses.
        WasmError: for a number that no proposal uses.
    """
    start = reader.at
    key = reader.byte()
    if key >= 0xFB:
        key = key << 16 | min(reader.u32(), 0xFFFF)
    opcode = OPCODES.get(key)
    if opcode is None:
        proposal = refusal(key)
        if proposal:
            raise UnsupportedWasmError(f"opcode {key:#x} at byte {start} needs {proposal}; a replica refuses it")
        raise WasmError(f"opcode {key:#x} at byte {start} does not exist")
    return opcode


def read_immediates(reader: Reader, opcode: Opcode) -> Immediates:
    """The immediates that follow an opcode. Memory accesses give (alignment, offset)."""
    found: list[int] = []
    for kind in opcode.immediates:
        if kind in _INDICES:
            found.append(reader.u32())
        elif kind == "memarg":
            found += [reader.u32(), reader.u32()]
            if found[-2] >= 64:
                raise UnsupportedWasmError(
                    f"alignment {found[-2]} before byte {reader.at}: several memories are refused"
                )
        elif kind == "labels":
            found += [reader.u32() for _ in range(reader.u32() + 1)]
        elif kind == "types":
            found += [reader.value_type() for _ in range(reader.u32())]
        elif kind in {"memory", "lane", "heap"}:
            found.append(reader.byte())
        elif kind == "block":
            found.append(reader.integer(33))
        elif kind in {"i32", "i64"}:
            found.append(reader.integer(int(kind[1:])))
        else:
            reader.take(_SIZES[kind])
    return tuple(found)


_INDICES = frozenset({"local", "global", "label", "func", "type", "table", "data", "elem"})
_SIZES = {"f32": 4, "f64": 8, "v128": 16, "lanes": 16}


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction at ``start``..``end`` of its code."""

    opcode: Opcode
    immediates: Immediates
    start: int
    end: int


def instructions(code: bytes) -> Iterator[Instruction]:
    """The instructions of a body, the last ``end`` included.

    Raises:
        WasmError: if blocks are not closed, or bytes follow the last ``end``.
    """
    reader, depth = Reader(code), 1
    while depth:
        start = reader.at
        opcode = read_opcode(reader)
        immediates = read_immediates(reader, opcode)
        if opcode.name in {"block", "loop", "if"}:
            depth += 1
        elif opcode.name == "end":
            depth -= 1
        yield Instruction(opcode, immediates, start, reader.at)
    if reader.at != len(code):
        raise WasmError(f"{len(code) - reader.at} bytes follow the last end of a function")


def _constant(reader: Reader) -> bytes:
    """A constant expression, with its ``end``."""
    start = reader.at
    while True:
        opcode = read_opcode(reader)
        read_immediates(reader, opcode)
        if opcode.key in _EXTENDED:
            raise UnsupportedWasmError(
                f"{opcode.name} in the constant expression at byte {start}: a replica refuses extended constants"
            )
        if opcode.key not in _CONSTANT:
            raise WasmError(f"{opcode.name} in the constant expression at byte {start}: expected a constant")
        if opcode.name == "end":
            return reader.data[start : reader.at]


def _import(reader: Reader) -> Import:
    module, name, kind, start = reader.name(), reader.name(), reader.byte(), reader.at
    index = 0
    if kind == FUNC:
        index = reader.u32()
    elif kind == TABLE:
        reader.value_type()
        reader.limits("an imported table")
    elif kind == MEMORY:
        reader.limits("an imported memory")
    elif kind == GLOBAL:
        reader.value_type()
        reader.byte()
    else:
        raise UnsupportedWasmError(f"import {module}.{name} of kind {kind} (exceptions); a replica refuses it")
    return Import(module, name, kind, index, reader.data[start : reader.at])


def _types(reader: Reader) -> list[FuncType]:
    found = []
    for _ in range(reader.u32()):
        form = reader.byte()
        if form != 0x60:
            raise UnsupportedWasmError(
                f"type form {form:#x} at byte {reader.at - 1} needs garbage collection; a replica refuses it"
            )
        params = tuple(reader.value_type() for _ in range(reader.u32()))
        found.append(FuncType(params, tuple(reader.value_type() for _ in range(reader.u32()))))
    return found


def _body(reader: Reader) -> Body:
    size = reader.u32()
    part = Reader(reader.data, reader.at, reader.at + size)
    reader.take(size)
    runs = tuple((part.u32(), part.value_type()) for _ in range(part.u32()))
    if sum(count for count, _ in runs) > 50_000:
        raise WasmError(f"a function at byte {reader.at - size} has more than 50,000 locals")
    return Body(runs, part.take(part.end - part.at))


def _check_elements(payload: bytes) -> None:
    """Walk the element segments for the sake of their constant expressions."""
    reader = Reader(payload)
    for _ in range(reader.u32()):
        flags = reader.u32()
        if flags > 7:
            raise WasmError(f"element segment of kind {flags}: expected 0 to 7")
        if flags & 1 == 0:
            if flags & 2:
                reader.u32()
            _constant(reader)
        if flags & 3:
            reader.byte()
        for _ in range(reader.u32()):
            if flags & 4:
                _constant(reader)
            else:
                reader.u32()


def _check_data(payload: bytes) -> None:
    """Walk the data segments for the sake of their constant expressions."""
    reader = Reader(payload)
    for _ in range(reader.u32()):
        flags = reader.u32()
        if flags > 2:
            raise WasmError(f"data segment of kind {flags}: expected 0, 1 or 2")
        if flags == 2:
            reader.u32()
        if flags != 1:
            _constant(reader)
        reader.take(reader.u32())


_ORDER = {number: place for place, number in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11))}


def _read_section(module: Module, number: int, part: Reader) -> None:
    whole = part.data[part.at : part.end]
    if number == 1:
        module.types = _types(part)
    elif number == 2:
        module.imports = [_import(part) for _ in range(part.u32())]
    elif number == 3:
        module.functions = [part.u32() for _ in range(part.u32())]
    elif number == 4:
        module.tables = [Table(part.value_type(), part.limits("a table")) for _ in range(part.u32())]
    elif number == 5:
        module.memories = [part.limits("a memory") for _ in range(part.u32())]
    elif number == 6:
        module.globals = [Global(part.value_type(), bool(part.byte()), _constant(part)) for _ in range(part.u32())]
    elif number == 7:
        module.exports = [Export(part.name(), part.byte(), part.u32()) for _ in range(part.u32())]
    elif number == 8:
        module.start = part.u32()
    elif number == 9:
        _check_elements(whole)
        module.elements, part.at = whole, part.end
    elif number == 10:
        module.code = [_body(part) for _ in range(part.u32())]
    elif number == 11:
        _check_data(whole)
        module.data, part.at = whole, part.end
    else:
        module.data_count = part.u32()


def decode(wasm: bytes) -> Module:
    """Take a module apart.

    Args:
        wasm: the binary format.

    Raises:
        WasmError: for bytes that are no module.
        UnsupportedWasmError: for a module that a replica refuses.
    """
    if wasm[:8] != MAGIC:
        raise WasmError(
            f"the first bytes are {wasm[:8].hex() or 'absent'}: expected {MAGIC.hex()}, a WebAssembly 1 module"
        )
    module, reader, place = Module(), Reader(wasm, 8), -1
    while reader.at < reader.end:
        number, size = reader.byte(), reader.u32()
        part = Reader(wasm, reader.at, reader.at + size)
        reader.take(size)
        if number == 0:
            name = part.name()
            module.customs.append((name, part.take(part.end - part.at)))
            continue
        if number == 13:
            raise UnsupportedWasmError("a tag section (exceptions); a replica refuses it")
        if _ORDER.get(number, -1) <= place:
            raise WasmError(f"section {number} before byte {reader.at} is unknown, repeated or out of order")
        place = _ORDER[number]
        _read_section(module, number, part)
        if part.at != part.end:
            raise WasmError(f"section {number} declares {size} bytes but its content takes {size - part.end + part.at}")
    _check(module)
    return module


def _check(module: Module) -> None:
    if len(module.functions) != len(module.code):
        raise WasmError(f"{len(module.functions)} functions are declared but {len(module.code)} have code")
    if len(module.memories) + len(module.imported(MEMORY)) > 1:
        raise UnsupportedWasmError("several memories; a replica refuses them: build with one")
    used = [*module.functions, *(item.type_index for item in module.imported(FUNC))]
    if used and max(used) >= len(module.types):
        raise WasmError(f"a function has type {max(used)} but there are {len(module.types)} types")
