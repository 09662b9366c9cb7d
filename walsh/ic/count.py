"""Instructions of a Wasm module, counted by running it: a plain export, or a method of a canister.

A plain module's export is called with integers. A canister is installed in the miniature replica and its method is
called there, so that system calls and pages are charged as well. The count is exact, hence running twice, once for the
breakdown by opcode and once for call stacks, gives the same count twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import wasmtime

from walsh.ic.costs import Costs, default_costs
from walsh.ic.errors import RejectError, UnsupportedWasmError, WasmError
from walsh.ic.metering import COUNTER, Breakdown, Metered, meter
from walsh.ic.module import FUNC
from walsh.ic.paging import ACCESSED, WRITTEN
from walsh.ic.profile import Row, SegmentProfile, StackProfile, folded, frames, rows
from walsh.ic.replica import EMPTY, Canister, Replica
from walsh.ic.replica.program import engine
from walsh.ic.wasm import decode


@dataclass(frozen=True)
class Count:
    """What a run took.

    Attributes:
        version: of the cost table; print it beside every number.
        pages_policy: name of the page policy, or "none".
        total: instructions; ``code + system + pages``.
        code: of the module's own instructions, bulk bytes included.
        system: of system calls.
        pages: of pages of memory touched.
        accessed, written: how many pages were.
        error: why it failed, or None; a failed run paid for what it began.
        rows: instructions by function and opcode, the most expensive first; without system calls and pages.
        stacks: the same by call stack in the folded format, system calls and pages included.
    """

    version: str
    pages_policy: str
    total: int
    code: int
    system: int
    pages: int
    accessed: int
    written: int
    error: str | None
    rows: list[Row]
    stacks: str

    def by_function(self) -> list[tuple[str, int]]:
        """(function, instructions), the most expensive first."""
        return _totals((row.function, row.instructions) for row in self.rows)

    def by_category(self) -> list[tuple[str, int]]:
        """(class of opcodes, instructions), the most expensive first."""
        return _totals((row.category, row.instructions) for row in self.rows)


def _totals(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    sums: Counter[str] = Counter()
    for name, amount in pairs:
        sums[name] += amount
    return sums.most_common()


def is_canister(wasm: bytes) -> bool:
    """Whether a module imports system calls or exports canister methods."""
    module = decode(wasm)
    exports = any(item.kind == FUNC and item.name.startswith("canister_") for item in module.exports)
    return exports or any(item.module == "ic0" for item in module.imports)


def exported_functions(wasm: bytes) -> list[str]:
    """Names of the exported functions."""
    return [item.name for item in decode(wasm).exports if item.kind == FUNC]


def count_call(
    wasm: bytes, export: str, arguments: Sequence[int] = (), *, pages: str | None = None, costs: Costs | None = None
) -> Count:
    """Count one call of an exported function of a module without imports.

    Args:
        wasm: the module.
        export: the function's name.
        arguments: integers, one for each parameter; floats take them as well.
        pages: name of a page policy; None leaves pages out.
        costs: another table.

    Raises:
        WasmError: for bytes that are no valid module, or without that export.
        UnsupportedWasmError: for a module that a replica refuses, or that imports anything.
    """
    table = default_costs() if costs is None else costs
    imports = decode(wasm).imports
    if imports:
        raise UnsupportedWasmError(f"import {imports[0].module}.{imports[0].name}: expected a module without imports")
    if export not in exported_functions(wasm):
        there = ", ".join(exported_functions(wasm)) or "none"
        raise WasmError(f"no exported function {export!r}: expected one of {there}")
    plain, dump, _ = _run(wasm, export, arguments, pages, "segments", table)
    found = rows(dump, plain.sites, plain.names, table)
    stacked, tree, (total, accessed, written, error) = _run(wasm, export, arguments, pages, "stacks", table)
    policy = stacked.policy
    paid = 0 if policy is None else accessed * policy.access + written * policy.write
    late = paid if policy is not None and policy.at_end else 0
    return Count(
        version=table.version,
        pages_policy="none" if policy is None else policy.name,
        total=total + late,
        code=total + late - paid,
        system=0,
        pages=paid,
        accessed=accessed,
        written=written,
        error=error,
        rows=found,
        stacks=folded(frames(tree, stacked.names)) + (f"host;pages {late}\n" if late else ""),
    )


def _run(
    wasm: bytes, export: str, arguments: Sequence[int], pages: str | None, breakdown: Breakdown, costs: Costs
) -> tuple[Metered, bytes, tuple[int, int, int, str | None]]:
    """Run once; the metered module, its profile memory, and (counter, pages accessed, pages written, error)."""
    metered = meter(wasm, pages=pages or False, breakdown=breakdown, costs=costs)
    store, error = wasmtime.Store(engine()), None
    try:
        compiled = wasmtime.Module(engine(), metered.wasm)
    except wasmtime.WasmtimeError as problem:
        raise WasmError(f"the module is not valid: {problem}") from problem
    exports = wasmtime.Instance(store, compiled, []).exports(store)
    function = exports[export]
    assert isinstance(function, wasmtime.Func)
    params = [str(kind) for kind in function.type(store).params]
    if len(params) != len(arguments):
        raise WasmError(f"{export} takes {len(params)} arguments ({' '.join(params)}): {len(arguments)} given")
    try:
        function(store, *(float(v) if kind[0] == "f" else v for v, kind in zip(arguments, params, strict=True)))
    except wasmtime.Trap as trap:
        error = trap.message.strip().splitlines()[-1].strip()
    memory = exports[SegmentProfile.EXPORT if breakdown == "segments" else StackProfile.EXPORT]
    assert isinstance(memory, wasmtime.Memory)

    def value(name: str) -> int:
        found = exports.get(name)
        return int(found.value(store)) if isinstance(found, wasmtime.Global) else 0

    return metered, bytes(memory.read(store, 0)), (value(COUNTER), value(ACCESSED), value(WRITTEN), error)


def count_method(
    wasm: bytes,
    method: str,
    argument: bytes = EMPTY,
    *,
    init: bytes = EMPTY,
    query: bool = False,
    pages: str | None = None,
    costs: Costs | None = None,
) -> Count:
    """Count one call of a canister's method in the miniature replica.

    Args:
        wasm: the canister.
        method: the method's name, without ``canister_update``.
        argument, init: Candid bytes for the method and for ``canister_init``.
        query: call it as a query.
        pages: name of a page policy; None is the one in force.
        costs: another table.

    Raises:
        WasmError, UnsupportedWasmError, PayloadError, TrapError: if it cannot be installed.
    """
    table = default_costs() if costs is None else costs

    def run(breakdown: Breakdown) -> Canister:
        replica = Replica(costs=table, pages=pages, breakdown=breakdown)
        canister = replica.install(wasm, init)
        canister.instance.recorder.reset()
        replica.receipts.clear()
        try:
            (canister.query if query else canister.update)(method, argument)
        except RejectError:
            if not replica.receipts:
                raise
        return canister

    found = run("segments").rows()
    canister = run("stacks")
    receipts = list(canister.replica.receipts)
    return Count(
        version=table.version,
        pages_policy=table.page_policy(pages).name,
        total=sum(receipt.instructions for receipt in receipts),
        code=sum(receipt.code for receipt in receipts),
        system=sum(receipt.system for receipt in receipts),
        pages=sum(receipt.pages for receipt in receipts),
        accessed=sum(receipt.accessed for receipt in receipts),
        written=sum(receipt.written for receipt in receipts),
        error=next((receipt.error for receipt in receipts if receipt.error), None),
        rows=found,
        stacks=canister.folded(),
    )
