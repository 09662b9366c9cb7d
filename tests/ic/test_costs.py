"""Every weight, measured: a module with the instruction costs exactly its price more than one without."""

import re
from dataclasses import replace

import pytest
from prices import price

from walsh.ic.costs import TABLE, default_costs, load_costs
from walsh.ic.errors import CostTableError
from walsh.ic.metering import instrument
from walsh.ic.opcodes import BY_NAME

CONSTANT = {t: f"{t}.const 1" for t in ("i32", "i64", "f32", "f64")} | {"v128": "v128.const i32x4 1 2 3 4"}
LANE = {"i8x16": "i32", "i16x8": "i32", "i32x4": "i32", "i64x2": "i64", "f32x4": "f32", "f64x2": "f64"}
UNARY = r"clz|ctz|popcnt|eqz|abs|neg|ceil|floor|trunc|nearest|sqrt|not|(ext(?!mul)|convert|trunc_sat|demote|promote).*"
SURROUNDINGS = """(module (memory 2) (table $t 4 funcref)
  (data $d "walsh") (elem $e func $noop) (elem declare func $noop)
  (global $g (mut i32) (i32.const 0)) (func $noop) (func $one (result i32) i32.const 1)
  (func (export "f") (local $v i32) {code}))"""

# instruction -> (code around it, with {} in its place, cost of everything else, the function entry included)
SPECIAL = {
    "unreachable": ("{}", 1),
    "nop": ("{}", 1),
    "block": ("{} end", 1),
    "loop": ("{} end", 1),
    "if": ("i32.const 0 {} end", 2),
    "else": ("i32.const 1 if {} end", 4),
    "end": ("block {}", 1),
    "br": ("block {} 0 end", 1),
    "br_if": ("block i32.const 0 {} 0 end", 2),
    "br_table": ("block i32.const 0 {} 0 0 end", 2),
    "return": ("{}", 1),
    "call": ("{} $noop", 2),
    "call_indirect": ("i32.const 0 {}", 2),
    "return_call": ("{} $noop", 2),
    "return_call_indirect": ("i32.const 0 {}", 2),
    "drop": ("i32.const 0 {}", 2),
    "select": ("i32.const 0 i32.const 0 i32.const 0 {} drop", 5),
    "local.get": ("{} $v drop", 2),
    "local.set": ("i32.const 0 {} $v", 2),
    "local.tee": ("i32.const 0 {} $v drop", 3),
    "global.get": ("{} $g drop", 2),
    "global.set": ("i32.const 0 {} $g", 2),
    "table.get": ("i32.const 0 {} $t drop", 3),
    "table.set": ("i32.const 0 ref.null func {} $t", 3),
    "table.size": ("{} $t drop", 2),
    "table.grow": ("ref.null func i32.const 0 {} $t drop", 4),
    "table.fill": ("i32.const 0 ref.null func i32.const 0 {} $t", 4),
    "table.copy": ("i32.const 0 i32.const 0 i32.const 0 {} $t $t", 4),
    "table.init": ("i32.const 0 i32.const 0 i32.const 0 {} $t $e", 4),
    "elem.drop": ("{} $e", 1),
    "data.drop": ("{} $d", 1),
    "memory.size": ("{} drop", 2),
    "memory.grow": ("i32.const 0 {} drop", 3),
    "memory.fill": ("i32.const 0 i32.const 0 i32.const 77 {}", 4 + 77),
    "memory.copy": ("i32.const 0 i32.const 0 i32.const 1000 {}", 4 + 1000),
    "memory.init": ("i32.const 0 i32.const 0 i32.const 5 {} $d", 4 + 5),
    "ref.null": ("{} func drop", 2),
    "ref.is_null": ("ref.null func {} drop", 3),
    "ref.func": ("{} $noop drop", 2),
}


def signature(name: str) -> tuple[list[str], int, str]:
    """Operand types, number of results, and immediates, from the name."""
    kind, op = name.split(".")
    value = kind if kind in CONSTANT else "v128"
    if op == "const":
        return [], 1, CONSTANT[kind].split(".const")[1]
    if op.startswith(("load", "store")):
        lane = " 0" if op.endswith("_lane") else ""
        stores = op.startswith("store")
        return ["i32", *([value] if stores or lane else [])], 0 if stores else 1, lane
    source = re.search(r"(?<=_)[if](32|64)(?=_|$)", op)
    if value != "v128" and source:
        return [source[0]], 1, ""
    if op == "splat":
        return [LANE[kind]], 1, ""
    if op.startswith("extract_lane"):
        return ["v128"], 1, "0"
    if op == "replace_lane":
        return ["v128", LANE[kind]], 1, "0"
    if value == "v128" and op.startswith(("shl", "shr")):
        return ["v128", "i32"], 1, ""
    if op == "shuffle":
        return ["v128"] * 2, 1, " ".join(map(str, range(16)))
    if op == "bitselect":
        return ["v128"] * 3, 1, ""
    if op in {"any_true", "all_true", "bitmask"} or re.fullmatch(UNARY, op):
        return [value], 1, ""
    return [value] * 2, 1, ""


