"""A module in parts: types, imports, functions, limits, globals, exports, code and names; and its bytes again.

Parts are appended, never renumbered. Element and data segments are kept as bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from walsh.ic.binary import Limits, Reader, text, unsigned, vector
from walsh.ic.errors import WasmError

MAGIC = b"\0asm\x01\0\0\0"
FUNC, TABLE, MEMORY, GLOBAL = range(4)


@dataclass(frozen=True)
class FuncType:
    """Value types of parameters and results."""

    params: tuple[int, ...]
    results: tuple[int, ...]

    def encode(self) -> bytes:
        """The binary form."""
        return (
            b"\x60"
            + unsigned(len(self.params))
            + bytes(self.params)
            + unsigned(len(self.results))
            + bytes(self.results)
        )


@dataclass(frozen=True)
class Import:
    """Something the host provides; ``type_index`` is for functions, ``raw`` the description's bytes."""

    module: str
    name: str
    kind: int
    type_index: int
    raw: bytes

    def encode(self) -> bytes:
        """The binary form."""
        return text(self.module) + text(self.name) + bytes([self.kind]) + self.raw


@dataclass(frozen=True)
class Table:
    """A table of references."""

    kind: int
    limits: Limits

    def encode(self) -> bytes:
        """The binary form."""
        return bytes([self.kind]) + self.limits.encode()


@dataclass(frozen=True)
class Global:
    """A global; ``init`` is its constant expression with ``end``."""

    kind: int
    mutable: bool
    init: bytes

    def encode(self) -> bytes:
        """The binary form."""
        return bytes([self.kind, self.mutable]) + self.init


@dataclass(frozen=True)
class Export:
    """A name for the index of a function, table, memory or global."""

    name: str
    kind: int
    index: int

    def encode(self) -> bytes:
        """The binary form."""
        return text(self.name) + bytes([self.kind]) + unsigned(self.index)


@dataclass(frozen=True)
class Body:
    """Code of a function: runs of locals of one type, and instructions with the last ``end``."""

    locals: tuple[tuple[int, int], ...]
    code: bytes

    def encode(self) -> bytes:
        """The binary form, with its length."""
        runs = vector([unsigned(count) + bytes([kind]) for count, kind in self.locals])
        return unsigned(len(runs) + len(self.code)) + runs + self.code


@dataclass
class Module:
    """A module in parts. Indices of functions, tables, memories and globals count imports first."""

    types: list[FuncType] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    memories: list[Limits] = field(default_factory=list)
    globals: list[Global] = field(default_factory=list)
    exports: list[Export] = field(default_factory=list)
    start: int | None = None
    elements: bytes | None = None
    data_count: int | None = None
    code: list[Body] = field(default_factory=list)
    data: bytes | None = None
    customs: list[tuple[str, bytes]] = field(default_factory=list)

    def imported(self, kind: int) -> list[Import]:
        """The imports of one kind."""
        return [item for item in self.imports if item.kind == kind]

    def type_index(self, kind: FuncType) -> int:
        """Index of a function type, added if the module lacks it."""
        if kind not in self.types:
            self.types.append(kind)
        return self.types.index(kind)

    def function_type(self, index: int) -> FuncType:
        """Type of the function with this index."""
        imported = self.imported(FUNC)
        number = imported[index].type_index if index < len(imported) else self.functions[index - len(imported)]
        return self.types[number]

    def add_function(self, kind: FuncType, body: Body) -> int:
        """Append a function and return its index."""
        self.functions.append(self.type_index(kind))
        self.code.append(body)
        return len(self.imported(FUNC)) + len(self.functions) - 1

    def add_global(self, kind: int, init: bytes, export: str | None = None) -> int:
        """Append a mutable global and return its index."""
        self.globals.append(Global(kind, True, init))
        index = len(self.imported(GLOBAL)) + len(self.globals) - 1
        if export is not None:
            self.export(export, GLOBAL, index)
        return index

    def add_memory(self, limits: Limits, export: str) -> int:
        """Append an exported memory and return its index."""
        self.memories.append(limits)
        index = len(self.imported(MEMORY)) + len(self.memories) - 1
        self.export(export, MEMORY, index)
        return index

    def export(self, name: str, kind: int, index: int) -> None:
        """Append an export.

        Raises:
            WasmError: if the module already exports that name.
        """
        if any(item.name == name for item in self.exports):
            raise WasmError(
                f"the module already exports {name!r}, a name that metering needs; was it instrumented before?"
            )
        self.exports.append(Export(name, kind, index))

    def names(self) -> dict[int, str]:
        """Function index to name: from the name section, else from exports, else ``func[i]``."""
        found = {i: f"{item.module}.{item.name}" for i, item in enumerate(self.imported(FUNC))}
        first = len(found)
        found |= {first + i: f"func[{first + i}]" for i in range(len(self.functions))}
        found |= {item.index: item.name for item in self.exports if item.kind == FUNC}
        for custom, payload in self.customs:
            if custom == "name":
                found |= _function_names(payload)
        return found

    def encode(self) -> bytes:
        """The module's bytes."""
        parts = [MAGIC]

        def section(number: int, payload: bytes) -> None:
            parts.append(bytes([number]) + unsigned(len(payload)) + payload)

        def items(number: int, entries: list[bytes]) -> None:
            if entries:
                section(number, vector(entries))

        items(1, [item.encode() for item in self.types])
        items(2, [item.encode() for item in self.imports])
        items(3, [unsigned(index) for index in self.functions])
        items(4, [item.encode() for item in self.tables])
        items(5, [item.encode() for item in self.memories])
        items(6, [item.encode() for item in self.globals])
        items(7, [item.encode() for item in self.exports])
        if self.start is not None:
            section(8, unsigned(self.start))
        if self.elements is not None:
            section(9, self.elements)
        if self.data_count is not None:
            section(12, unsigned(self.data_count))
        items(10, [item.encode() for item in self.code])
        if self.data is not None:
            section(11, self.data)
        for name, payload in self.customs:
            section(0, text(name) + payload)
        return b"".join(parts)


def _function_names(payload: bytes) -> dict[int, str]:
    """Names out of a name section; a damaged one names nothing, as the specification wants."""
    reader, found = Reader(payload), {}
    try:
        while reader.at < reader.end:
            kind, size = reader.byte(), reader.u32()
            part = Reader(payload, reader.at, reader.at + size)
            reader.take(size)
            if kind == 1:
                found = {part.u32(): part.name() for _ in range(part.u32())}
    except WasmError:
        return {}
    return found


def with_code(body: Body, code: bytes, scratch: tuple[int, ...] = ()) -> Body:
    """The body with other instructions and more locals, which take the indices after its own."""
    return replace(body, locals=body.locals + tuple((1, kind) for kind in scratch), code=code)
