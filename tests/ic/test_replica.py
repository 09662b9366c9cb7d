"""The miniature replica: what is kept, what is taken back, what is charged, and in which order things happen."""

import random
import struct
from dataclasses import replace

import pytest
from canisters import CALLER, COUNTER, GUARDED, PERSISTENT, TIMED, canister

from walsh.ic.costs import default_costs
from walsh.ic.errors import (
    OutOfCyclesError,
    OutOfInstructionsError,
    PayloadError,
    RejectCode,
    RejectError,
    TrapError,
    UnsupportedWasmError,
    WasmError,
)
from walsh.ic.metering import instrument
from walsh.ic.replica import ANONYMOUS, Kind, Replica, to_text, user_id


def number(payload: bytes) -> int:
    return struct.unpack("<Q", payload)[0]


def small_costs(**limits: int):
    costs = default_costs()
    return replace(costs, limits=replace(costs.limits, **limits))


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def counter(replica: Replica, wat):
    return replica.install(wat(COUNTER))


def test_updates_are_kept(counter) -> None:
    assert [number(counter.update("increment")) for _ in range(3)] == [1, 2, 3]
    assert number(counter.query("get")) == 6


def test_queries_leave_nothing(counter) -> None:
    counter.update("increment")
    assert number(counter.query("change")) == 55
    assert number(counter.query("get")) == 2
    assert number(counter.query("stable")) == 0
    assert number(counter.update("change")) == 55
    assert number(counter.query("get")) == 2


def test_a_trap_takes_everything_back(counter) -> None:
    counter.update("increment")
    before = counter.cycles
    with pytest.raises(RejectError, match="unreachable") as caught:
        counter.update("fail")
    assert caught.value.code == RejectCode.CANISTER_ERROR
    assert number(counter.query("get")) == 2
    assert (number(counter.query("heap")), number(counter.query("stable"))) == (2, 0)
    assert [text for _, text in counter.log] == [
        "words",
        "the canister trapped: wasm `unreachable` instruction executed",
    ]
    assert counter.cycles < before
    assert number(counter.update("increment")) == 2
    assert number(counter.query("get")) == 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("silent", "did not answer"),
        ("twice", "answered already"),
        ("no", "words"),
        ("outside", "leaves the heap"),
        ("absent", "no update or query method"),
    ],
)
def test_bad_calls_are_rejected(counter, method: str, message: str) -> None:
    with pytest.raises(RejectError, match=message) as caught:
        counter.update(method)
    assert caught.value.code == (RejectCode.CANISTER_REJECT if method == "no" else RejectCode.CANISTER_ERROR)


def test_a_query_may_not_change_the_world(counter) -> None:
    with pytest.raises(TrapError, match="not allowed in query"):
        counter.query("forbidden")
    with pytest.raises(RejectError, match="no query method"):
        counter.query("increment")


def test_who_asks(replica: Replica, counter) -> None:
    assert counter.update("who") == replica.user
    assert counter.update("who", sender=ANONYMOUS) == counter.query("who_query", sender=ANONYMOUS) == b"\x04"
    assert number(counter.update("controller")) == 1
    assert number(counter.update("controller", sender=user_id("another"))) == 0
    assert number(counter.update("replicated")) == number(counter.update("replicated_query")) == 1
    assert number(counter.query("replicated_query")) == 0
    assert to_text(b"\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01") == "rrkah-fqaaa-aaaaa-aaaaq-cai"


def test_time_moves_by_rounds(replica: Replica, counter) -> None:
    start = number(counter.query("now"))
    replica.tick()
    replica.advance(2.5)
    assert number(counter.query("now")) == start + 3_500_000_000


def test_certified_data_is_set_on_commit(counter) -> None:
    counter.update("certify")
    assert counter.certified_data == b"words"


def test_nan_is_canonical(counter) -> None:
    assert counter.query("nan") == bytes.fromhex("000000000000f87f")


# -- instructions


