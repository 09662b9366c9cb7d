"""Where instructions go: by segment, and by call stack for flame graphs.

**Segments.** A memory holds one 64-bit slot per segment, counting how often it was entered, and one per bulk operation,
summing bytes. Counts by function, category and instruction follow by multiplication, exactly:

    instructions(f, op) = sum over segments s of f:  entered(s) * occurrences(s, op) * weight(op)

**Stacks.** A memory holds a tree of calls; a node is 32 bytes: function, first child, next sibling, parent (u32),
instructions, calls (u64). A global holds the current node; a function enters its node, and its caller puts its own back
after the call, which needs no hook on any way out. Node 0 is the host.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from walsh.ic.assembler import EMPTY_BLOCK, code, sequence
from walsh.ic.binary import I32, Limits
from walsh.ic.costs import Costs
from walsh.ic.module import Body, FuncType, Module
from walsh.ic.opcodes import BY_NAME
from walsh.ic.segments import ENTRY

ROOT = Limits(1, None)
_FUNCTION, _CHILD, _SIBLING, _PARENT, _SELF, _CALLS = 0, 4, 8, 12, 16, 24
_NODE = struct.Struct("<IIIIQQ")


@dataclass(frozen=True)
class Site:
    """What one slot counts: entries of a segment, or bytes of a bulk operation of function ``function``."""

    function: int
    counts: Mapping[str, int]
    bulk: bool


@dataclass
class SegmentProfile:
    """Hands out slots and emits the code that counts in them."""

    EXPORT: ClassVar[str] = "canister profile_segments"
    memory: int = 0
    sites: list[Site] = field(default_factory=list)

    def limits(self) -> Limits:
        """Size of the memory for the slots handed out so far."""
        pages = max(1, -(-8 * len(self.sites) // 65536))
        return Limits(pages, pages)

    def _slot(self, site: Site, amount: bytes) -> bytes:
        offset = 8 * len(self.sites)
        self.sites.append(site)
        head = sequence(("i32.const", 0), ("i32.const", 0), ("i64.load", self.memory, offset))
        return head + amount + sequence("i64.add", ("i64.store", self.memory, offset))

    def count(self, site: Site) -> bytes:
        """Add one to a new slot."""
        return self._slot(site, code("i64.const", 1))

    def add(self, site: Site, local: int) -> bytes:
        """Add the i32 on top of the stack, which stays there, to a new slot."""
        return code("local.tee", local) + self._slot(site, sequence(("local.get", local), "i64.extend_i32_u"))


class StackProfile:
    """Emits the tree of calls into a module."""

    EXPORT = "canister profile_stacks"
    CURRENT = "canister profile_current"

    def __init__(self, module: Module) -> None:
        zero = sequence(("i32.const", 0), "end")
        self.current = module.add_global(I32, zero, self.CURRENT)
        self.top = module.add_global(I32, sequence(("i32.const", _NODE.size), "end"))
        self.memory = module.add_memory(ROOT, self.EXPORT)
        self.find = module.add_function(FuncType((I32,), (I32,)), self._find())

    def _find(self) -> Body:
        """``find(function) -> node``: the child of the current node for this function, made if need be."""
        wanted, node, parent = 0, 1, 2
        memory = self.memory

        def field_of(offset: int) -> tuple[str | int, ...]:
            return "i32.load", memory, offset

        search = (
            sequence(("global.get", self.current), ("local.tee", parent), field_of(_CHILD), ("local.set", node))
            + sequence(("block", EMPTY_BLOCK), ("loop", EMPTY_BLOCK))
            + sequence(("local.get", node), "i32.eqz", ("br_if", 1))
            + sequence(("local.get", node), field_of(_FUNCTION), ("local.get", wanted), "i32.eq")
            + sequence(("if", EMPTY_BLOCK), ("local.get", node), "return", "end")
            + sequence(("local.get", node), field_of(_SIBLING), ("local.set", node), ("br", 0), "end", "end")
        )
        room = sequence(
            ("global.get", self.top), ("i32.const", _NODE.size), "i32.add", ("memory.size", memory), ("i32.const", 16)
        )
        grow = room + sequence("i32.shl", "i32.gt_u", ("if", EMPTY_BLOCK), ("i32.const", 16), ("memory.grow", memory))
        grow += sequence(("i32.const", -1), "i32.eq", ("if", EMPTY_BLOCK), "unreachable", "end", "end")

        def put(offset: int, *value: str | tuple[str | int, ...]) -> bytes:
            return code("local.get", node) + sequence(*value, ("i32.store", memory, offset))

        make = (
            sequence(("global.get", self.top), ("local.set", node))
            + put(_FUNCTION, ("local.get", wanted))
            + put(_SIBLING, ("local.get", parent), field_of(_CHILD))
            + put(_PARENT, ("local.get", parent))
            + sequence(("local.get", parent), ("local.get", node), ("i32.store", memory, _CHILD))
            + sequence(("global.get", self.top), ("i32.const", _NODE.size), "i32.add", ("global.set", self.top))
            + sequence(("local.get", node), "end")
        )
        return Body(((2, I32),), search + grow + make)

    def _increase(self, node: bytes, offset: int, amount: bytes) -> bytes:
        return (
            node
            + node
            + code("i64.load", self.memory, offset)
            + amount
            + sequence("i64.add", ("i64.store", self.memory, offset))
        )

    def enter(self, function: int, local: int) -> bytes:
        """At a function's head: find its node and make it current."""
        found = sequence(
            ("i32.const", function), ("call", self.find), ("local.tee", local), ("global.set", self.current)
        )
        return found + self._increase(code("local.get", local), _CALLS, code("i64.const", 1))

    def resume(self, local: int) -> bytes:
        """After a call: the caller is current again."""
        return sequence(("local.get", local), ("global.set", self.current))

    def leave(self, local: int) -> bytes:
        """Before a tail call: the caller's caller is current, so that the callee becomes its child."""
        return sequence(("local.get", local), ("i32.load", self.memory, _PARENT), ("global.set", self.current))

    def add(self, local: int, amount: bytes) -> bytes:
        """Add to the node in a local."""
        return self._increase(code("local.get", local), _SELF, amount)

    def add_to_current(self, amount: bytes) -> bytes:
        """Add to the current node."""
        return self._increase(code("global.get", self.current), _SELF, amount)


