"""Counting from the command line and in Python: parts add up, breakdowns add up, files are written."""

import json

import pytest
from canisters import COUNTER
from click.testing import CliRunner

from walsh.errors import ParameterError
from walsh.ic.cli import ic
from walsh.ic.costs import default_costs
from walsh.ic.count import count_call, count_method
from walsh.ic.errors import UnsupportedWasmError, WasmError
from walsh.ic.profile import readable
from walsh.ic.replica import Replica

SUM = """(module (memory 2)
  (func $add (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)
  (func (export "sum") (param $n i32) (param $x f64) (result i32) (local $s i32)
    (loop (local.set $s (call $add (local.get $s) (local.get $n)))
      (i32.store (i32.const 65534) (local.get $s))
      (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (if (i32.eqz (local.get $s)) (then unreachable))
    (local.get $s)))"""
# A turn: two locals, call and set; a constant, a local and the store; a local, constant, difference, tee; br_if. The
# callee: entry and three. Around: entry 1, the end of the sum 3 (local, test, if 2) and the result 1.
TURN = (2 + 5 + 1) + 3 + 4 + 2 + (1 + 3)


def folded_total(text: str) -> int:
    return sum(int(line.rsplit(" ", 1)[1]) for line in text.splitlines())


@pytest.mark.parametrize("n", [1, 10])
def test_a_call_is_counted(wat, n: int) -> None:
    found = count_call(wat(SUM), "sum", [n, 3])
    assert found.total == found.code == 1 + n * TURN + 4 + 1
    assert (found.system, found.pages, found.error, found.pages_policy) == (0, 0, None, "none")
    assert dict(found.by_function()) == {"sum": found.total - 4 * n, "add": 4 * n}
    assert sum(amount for _, amount in found.by_category()) == found.total
    assert found.stacks == f"host;sum {found.total - 4 * n}\nhost;sum;add {4 * n}\n"
    assert found.version == default_costs().version


@pytest.mark.parametrize(("policy", "paid"), [("2026-07", 4 * 80_000), ("before-2026-07", 2 * 1000)])
def test_pages_are_apart(wat, policy: str, paid: int) -> None:
    plain, found = count_call(wat(SUM), "sum", [3, 0]), count_call(wat(SUM), "sum", [3, 0], pages=policy)
    assert (found.code, found.pages, found.total) == (plain.total, paid, plain.total + paid)
    assert (found.accessed, found.written) == (2, 2)
    assert folded_total(found.stacks) == found.total


def test_a_trap_is_counted(wat) -> None:
    text = '(module (func (export "f") (drop (i32.div_s (i32.const 1) (i32.const 0))) nop nop nop))'
    found = count_call(wat(text), "f")
    assert "divide by zero" in str(found.error)
    assert found.total == 1 + 2 + 10 + 1 + 3


def test_wrong_calls_are_named(wat) -> None:
    with pytest.raises(WasmError, match="expected one of sum"):
        count_call(wat(SUM), "product")
    with pytest.raises(WasmError, match=r"takes 2 arguments \(i32 f64\): 1 given"):
        count_call(wat(SUM), "sum", [1])
    with pytest.raises(UnsupportedWasmError, match="ic0"):
        count_call(wat(COUNTER), "canister_update increment")


def test_a_canisters_method_is_counted(wat) -> None:
    replica = Replica()
    replica.install(wat(COUNTER)).update("increment")
    receipt, found = replica.receipts[-1], count_method(wat(COUNTER), "increment")
    assert (found.total, found.code, found.system) == (receipt.instructions, receipt.code, receipt.system)
    assert found.total == found.code + found.system + found.pages
    assert sum(row.instructions for row in found.rows) == found.code
    assert folded_total(found.stacks) == found.total
    assert "canister_update increment;reply64;ic0.msg_reply 500" in found.stacks
    failed = count_method(wat(COUNTER), "fail")
    assert "unreachable" in str(failed.error)
    assert sum(row.instructions for row in failed.rows) == failed.code
    assert folded_total(failed.stacks) == failed.total


def invoke(*arguments: str):
    return CliRunner().invoke(ic, ["count", *arguments])


def test_the_command(wat, tmp_path) -> None:
    module = tmp_path / "sum.wasm"
    module.write_bytes(wat(SUM))
    listed = invoke(str(module))
    assert (listed.exit_code, listed.output) == (0, "sum\n")
    stacks, counting = tmp_path / "stacks.folded", tmp_path / "counting.wasm"
    shown = invoke(str(module), "sum", "10", "0", "--folded", str(stacks), "--instrumented", str(counting))
    assert shown.exit_code == 0, shown.output
    total = 1 + 10 * TURN + 5
    assert f"{total:,} instructions   costs {default_costs().version}" in shown.output
    assert folded_total(stacks.read_text()) == total
    assert b"canister counter_instructions" in counting.read_bytes()
    found = json.loads(invoke(str(module), "sum", "10", "0", "--json", "--pages", "2026-07").output)
    assert (found["total"], found["code"], found["written"]) == (total + 320_000, total, 2)


def test_the_command_on_canisters(wat, tmp_path) -> None:
    module = tmp_path / "counter.wasm"
    module.write_bytes(wat(COUNTER))
    found = json.loads(invoke(str(module), "get", "--query", "--json").output)
    assert found["system"] == 500 + 8 + 500
    assert found["pages_policy"] == "2026-07"
    assert "failed: " in invoke(str(module), "fail").output
    for arguments in (["get", "1"], ["get", "--argument", "xyz"]):
        assert isinstance(invoke(str(module), *arguments).exception, ParameterError)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "_RNvMsc_NtNtCs6YLXRJlH7Ku_6candid5types8internalNtB5_5Label6get_id",
            "candid::types::internal::Label::get_id",
        ),
        ("_RNvNtCsadLxzeJ5n0h_12walsh_engine9attention6attend", "walsh_engine::attention::attend"),
        ("canister_query limits", "canister_query limits"),
        ("_R", "_R"),
    ],
)
def test_names_of_rust_functions_can_be_read(name, shown):
    assert readable(name) == shown
