"""Known answers, the shape of what the pass makes, and what it refuses."""

import pytest
import wasmtime

from walsh.ic.errors import UnsupportedWasmError, WasmError
from walsh.ic.metering import COUNTER, LIMIT, instrument, meter
from walsh.ic.profile import StackProfile, folded, frames
from walsh.ic.wasm import decode

GLOBAL = '(global $g (export "g") (mut i64) (i64.const 0))'


def additions(n: int) -> str:
    """2n + 4: read a global, add n times, write it back."""
    return f"global.get $g {'i64.const 1 i64.add ' * n} global.set $g "


def module(code: str, more: str = "") -> str:
    return f'(module {GLOBAL} {more} (func (export "f") (local $i i32) {code}))'


TURN = "local.get $i i32.const 1 i32.add local.set $i local.get $i i32.const 5 i32.lt_s br_if 0"
KNOWN = {
    "plain": (additions(10), 25),
    "return": (additions(10) + "return", 26),
    "unreachable": (additions(10) + "unreachable", 26),
    "block": (f"block {additions(10)} end", 25),
    "loop": (f"{additions(5)} loop {additions(10)} {TURN} end {additions(20)} {additions(30)}", 288),
    "block does not split": (f"{additions(1)} block {additions(1)} unreachable end {additions(9)}", 1 + 6 + 6 + 1),
    "dead code is not charged": (f"return {additions(10)}", 2),
    "if not taken": (f"i32.const 0 if {additions(10)} end", 1 + 3),
    "if taken": (f"i32.const 1 if {additions(10)} else {additions(3)} end", 1 + 3 + 24),
    "else": (f"i32.const 0 if {additions(10)} else {additions(3)} end", 1 + 3 + 10),
    "call does not split": ("call $t i32.const 1 drop", 1 + 5 + 2 + 1 + 1),
    "typed select": ("i32.const 1 i32.const 2 i32.const 3 select (result i32) drop", 1 + 5),
    "branch out": (f"block br 0 {additions(50)} end", 1 + 2),
}


@pytest.mark.parametrize(
    "options", [{}, {"breakdown": "segments"}, {"breakdown": "stacks"}, {"pages": True}, {"limit": True}]
)
@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(run, wat, name: str, options: dict) -> None:
    code, count = KNOWN[name]
    wasm = wat(module(code, "(memory 1) (func $t unreachable)"))
    assert run(meter(wasm, **options).wasm).counter == count


@pytest.mark.parametrize("n", [0, 1, 2, 17])
def test_one_more_addition_costs_two(run, wat, n: int) -> None:
    assert run(instrument(wat(module(additions(n))))).counter == 1 + 2 * n + 4


def test_the_counter_counts_up_over_calls(wat) -> None:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    wasm = instrument(wat(module(additions(10))))
    exports = wasmtime.Instance(store, wasmtime.Module(engine, wasm), []).exports(store)
    for turn in range(1, 4):
        exports["f"](store)
        assert exports[COUNTER].value(store) == 25 * turn
    assert exports["g"].value(store) == 30


def test_nothing_is_renumbered(wat) -> None:
    before = decode(wat(module(additions(1), '(memory (export "m") 1) (table 1 funcref) (func $t (export "t"))')))
    after = decode_instrumented(before.encode())
    assert after.exports[: len(before.exports)] == before.exports
    assert after.globals[: len(before.globals)] == before.globals
    assert after.functions[: len(before.functions)] == before.functions
    assert after.customs == before.customs


def decode_instrumented(wasm: bytes):
    return decode(instrument(wasm))


def test_past_its_limit_a_loop_traps(wat, run) -> None:
    endless = meter(wat(module("loop block end br 0 end")), limit=True).wasm
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, endless), []).exports(store)
    exports[LIMIT].set_value(store, 1000)
    with pytest.raises(wasmtime.Trap):
        exports["f"](store)
    assert 1000 < exports[COUNTER].value(store) <= 1003


