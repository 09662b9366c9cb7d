"""Exact instruction counts: a Wasm-to-Wasm pass that makes a module count what a replica would charge it.

At the head of every segment (see :mod:`walsh.ic.segments`) goes ``counter += cost``, and before ``memory.fill``,
``copy`` and ``init`` ``counter += bytes``. The counter is the i64 global ``canister counter_instructions``, exported,
counting up; nothing injected is charged. Nothing is renumbered: what the pass adds comes last in every index space.

Options add to this

- **a limit**: the i64 global ``canister instruction_limit``; functions, loops and bulk operations trap past it;
- **pages** (:mod:`walsh.ic.paging`): every page of heap is charged at its first access and first write;
- **a breakdown** (:mod:`walsh.ic.profile`): how often each segment ran, or instructions by call stack.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from walsh.ic.assembler import EMPTY_BLOCK, code, sequence
from walsh.ic.binary import I32, I64
from walsh.ic.costs import Costs, PagePolicy, default_costs
from walsh.ic.errors import WasmError
from walsh.ic.module import FUNC, MEMORY, Body, FuncType, Module, with_code
from walsh.ic.paging import Paging
from walsh.ic.profile import ROOT, SegmentProfile, Site, StackProfile
from walsh.ic.segments import ENTRY, Segment, analyse
from walsh.ic.wasm import Instruction, decode

COUNTER = "canister counter_instructions"
LIMIT = "canister instruction_limit"
BULK = frozenset({"memory.fill", "memory.copy", "memory.init"})
_CALLS = frozenset({"call", "call_indirect"})
_TAIL_CALLS = frozenset({"return_call", "return_call_indirect"})

Breakdown = Literal["segments", "stacks"]


@dataclass(frozen=True)
class Metered:
    """A module that counts.

    Attributes:
        module: the instrumented module, in parts.
        costs: the table it counts by.
        policy: how pages are charged, or None where they are not tracked.
        breakdown: what it records beside the total.
        names: original function index to name.
        sites: what each slot of the segment profile stands for.
        static: weights of every function's code, each instruction once, by function index.
        used: names of the instructions that occur anywhere in the code.
    """

    module: Module
    costs: Costs
    policy: PagePolicy | None
    breakdown: Breakdown | None
    names: dict[int, str]
    sites: tuple[Site, ...]
    static: dict[int, int]
    used: frozenset[str]

    @property
    def wasm(self) -> bytes:
        """The instrumented module."""
        return self.module.encode()


def instrument(
    wasm: bytes, *, pages: bool = False, breakdown: Breakdown | None = None, costs: Costs | None = None
) -> bytes:
    """Make a module count its instructions.

    Args:
        wasm: a module in the binary format.
        pages: charge heap pages by the policy in force as well; such a module needs an engine with several memories.
        breakdown: record where instructions go, see :func:`meter`.
        costs: another table than the one that comes with walsh.

    Returns:
        The module with the counter exported as the i64 global ``canister counter_instructions``.

    Raises:
        WasmError: for bytes that are no module, or a module that was instrumented before.
        UnsupportedWasmError: for a module that a replica refuses.
    """
    return meter(wasm, pages=pages, breakdown=breakdown, costs=costs).wasm


def meter(
    wasm: bytes,
    *,
    pages: bool | str = False,
    breakdown: Breakdown | None = None,
    limit: bool = False,
    costs: Costs | None = None,
) -> Metered:
    """Make a module count, and say how to read what it counted.

    Args:
        wasm: a module in the binary format.
        pages: False, True for the policy in force, or a policy's name.
        breakdown: ``segments`` records how often each segment ran, from which follow the counts of every function and
            instruction; ``stacks`` records instructions by call stack.
        limit: add the global ``canister instruction_limit`` and trap past it.
        costs: another table than the one that comes with walsh.

    Raises:
        WasmError, UnsupportedWasmError: see :func:`instrument`.
        CostTableError: for an unknown page policy.
    """
    table = default_costs() if costs is None else costs
    policy = table.page_policy(None if pages is True else pages) if pages else None
    return _Pass(decode(wasm), table, policy, breakdown, limit).run()


@dataclass
class _Scratch:
    """Locals that a function lends to the pass, by type and turn."""

    first: int
    kinds: list[int] = field(default_factory=list)
    found: dict[tuple[int, int], int] = field(default_factory=dict)

    def __call__(self, kind: int, turn: int = 0) -> int:
        key = (kind, turn)
        if key not in self.found:
            self.found[key] = self.first + len(self.kinds)
            self.kinds.append(kind)
        return self.found[key]


class _Pass:
    """One run over a module, which it changes."""

    def __init__(
        self, module: Module, costs: Costs, policy: PagePolicy | None, breakdown: Breakdown | None, limit: bool
    ) -> None:
        self.module, self.costs, self.policy, self.breakdown = module, costs, policy, breakdown
        self.imports = len(module.imported(FUNC))
        self.names = module.names()
        self.static: dict[int, int] = {}
        self.used: set[str] = set()
        heap = bool(module.memories or module.imported(MEMORY))
        self.counter = module.add_global(I64, sequence(("i64.const", 0), "end"), COUNTER)
        self.limit = module.add_global(I64, sequence(("i64.const", -1), "end"), LIMIT) if limit else None
        self.segments = SegmentProfile() if breakdown == "segments" else None
        self.stacks: StackProfile | None = None
        self.paging: Paging | None = None
        self.originals = len(module.code)
        if self.segments is not None:
            self.segments.memory = module.add_memory(ROOT, SegmentProfile.EXPORT)
        if breakdown == "stacks":
            self.stacks = StackProfile(module)
        if policy is not None and heap:
            self.paging = Paging(module, policy, self.charge_pages, self.check)
        self.bulk: int | None = None

    def run(self) -> Metered:
        for number in range(self.originals):
            index = self.imports + number
            try:
                self.module.code[number] = self._rewrite(index, self.module.code[number])
            except WasmError as error:
                raise type(error)(f"function {self.names[index]}: {error}") from error
        sites: tuple[Site, ...] = ()
        if self.segments is not None:
            sites = tuple(self.segments.sites)
            imported = len(self.module.imported(MEMORY))
            self.module.memories[self.segments.memory - imported] = self.segments.limits()
        return Metered(
            self.module, self.costs, self.policy, self.breakdown, self.names, sites, self.static, frozenset(self.used)
        )

    def charge(self, amount: bytes) -> bytes:
        """``counter += amount``, where ``amount`` leaves an i64."""
        return code("global.get", self.counter) + amount + sequence("i64.add", ("global.set", self.counter))

    def charge_pages(self, amount: bytes) -> bytes:
        """Charge pages to the counter and to the stack that touched them."""
        recorded = b"" if self.stacks is None else self.stacks.add_to_current(amount)
        return self.charge(amount) + recorded

    def check(self) -> bytes:
        """Trap if the counter is past the limit."""
        if self.limit is None:
            return b""
        compare = (("global.get", self.counter), ("global.get", self.limit), "i64.gt_u")
        return sequence(*compare, ("if", EMPTY_BLOCK), "unreachable", "end")

    def _charge_bytes(self) -> bytes:
        """Call the helper ``bytes -> bytes`` that charges for them, made when first needed."""
        if self.bulk is None:
            amount = sequence(("local.get", 0), "i64.extend_i32_u", ("i64.const", self.costs.bulk_byte), "i64.mul")
            recorded = b"" if self.stacks is None else self.stacks.add_to_current(amount)
            body = self.charge(amount) + recorded + self.check() + sequence(("local.get", 0), "end")
            self.bulk = self.module.add_function(FuncType((I32,), (I32,)), Body((), body))
        return code("call", self.bulk)

    def _rewrite(self, index: int, body: Body) -> Body:
        line = analyse(body, self.costs)
        self.static[index] = sum(segment.cost for segment in line.segments)
        self.used.update(*(segment.counts for segment in line.segments))
        kind = self.module.function_type(index)
        scratch = _Scratch(len(kind.params) + sum(count for count, _ in body.locals))
        heads = {segment.start: segment for segment in line.segments}
        out = bytearray()
        if self.stacks is not None:
            out += self.stacks.enter(index, scratch(I32, -1))
        for item in line.instructions:
            if item.start in heads:
                out += self._head(index, heads[item.start], scratch)
            out += self._before(index, item, scratch)
            out += body.code[item.start : item.end]
            if self.stacks is not None and item.opcode.name in _CALLS:
                out += self.stacks.resume(scratch(I32, -1))
        return with_code(body, bytes(out), tuple(scratch.kinds))

    def _head(self, index: int, segment: Segment, scratch: _Scratch) -> bytes:
        """What goes in front of a segment."""
        out = b""
        if segment.cost:
            out = self.charge(code("i64.const", segment.cost))
            if self.segments is not None:
                out += self.segments.count(Site(index, segment.counts, bulk=False))
            if self.stacks is not None:
                out += self.stacks.add(scratch(I32, -1), code("i64.const", segment.cost))
        if segment.loops or ENTRY in segment.counts:
            out += self.check()
        return out

    def _before(self, index: int, item: Instruction, scratch: _Scratch) -> bytes:
        """What goes in front of one instruction."""
        name = item.opcode.name
        if name in BULK:
            out = self._charge_bytes()
            if self.segments is not None:
                out += self.segments.add(Site(index, Counter({name: 1}), bulk=True), scratch(I32))
            if self.paging is not None:
                out += self.paging.bulk(name, scratch(I32), scratch(I32, 1), scratch(I32, 2))
            return out
        if item.opcode.width and self.paging is not None:
            return self.paging.access(item, scratch)
        if self.stacks is not None and name in _TAIL_CALLS:
            return self.stacks.leave(scratch(I32, -1))
        return b""