def test_the_performance_counter_sees_its_own_segment_and_price(replica: Replica, counter) -> None:
    # Entry 1, constant 1, call 5 to ic0 and call 5 to the reply, charged with the segment, and 200 for the call itself.
    assert number(counter.update("measure")) == 1 + 1 + 5 + 5 + 200
    receipt = replica.receipts[-1]
    assert receipt.system == 200 + (500 + 8) + 500
    # The callee: entry 1, two constants and a local 4 in all with the store and its address, and two calls.
    assert receipt.code == 12 + 1 + 3 + 2 + 5 + 5
    assert (receipt.accessed, receipt.written, receipt.pages) == (1, 1, 160_000)
    assert receipt.instructions == receipt.code + receipt.system + receipt.pages
    assert receipt.cycles == 5_000_000 + receipt.instructions
    assert receipt.version == default_costs().version


def test_the_code_column_is_the_plain_count(replica: Replica, counter, run, wat) -> None:
    counter.update("increment")
    again = Replica(pages="before-2026-07").install(wat(COUNTER))
    again.update("increment")
    new, old = replica.receipts[-1], again.replica.receipts[-1]
    assert (new.code, new.system) == (old.code, old.system)
    assert (old.accessed, old.written, old.pages) == (1, 1, 1000)
    text = canister('(func (export "f") (global.set $count (i64.const 1)))', "(global $count (mut i64) (i64.const 0))")
    assert run(instrument(wat(text))).counter == 1 + 1 + 2


def test_an_update_that_runs_out_is_undone_and_paid(wat) -> None:
    replica = Replica(costs=small_costs(update_instructions=200_000, query_instructions=50_000))
    counter = replica.install(wat(COUNTER))
    counter.update("who")
    before = counter.cycles
    with pytest.raises(RejectError, match="more than 200000 instructions"):
        counter.update("spin")
    assert replica.receipts[-1].instructions == 200_000
    assert before - counter.cycles == 5_000_000 + 200_000 + 1_200_000 + 2_000 * (6 + 4)
    with pytest.raises(OutOfInstructionsError, match="more than 50000"):
        counter.query("spin_query")


def test_pages_count_against_the_limit(wat) -> None:
    replica = Replica(costs=small_costs(update_instructions=159_000))
    with pytest.raises(RejectError, match="more than 159000"):
        replica.install(wat(COUNTER)).update("increment")


def test_the_limit_is_exact(wat) -> None:
    text = canister('(func (export "canister_update f") (call $msg_reply))', "")
    cost = 1 + 5 + 500
    enough = Replica(costs=small_costs(update_instructions=cost)).install(wat(text))
    assert enough.update("f") == b""
    short = Replica(costs=small_costs(update_instructions=cost - 1)).install(wat(text))
    with pytest.raises(RejectError, match="more than 505"):
        short.update("f")


# -- payloads and modules


def test_payloads_have_a_limit(counter) -> None:
    limit = 2 << 20
    with pytest.raises(PayloadError, match="2097153"):
        counter.update("who", bytes(limit + 1))
    with pytest.raises(PayloadError, match="2097153"):
        counter.query("who_query", bytes(limit + 1))
    assert len(counter.update("big", bytes(8))) == limit
    with pytest.raises(RejectError, match="a reply of 2097153 bytes"):
        counter.update("big", struct.pack("<Q", 1))
    assert counter.update("who", bytes(limit))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('(module (import "wasi" "fd_write" (func)))', "wasi.fd_write"),
        ('(module (import "ic0" "no_such_call" (func)))', "no_such_call"),
        ("(module (global (mut funcref) (ref.null func)))", "mutable global"),
    ],
)
def test_modules_that_no_replica_installs(replica: Replica, wat, text: str, message: str) -> None:
    with pytest.raises(UnsupportedWasmError, match=message):
        replica.install(wat(text))


def test_modules_that_are_wrong(replica: Replica, wat) -> None:
    with pytest.raises(WasmError, match="WebAssembly 1"):
        replica.install(b"#!/bin/sh")
    invalid = wat("(module (func (result i32) i32.const 1))").replace(b"\x41\x01", b"\x42\x01")
    with pytest.raises(WasmError, match="not valid"):
        replica.install(invalid)
    with pytest.raises(TrapError, match="instantiated"):
        replica.install(wat('(module (memory 1) (data (i32.const 70000) "a"))'))
    assert not replica.canisters


