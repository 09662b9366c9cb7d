"""A canister's module made ready: checked against what a replica installs, metered, with its state within reach.

Added to the metered module: the heap as ``canister heap`` and table 0 as ``canister table``, a start function as the
export ``canister start`` (it must run at install only), for mutable globals two functions, ``canister save`` and
``canister restore``, that copy them to and from the memory ``canister saved_globals``, and ``canister begin``, which
takes a message's limit and sets the counters to 0.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import wasmtime

from walsh.ic.assembler import code, sequence
from walsh.ic.binary import F32, F64, I32, I64, V128, Limits
from walsh.ic.costs import Costs, PagePolicy
from walsh.ic.errors import PayloadError, UnsupportedWasmError, WasmError
from walsh.ic.metering import COUNTER, LIMIT, Breakdown, Metered, meter
from walsh.ic.module import FUNC, GLOBAL, MEMORY, TABLE, Body, FuncType, Module
from walsh.ic.paging import ACCESSED, WRITTEN
from walsh.ic.wasm import decode

HEAP, FUNCTIONS, START = "canister heap", "canister table", "canister start"
SAVE, RESTORE, SAVED, BEGIN = "canister save", "canister restore", "canister saved_globals", "canister begin"
_STORES = {I32: "i32.store", I64: "i64.store", F32: "f32.store", F64: "f64.store", V128: "v128.store"}
_LOADS = {kind: name.replace("store", "load") for kind, name in _STORES.items()}
_FORGOTTEN = frozenset({"table.set", "table.grow", "table.fill", "table.copy", "table.init", "elem.drop", "data.drop"})
"""Instructions that change what a replica does not keep between messages."""


@cache
def engine() -> wasmtime.Engine:
    """The engine all canisters share: deterministic NaNs, and several memories for bookkeeping."""
    config = wasmtime.Config()
    config.cranelift_nan_canonicalization = True
    config.wasm_multi_memory = True
    config.wasm_tail_call = True
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    return wasmtime.Engine(config)


@dataclass(frozen=True)
class Program:
    """A compiled canister.

    Attributes:
        digest: SHA-256 of the module as it was given.
        module: compiled.
        policy: how pages are charged.
        imports: names of the system calls it uses.
        exports: names of its exported functions.
        has_heap, has_table, has_start: what it has.
        fresh: whether every message needs a new instance, because the code changes tables or segments.
        metered: how to read what it counts.
    """

    digest: bytes
    module: wasmtime.Module
    policy: PagePolicy
    imports: tuple[str, ...]
    exports: frozenset[str]
    has_heap: bool
    has_table: bool
    has_start: bool
    fresh: bool
    metered: Metered

    def entry(self, method: str, kinds: tuple[str, ...] = ("update", "query")) -> tuple[str, str] | None:
        """(kind, export name) of a public method."""
        for kind in kinds:
            if f"canister_{kind} {method}" in self.exports:
                return kind, f"canister_{kind} {method}"
        return None


def _check(original: Module, wasm: bytes, costs: Costs, known: frozenset[str]) -> None:
    limits = costs.limits
    if len(wasm) > limits.module_bytes:
        raise PayloadError(f"module of {len(wasm)} bytes: expected at most {limits.module_bytes}")
    code_bytes = sum(len(body.code) for body in original.code)
    if code_bytes > limits.code_bytes:
        raise PayloadError(
            f"code of {code_bytes} bytes: expected at most {limits.code_bytes}; strip or optimise for size"
        )
    if len(original.functions) > limits.functions:
        raise UnsupportedWasmError(f"{len(original.functions)} functions: expected at most {limits.functions}")
    for item in original.imports:
        if item.kind != FUNC or item.module != "ic0" or item.name not in known:
            raise UnsupportedWasmError(
                f"import {item.module}.{item.name}: a canister may import the functions of ic0 only; "
                "build for wasm32-unknown-unknown, or replace WASI calls first"
            )


def _expose(module: Module, original: Module) -> None:
    """Add the exports that the module docstring lists."""
    if original.memories:
        module.export(HEAP, MEMORY, 0)
    if original.tables:
        module.export(FUNCTIONS, TABLE, 0)
    if module.start is not None:
        module.export(START, FUNC, module.start)
        module.start = None
    mutable = [(index, item.kind) for index, item in enumerate(original.globals) if item.mutable]
    if any(kind not in _STORES for _, kind in mutable):
        raise UnsupportedWasmError("a mutable global that holds a reference cannot be kept between messages")
    pages = max(1, -(-16 * len(mutable) // 65536))
    memory = module.add_memory(Limits(pages, pages), SAVED)
    save = restore = b""
    for place, (index, kind) in enumerate(mutable):
        address = code("i32.const", 0)
        save += address + code("global.get", index) + code(_STORES[kind], memory, 16 * place)
        restore += address + code(_LOADS[kind], memory, 16 * place) + code("global.set", index)
    places = {item.name: item.index for item in module.exports if item.kind == GLOBAL}
    begin = sequence(("local.get", 0), ("global.set", places[LIMIT]))
    for counter in (COUNTER, ACCESSED, WRITTEN):
        if counter in places:
            begin += sequence(("i64.const", 0), ("global.set", places[counter]))
    for name, params, body in ((SAVE, (), save), (RESTORE, (), restore), (BEGIN, (I64,), begin)):
        module.export(name, FUNC, module.add_function(FuncType(params, ()), Body((), body + code("end"))))


def prepare(
    wasm: bytes, costs: Costs, policy: str | None, known: frozenset[str], breakdown: Breakdown | None = None
) -> Program:
    """Check, meter and compile a canister.

    Args:
        wasm: the module.
        costs: what to charge by.
        policy: name of the page policy; None is the one in force.
        known: the system calls there are.
        breakdown: what to record beside counts, see :func:`walsh.ic.metering.meter`.

    Raises:
        WasmError: for bytes that are no valid module.
        UnsupportedWasmError, PayloadError: for a module that a replica does not install.
    """
    original = decode(wasm)
    _check(original, wasm, costs, known)
    metered = meter(wasm, pages=policy or True, breakdown=breakdown, limit=True, costs=costs)
    _expose(metered.module, original)
    try:
        compiled = wasmtime.Module(engine(), metered.wasm)
    except wasmtime.WasmtimeError as error:
        raise WasmError(f"the module is not valid: {error}") from error
    return Program(
        digest=hashlib.sha256(wasm).digest(),
        module=compiled,
        policy=costs.page_policy(policy),
        imports=tuple(dict.fromkeys(item.name for item in original.imports)),
        exports=frozenset(item.name for item in original.exports if item.kind == FUNC),
        has_heap=bool(original.memories),
        has_table=bool(original.tables),
        has_start=original.start is not None,
        fresh=bool(metered.used & _FORGOTTEN),
        metered=metered,
    )