def surrounding(name: str) -> tuple[str, int]:
    if name in SPECIAL:
        code, rest = SPECIAL[name]
        return code.format(name), rest
    operands, results, immediates = signature(name)
    code = [*(CONSTANT[t] for t in operands), f"{name} {immediates}", *["drop"] * results]
    return " ".join(code), 1 + len(operands) + results


@pytest.mark.parametrize("name", BY_NAME)
def test_one_instruction_costs_exactly_its_price(run, wat, name: str) -> None:
    code, rest = surrounding(name)
    wasm = wat(SURROUNDINGS.format(code=code))
    assert run(instrument(wasm)).counter == rest + price(name)
    dearer = default_costs().with_opcode(name, price(name) + 1000)
    executed = code.split().count(name) + (name == "end")  # the function ends, too
    assert run(instrument(wasm, costs=dearer)).counter == rest + price(name) + 1000 * executed


def test_the_table_has_the_published_weights() -> None:
    costs = default_costs()
    assert costs.opcodes == {name: price(name) for name in BY_NAME}
    assert (costs.function_entry, costs.bulk_byte) == (1, 1)


def test_system_calls_have_the_published_prices() -> None:
    costs = default_costs()
    fixed = {"debug_print": 100, "performance_counter": 200, "is_controller": 1000, "call_new": 1500}
    fixed |= {"call_perform": 5000, "stable64_read": 20, "stable64_write": 20, "stable_size": 20, "stable64_grow": 100}
    fixed |= {"msg_arg_data_copy": 500, "time": 500, "msg_reply": 500}
    assert {name: costs.system_cost(name) for name in fixed} == fixed
    assert costs.system_cost("msg_reply_data_append", 77) == 577
    assert costs.system_cost("stable64_write", 65536) == 65556
    assert costs.system_cost("performance_counter", 9) == 200


def test_pages_limits_and_prices_are_the_published_ones() -> None:
    costs = default_costs()
    now, before = costs.page_policy(), costs.page_policy("before-2026-07")
    assert (now.page_bytes, now.access, now.write, now.at_end) == (65536, 80_000, 80_000, False)
    assert (before.page_bytes, before.access, before.write, before.at_end) == (4096, 0, 1000, True)
    limits = costs.limits
    assert (limits.update_instructions, limits.query_instructions) == (40 * 10**9, 5 * 10**9)
    assert (limits.install_instructions, limits.slice_instructions) == (300 * 10**9, 2 * 10**9)
    assert (limits.heap_bytes, limits.stable_bytes, limits.payload_bytes) == (4 << 30, 500 << 30, 2 << 20)
    assert (limits.module_bytes, limits.functions) == (100 << 20, 50_000)
    prices = costs.prices
    assert (prices.nodes, prices.instruction, prices.update_message) == (13, 1, 5_000_000)
    assert (prices.ingress_message, prices.ingress_byte) == (1_200_000, 2_000)
    assert (prices.call_message, prices.call_byte) == (260_000, 1_000)
    assert prices.usd(10**12) == pytest.approx(1.366)
    assert prices.storage(1 << 30, 365 * 86400) == pytest.approx(10e12 + 10_000 * 365 * 86400, rel=2e-3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nop = 1\n", "", "missing"),
        ("nop = 1\n", "nop = -1\n", "natural number"),
        ("nop = 1\n", "nop = 1\nnope = 1\n", "unknown"),
        ("nop = 1\n", 'nop = 1\n"i32.add" = 1\n', "twice"),
        ("function_entry = 1\n", "", "function_entry"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, old: str, new: str, message: str) -> None:
    text = TABLE.read_text()
    assert old in text
    copy = tmp_path / "costs.toml"
    copy.write_text(text.replace(old, new, 1))
    with pytest.raises(CostTableError, match=message):
        load_costs(copy)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CostTableError, match="2019"):
        default_costs().page_policy("2019")
    with pytest.raises(CostTableError, match=r"i33\.add"):
        default_costs().with_opcode("i33.add", 1)


def test_function_entry_and_bulk_bytes_come_from_the_table(run, wat) -> None:
    wasm = wat(SURROUNDINGS.format(code="call $noop i32.const 0 i32.const 0 i32.const 10 memory.fill"))
    costs = replace(default_costs(), function_entry=1000, bulk_byte=7)
    assert run(instrument(wasm, costs=costs)).counter == 2 * 1000 + 5 + 3 + 100 + 70