def test_the_start_function_runs_once(replica: Replica, wat) -> None:
    text = canister(
        """(func $begin (global.set $count (i64.add (global.get $count) (i64.const 40)))) (start $begin)
           (func (export "canister_init") (global.set $count (i64.add (global.get $count) (i64.const 2))))
           (func (export "canister_update grow_and_fail") (drop (memory.grow (i32.const 1))) unreachable)
           (func (export "canister_query get") (call $reply64 (global.get $count)))"""
    )
    made = replica.install(wat(text))
    with pytest.raises(RejectError):
        made.update("grow_and_fail")
    assert number(made.query("get")) == 42


def test_tables_and_segments_are_not_kept(replica: Replica, wat) -> None:
    text = canister(
        """(elem $e func $argument) (data $d "x")
           (func (export "canister_update change")
             (table.set $callbacks (i32.const 0) (ref.func $argument)) (data.drop $d)
             (i64.store (i32.const 100) (i64.const 6)) (call $msg_reply))
           (func (export "canister_query get")
             (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))
             (call $reply64 (i64.add (i64.load (i32.const 100))
               (i64.extend_i32_u (ref.is_null (table.get $callbacks (i32.const 0)))))))"""
    )
    made = replica.install(wat(text))
    made.update("change")
    assert number(made.query("get")) == 6 + 1


# -- upgrades


def test_an_upgrade_keeps_stable_memory_only(replica: Replica, wat) -> None:
    made = replica.install(wat(PERSISTENT), struct.pack("<Q", 17))
    made.update("increment")
    made.timer = 99
    made.upgrade(wat(PERSISTENT), struct.pack("<Q", 0))
    assert number(made.query("get")) == 1001
    assert number(made.query("initial")) == 17
    assert number(made.query("version")) == 2
    assert made.timer == 0


@pytest.mark.parametrize("bad", ["post", "pre", "module", "stranger"])
def test_a_failed_upgrade_changes_nothing(replica: Replica, wat, bad: str) -> None:
    text = PERSISTENT
    if bad == "pre":
        text = text.replace(
            "(i64.store (i32.const 8) (global.get $count))", "(global.set $count (i64.const 5)) unreachable"
        )
    made = replica.install(wat(text), struct.pack("<Q", 17))
    made.update("increment")
    pages, module = made.stable.snapshot(), wat(PERSISTENT)
    with pytest.raises((TrapError, WasmError, RejectError)):
        made.upgrade(
            module[:50] if bad == "module" else module,
            struct.pack("<Q", 13 if bad == "post" else 0),
            user_id("stranger") if bad == "stranger" else None,
        )
    assert made.stable.snapshot() == pages
    assert number(made.query("get")) == 1
    assert number(made.query("version")) == 1
    assert number(made.update("increment")) == 2


# -- calls between canisters


@pytest.fixture
def pair(replica: Replica, wat):
    return replica.install(wat(CALLER)), replica.install(wat(COUNTER))


def test_a_call_and_its_reply(replica: Replica, pair) -> None:
    caller, counter = pair
    assert number(caller.update("call", counter.id + b"increment")) == 1
    assert number(caller.query("get")) == 7
    assert number(counter.query("get")) == 2
    kinds = [receipt.kind for receipt in replica.receipts if receipt.kind is not Kind.QUERY]
    assert kinds == [Kind.INIT, Kind.INIT, Kind.UPDATE, Kind.UPDATE, Kind.REPLY]


def test_the_callee_sees_the_caller(pair) -> None:
    caller, counter = pair
    assert caller.update("call", counter.id + b"who") == caller.id


