"""Counts of the shipped module: the committed file holds in both directions, and batches are worth their while."""

import copy

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")

from walsh.ic import scenarios
from walsh.ic.canister import bench
from walsh.ic.canister.module import read_record


@pytest.fixture(scope="module")
def measured() -> dict:
    return bench.measure("small hadamard")


def test_counts_are_those_that_are_committed(measured):
    text = bench.RESULTS.read_text(encoding="ascii")
    if read_record()["sha256"] not in text:
        pytest.skip("counts belong to a digest: run `python -m walsh.ic.canister.bench`")
    assert bench.compare(bench.read(text), measured) == []


def test_the_gate_fails_in_both_directions(measured):
    for change in (-1, 1):
        moved = copy.deepcopy(measured)
        name = next(iter(moved))
        moved[name]["instructions"] += change
        [problem] = bench.compare(measured, moved)
        assert name in problem
        assert "instructions" in problem
    assert bench.compare({}, measured)
    assert bench.read(bench.write(measured)) == measured


def test_a_batch_costs_no_more_per_token_than_one_session(measured):
    def per_token(scenario: str, tokens: int) -> float:
        [found] = [result for name, result in measured.items() if scenario in name]
        return found["instructions"] / tokens

    assert per_token("batch of 4", 32) <= per_token("single, context 128, 32", 32)
    assert per_token("batch of 8, context 128, one", 32) <= 0.6 * per_token("single, context 128, one", 4)


def test_receipts_add_up():
    client, costs = scenarios.prepare(scenarios.painted_file(bench._config("small octonion")))
    assert [cost.scenario for cost in costs] == ["upload", "commit", "load"]
    one = scenarios.single(client, 20, 8)
    assert (one.tokens, one.messages) == (8, 1)
    assert one.instructions == one.code + one.system + one.pages
    steps = scenarios.layers(client, 20)
    assert [name for name, _ in steps] == ["embedding", "block 0", "block 1", "head", "draw"]
    assert all(instructions > 0 for _, instructions in steps)