@dataclass(frozen=True)
class Row:
    """Instructions of one opcode in one function: how many ran, and what they cost."""

    function: str
    category: str
    opcode: str
    executed: int
    instructions: int


def rows(slots: bytes, sites: Iterable[Site], names: Mapping[int, str], costs: Costs) -> list[Row]:
    """Exact counts by function and opcode.

    Args:
        slots: the exported memory ``canister profile_segments``.
        sites, names, costs: of :class:`walsh.ic.metering.Metered`.

    Returns:
        One row per (function, opcode) that ran, the most expensive first. The costs add up to the counter, less what
        the host charged for system calls and pages. Bytes of bulk operations are part of their opcode's cost.
    """
    executed: Counter[tuple[int, str]] = Counter()
    cost: Counter[tuple[int, str]] = Counter()
    weights = {**costs.opcodes, ENTRY: costs.function_entry}
    for place, site in enumerate(sites):
        (slot,) = struct.unpack_from("<Q", slots, 8 * place)
        for name, occurrences in site.counts.items():
            if site.bulk:
                cost[site.function, name] += slot * costs.bulk_byte
            else:
                executed[site.function, name] += slot * occurrences
                cost[site.function, name] += slot * occurrences * weights[name]

    def row(key: tuple[int, str]) -> Row:
        category = "function entry" if key[1] == ENTRY else BY_NAME[key[1]].category
        return Row(names[key[0]], category, key[1], executed[key], cost[key])

    ran = [row(key) for key in cost if executed[key] or cost[key]]
    return sorted(ran, key=lambda item: (-item.instructions, item.function, item.opcode))


_WORD = re.compile(r"[sB][0-9A-Za-z]*_|(?P<length>[1-9][0-9]*)_?")


def readable(name: str) -> str:
    """The identifiers of a mangled Rust name (scheme v0, ``_R``), generic arguments among them; any other as it is."""
    if not name.startswith("_R"):
        return name
    at, words = 2, []
    while at < len(name):
        found = _WORD.match(name, at)
        at = found.end() if found else at + 1
        if found and found["length"]:
            words.append(name[at : at + int(found["length"])])
            at += int(found["length"])
    return "::".join(words) or name


@dataclass(frozen=True)
class Frame:
    """A node of the call tree: its address, the names from the host inwards, own instructions, and calls."""

    node: int
    stack: tuple[str, ...]
    instructions: int
    calls: int


def frames(tree: bytes, names: Mapping[int, str]) -> Iterator[Frame]:
    """Every node of the exported memory ``canister profile_stacks``, parents first; the host has the empty stack."""
    stacks: dict[int, tuple[str, ...]] = {}
    todo = [0]
    while todo:
        at = todo.pop()
        function, child, sibling, parent, own, calls = _NODE.unpack_from(tree, at)
        stacks[at] = (*stacks[parent], names[function]) if at else ()
        yield Frame(at, stacks[at], own, calls)
        todo += [place for place in (sibling, child) if place]


def folded(nodes: Iterable[Frame], root: str = "host") -> str:
    """Frames in the folded format of flame-graph tools: ``a;b;c instructions`` a line, sorted."""
    totals: Counter[str] = Counter()
    for node in nodes:
        if node.instructions:
            totals[";".join(name.replace(";", ":") for name in (root, *node.stack))] += node.instructions
    return "".join(f"{stack} {count}\n" for stack, count in sorted(totals.items()))