@pytest.mark.parametrize(
    ("target", "method", "code"),
    [("counter", b"fail", 5), ("counter", b"no", 4), ("counter", b"absent", 5), ("nobody", b"increment", 3)],
)
def test_a_call_and_its_rejection(pair, target: str, method: bytes, code: int) -> None:
    caller, counter = pair
    principal = counter.id if target == "counter" else bytes(10)
    assert number(caller.update("call", principal + method)) == code
    assert number(caller.query("get")) == 500
    assert number(counter.query("get")) == 0


def test_a_trap_in_a_callback_runs_the_cleanup(pair) -> None:
    caller, counter = pair
    with pytest.raises(RejectError, match="unreachable"):
        caller.update("call_and_explode", counter.id + b"increment")
    assert number(caller.query("get")) == 40
    assert number(counter.query("get")) == 2


def test_a_trap_after_a_call_sends_nothing(pair) -> None:
    caller, counter = pair
    with pytest.raises(RejectError):
        caller.update("call_then_trap", counter.id + b"increment")
    assert number(counter.query("get")) == 0


def test_a_callback_that_is_none(pair) -> None:
    caller, counter = pair
    with pytest.raises(RejectError, match="callback 6 is null"):
        caller.update("call_nowhere", counter.id + b"increment")


def test_cycles_travel_with_calls_and_come_back(replica: Replica, wat) -> None:
    payer, taker = replica.install(wat(CALLER)), replica.install(wat(CALLER))
    before = payer.cycles + taker.cycles
    seen = len(replica.receipts)
    taken = taker.cycles
    assert number(payer.update("pay", taker.id + b"accept_some")) == 700_000
    spent = list(replica.receipts)[seen:]
    assert taker.cycles == taken + 300_000 - spent[1].cycles
    fee = 260_000 + 1_000 * (len(b"accept_some") + 8)
    ingress = 1_200_000 + 2_000 * (10 + len(b"accept_some") + len(b"pay"))
    assert before - payer.cycles - taker.cycles == sum(r.cycles for r in spent) + fee + ingress


def test_without_cycles_nothing_runs(replica: Replica, wat) -> None:
    costs = default_costs()
    poor = replica.install(wat(COUNTER), cycles=400_000_000_000)
    poor.cycles = 1_000
    with pytest.raises(OutOfCyclesError, match="a message costs"):
        poor.update("increment")
    poor.cycles = costs.limits.update_instructions
    with pytest.raises(RejectError, match="expected 40005000000"):
        poor.update("increment")
    assert number(poor.query("get")) == 0


def test_randomness_is_the_seeds(wat) -> None:
    draws = [Replica(seed=seed).install(wat(CALLER)).update("random") for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][:7] == b"DIDL\x01\x6d\x7b"
    assert len(draws[0]) == 9 + 1 + 32
    once = Replica(seed=1).install(wat(CALLER))
    assert once.update("random") != once.update("random")


# -- system tasks and guards


def test_heartbeats_and_timers(replica: Replica, wat) -> None:
    made = replica.install(wat(TIMED))
    replica.tick(3)
    assert number(made.query("beats")) == 3
    for expected in (1, 2):
        assert number(made.update("arm", struct.pack("<Q", replica.time_ns + 5_000_000_000))) == 0
        replica.tick(3)
        assert number(made.query("get")) == expected - 1
        replica.tick(2)
        assert number(made.query("get")) == expected
        replica.tick(10)
        assert number(made.query("get")) == expected
    made.update("arm", struct.pack("<Q", 1))
    replica.tick(2)
    assert number(made.query("get")) == 2
    assert "unreachable" in made.log[-1][1]


def test_inspection_lets_pass_what_it_accepts(replica: Replica, wat) -> None:
    made = replica.install(wat(GUARDED))
    assert number(made.update("open")) == 0
    before = made.cycles
    with pytest.raises(RejectError, match="did not accept"):
        made.update("closed")
    assert made.cycles == before


# -- schedules


