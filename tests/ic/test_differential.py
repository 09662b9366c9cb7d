"""The pass against an independent interpreter: counts, results, memory and traps agree, with tolerance 0."""

import random

import pytest
import wasmtime
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from interpreter import Machine, Program, TooLong, Trap
from programs import program

from walsh.ic.costs import default_costs
from walsh.ic.metering import meter
from walsh.ic.profile import SegmentProfile, StackProfile, frames, rows

ARGUMENTS = {"i32": 5, "i64": 70000, "f32": 1.5, "f64": -2.5}


def expected(made: Program, paged: bool) -> tuple[Machine, list | None]:
    """What the interpreter counts, and the results of the last function or None for a trap."""
    machine = Machine(made, paged=paged)
    last = made.functions[-1]
    try:
        return machine, machine.call(len(made.functions) - 1, [ARGUMENTS[kind] for kind in last.params])
    except Trap:
        return machine, None
    except TooLong:
        assume(False)
        raise


def metered(made: Program, run, **options):
    module = meter(bytes(wasmtime.wat2wasm(made.wat())), **options)
    last = len(made.functions) - 1
    arguments = [ARGUMENTS[kind] for kind in made.functions[-1].params]
    return module, run(module.wasm, f"f{last}", *arguments)


def bits(value: float | int, kind: str) -> int | str:
    return int(value) & ((1 << int(kind[1:])) - 1) if kind[0] == "i" else repr(float(value)).replace("-nan", "nan")


@given(seed=st.integers(0, 2**63))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@pytest.mark.parametrize("paged", [False, True])
def test_counts_equal_the_interpreter(run, seed: int, paged: bool) -> None:
    made = program(random.Random(seed))
    machine, results = expected(made, paged)
    _, ran = metered(made, run, pages=paged, limit=paged)
    assert ran.counter == machine.counter
    assert ran.trapped == (results is None)
    assert ran.read("memory") == bytes(machine.memory)
    if results is not None:
        kind = made.functions[-1].results[0]
        assert bits(ran.results[0], kind) == bits(results[0], kind)
    if paged:
        assert ran.exports["canister counter_pages_accessed"].value(ran.store) == len(machine.accessed)
        assert ran.exports["canister counter_pages_written"].value(ran.store) == len(machine.written)


@given(seed=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_breakdowns_add_up_to_the_interpreter(run, seed: int) -> None:
    made = program(random.Random(seed))
    machine, _ = expected(made, paged=True)
    module, ran = metered(made, run, pages=True, breakdown="stacks")
    found: dict[tuple[int, ...], int] = {}
    for frame in frames(ran.read(StackProfile.EXPORT), {i: str(i) for i in module.names}):
        if frame.instructions:
            found[tuple(map(int, frame.stack))] = frame.instructions
    assert found == {stack: count for stack, count in machine.stacks.items() if count}

    machine, _ = expected(made, paged=False)
    module, ran = metered(made, run, breakdown="segments")
    table = rows(ran.read(SegmentProfile.EXPORT), module.sites, module.names, default_costs())
    assert sum(row.instructions for row in table) == machine.counter == ran.counter
    own: dict[str, int] = {}
    for stack, count in machine.stacks.items():
        own[f"f{stack[-1]}"] = own.get(f"f{stack[-1]}", 0) + count
    by_function: dict[str, int] = {}
    for row in table:
        by_function[row.function] = by_function.get(row.function, 0) + row.instructions
    assert by_function == {name: count for name, count in own.items() if count}


def test_programs_are_not_trivial() -> None:
    seen, trapped, counts = set(), 0, []
    for seed in range(300):
        made = program(random.Random(seed))
        seen |= {token[0] for f in made.functions for token in f.code}
        machine = Machine(made)
        try:
            machine.call(len(made.functions) - 1, [ARGUMENTS[kind] for kind in made.functions[-1].params])
        except Trap:
            trapped += 1
        except TooLong:
            continue
        counts.append(machine.counter)
    assert {"return_call", "call_indirect", "br_table", "memory.copy", "memory.grow", "v128.store", "loop"} <= seen
    assert 10 < trapped < 250
    assert sorted(counts)[len(counts) // 2] > 20