@pytest.mark.parametrize(
    ("code", "accessed", "written"),
    [
        ("i32.const 0 i32.load drop", 1, 0),
        ("i32.const 65535 i32.load8_u drop", 1, 0),
        ("i32.const 65533 i32.load drop", 2, 0),
        ("i32.const 65532 i32.load drop i32.const 0 i32.const 1 i32.store8", 1, 1),
        ("i32.const 0 i32.const 1 i32.store i32.const 8 i32.const 1 i32.store", 1, 1),
        ("i32.const 0 v128.load offset=65521 drop", 2, 0),
        ("i32.const 0 i32.const 0 i32.const 131073 memory.fill", 3, 3),
        ("i32.const 131072 i32.const 0 i32.const 1 memory.copy", 2, 1),
        ("i32.const 0 i32.const 65536 i32.const 0 memory.copy", 0, 0),
        ("i32.const -1 i32.load offset=4294967295 drop", 0, 0),
        ("i32.const 262143 i32.load drop", 0, 0),
        ("i32.const 1 memory.grow drop i32.const 262144 i32.load drop", 1, 0),
    ],
)
def test_pages(run, wat, code: str, accessed: int, written: int) -> None:
    wasm = wat(module(code, "(memory 4 5)"))
    plain, paged, before = (run(meter(wasm, pages=pages).wasm) for pages in (False, True, "before-2026-07"))
    assert paged.exports["canister counter_pages_accessed"].value(paged.store) == accessed
    assert paged.exports["canister counter_pages_written"].value(paged.store) == written
    assert paged.counter == plain.counter + 80_000 * (accessed + written)
    assert before.counter == plain.counter
    if "memory.fill" in code:
        assert before.exports["canister counter_pages_written"].value(before.store) == 33


def test_folded_stacks(run, wat) -> None:
    text = f"""(module {GLOBAL} (func $leaf (export "leaf") {additions(3)})
      (func $twice call $leaf call $leaf) (func $tail return_call $leaf)
      (func (export "f") call $twice call $leaf call $tail i32.const 0 drop))"""
    made = meter(wat(text), breakdown="stacks")
    ran = run(made.wasm)
    nodes = list(frames(ran.read(StackProfile.EXPORT), made.names))
    assert folded(nodes) == "host;f 18\nhost;f;leaf 22\nhost;f;tail 4\nhost;f;twice 11\nhost;f;twice;leaf 22\n"
    assert {node.stack: node.calls for node in nodes}["f", "twice", "leaf"] == 2


REFUSED = {
    "relaxed SIMD": (
        "(module (func (param v128 v128) (result v128) local.get 0 local.get 1 i8x16.relaxed_swizzle))",
        "relaxed SIMD",
    ),
    "threads": ("(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))", "threads"),
    "shared memory": ("(module (memory 1 1 shared))", "shared"),
    "extended constants": ("(module (global i32 (i32.add (i32.const 1) (i32.const 2))))", "extended"),
    "extended data offset": ('(module (memory 1) (data (i32.add (i32.const 1) (i32.const 2)) "a"))', "extended"),
    "64-bit memory": ("(module (memory i64 1))", "64-bit"),
    "several memories": ("(module (memory 1) (memory 1))", "several memories"),
    "exceptions": ("(module (tag) (func (throw 0)))", "exceptions"),
    "garbage collection": ("(module (type (struct)))", "garbage"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_replica_refuses_is_refused(wat, name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(UnsupportedWasmError, match=message):
        instrument(wat(text))


def test_a_module_is_instrumented_once(wat) -> None:
    with pytest.raises(WasmError, match="instrumented before"):
        instrument(instrument(wat(module(""))))


def test_other_bytes_are_no_module(wat) -> None:
    wasm = wat(module(additions(10)))
    for cut in range(len(wasm)):
        try:
            instrument(wasm[:cut])
        except WasmError:
            continue
        # A cut between sections can leave a module, which then has no code for its functions or no functions at all.
        assert not decode(wasm[:cut]).functions or cut > len(wasm) - 30
    with pytest.raises(WasmError, match="WebAssembly 1"):
        instrument(b"\x7fELF" + wasm[4:])


def test_errors_name_the_function(wat) -> None:
    wasm = bytearray(wat('(module (func (export "f") nop nop nop))'))
    at = wasm.rindex(b"\x01\x01\x01\x0b")
    wasm[at] = 0x27
    with pytest.raises(WasmError, match="function f: opcode 0x27 at byte 0 does not exist"):
        instrument(bytes(wasm))