@pytest.mark.parametrize("seed", range(20))
def test_interleaved_calls_do_not_mix(wat, seed: int) -> None:
    replica = Replica(seed=seed, shuffle=True)
    callers = [replica.install(wat(CALLER)) for _ in range(3)]
    counters = [replica.install(wat(COUNTER)) for _ in range(2)]
    choose = random.Random(seed)
    asked = []
    for _ in range(30):
        caller, counter = choose.choice(callers), choose.choice(counters)
        method, expected = choose.choice([(b"who", caller.id), (b"increment", None), (b"fail", struct.pack("<Q", 5))])
        asked.append((replica.submit(caller, "call", counter.id + method), counter, expected))
        if choose.random() < 0.5:
            replica.step()
    replica.tick(2)
    for counter in counters:
        values = [number(ingress.result()) for ingress, to, expected in asked if expected is None and to is counter]
        assert sorted(values) == list(range(1, len(values) + 1))
        assert number(counter.query("get")) == 2 * len(values)
    assert all(ingress.result() == expected for ingress, _, expected in asked if expected is not None)


def test_the_same_seed_gives_the_same_receipts(wat) -> None:
    def history(seed: int) -> list:
        replica = Replica(seed=seed, shuffle=True)
        caller, counter = replica.install(wat(CALLER)), replica.install(wat(COUNTER))
        for method in (b"who", b"increment", b"fail", b"measure", b"now"):
            replica.submit(caller, "call", counter.id + method)
        replica.tick()
        return list(replica.receipts)

    assert history(3) == history(3)
    assert any(history(3) != history(seed) for seed in range(4, 8))


def test_system_calls_alone_run_out(wat) -> None:
    text = canister('(func (export "canister_update f") (loop (drop (call $time)) (br 0)))', "")
    replica = Replica(costs=small_costs(update_instructions=1_000_000))
    made = replica.install(wat(text))
    with pytest.raises(RejectError, match="more than 1000000"):
        made.update("f")
    assert replica.receipts[-1].instructions == 1_000_000


def test_traps_in_every_other_phase(replica: Replica, wat) -> None:
    with pytest.raises(TrapError, match="words"):
        replica.install(
            wat(canister('(func (export "canister_init") (call $trap (i32.const 9) (i32.const 5)))' + WORDS))
        )
    with pytest.raises(TrapError, match="unreachable"):
        replica.install(wat(canister("(func $begin unreachable) (start $begin)")))
    with pytest.raises(TrapError, match="not allowed in start"):
        replica.install(wat(canister("(func $begin (drop (call $time))) (start $begin)")))
    assert not replica.canisters
    guarded = replica.install(wat(GUARDED.replace("(global.set $count (i64.const 5))", "unreachable")))
    with pytest.raises(RejectError, match="unreachable"):
        guarded.update("open")
    beating = replica.install(
        wat(TIMED.replace("(global.set $beats", "(i64.store (i32.const 0) (i64.const 1)) unreachable (drop"))
    )
    replica.tick(2)
    assert len(beating.log) == 2
    assert number(beating.query("beats")) == 0


def test_a_trap_in_the_cleanup_undoes_the_cleanup(replica: Replica, wat) -> None:
    failing = CALLER.replace(
        "(func $cleanup (param i32) ", "(func $cleanup (param i32) (global.set $count (i64.const 3)) unreachable "
    )
    caller, counter = replica.install(wat(failing)), replica.install(wat(COUNTER))
    with pytest.raises(RejectError, match="unreachable"):
        caller.update("call_and_explode", counter.id + b"increment")
    assert number(caller.query("get")) == 0
    assert [receipt.kind for receipt in replica.receipts][-3:-1] == [Kind.REPLY, Kind.CLEANUP]


def test_profiles_outlive_instances(wat) -> None:
    for breakdown in ("segments", "stacks"):
        replica = Replica(breakdown=breakdown)
        made = replica.install(wat(COUNTER))
        for method in ("increment", "fail", "increment"):
            try:
                made.update(method)
            except RejectError:
                continue
        if breakdown == "segments":
            assert sum(row.instructions for row in made.rows()) == sum(receipt.code for receipt in replica.receipts)
        else:
            lines = made.folded().splitlines()
            assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == sum(r.instructions for r in replica.receipts)


WORDS = '(data (i32.const 9) "words")'
