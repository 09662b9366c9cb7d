"""Counts fail in both directions, and are what can be counted by hand."""

import pytest
import torch

from tests.measure.conftest import make_case
from walsh.errors import FormatError
from walsh.kernels._operation import Operation
from walsh.measure.case import Provider
from walsh.measure.counts import (
    ACCEPT,
    CountingMode,
    accept,
    compare_counts,
    count_call,
    load_committed,
    problems_of,
    section_of,
)


def test_calls_storages_and_the_peak_are_counted():
    x = torch.ones(1000)
    with CountingMode([x]) as mode:
        y = x + 1  # 4000 bytes
        z = y.view(10, 100).t()[1:]  # views
        w = z * 2  # 99 * 10 * 4 bytes
        del y, z
        v = torch.zeros(10)
        v.add_(1)  # in place: a call, no storage
        del w
    assert (mode.calls, mode.allocations) == (4, 3)
    assert mode.allocated == 4000 + 3960 + 40
    assert mode.peak == 4000 + 3960


def test_an_operation_of_ours_counts_as_what_runs_inside_it():
    def double_and_add(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    operation = Operation("walsh_test", "double_and_add", double_and_add, torch.empty_like)
    x = torch.ones(10)
    with CountingMode([x]) as mode:
        y = operation(x)
    assert (y == 3).all()
    assert (mode.calls, mode.allocations, mode.allocated, mode.peak) == (2, 2, 80, 80)


def test_the_first_call_is_not_counted_since_it_may_fill_tables():
    table = []

    def run(inputs):
        if not table:
            table.append(torch.arange(5))
        return inputs["x"] * 2

    case = make_case()
    case = case.__class__(**{**vars(case), "fresh": lambda seed: {"x": torch.ones(3)}})
    assert count_call(case, Provider("ours", run, "torch", exact_counts=True, counts={"instructions": 7})) == {
        "calls": 1,
        "allocations": 1,
        "allocated_bytes": 12,
        "peak_bytes": 12,
        "instructions": 7,
    }


@pytest.mark.parametrize(("value", "word"), [(11, "grew"), (9, "shrank")])
def test_a_count_fails_in_both_directions_and_says_how_to_accept(value, word):
    committed = {"any": {"a": 10}}
    problems = problems_of(compare_counts({"any": {"a": value}}, committed), committed, complete=False)
    assert len(problems) == 1
    assert f"a {word}: {value}, committed 10" in problems[0]
    assert problems[0].endswith(ACCEPT)


def test_an_equal_count_passes_and_a_new_or_vanished_one_does_not():
    committed = {"any": {"a": 10, "gone": 1}, "torch 1.0": {"b": 2}}
    found = compare_counts({"any": {"a": 10, "new": 3}, "torch 2.0": {"b": 3}}, committed)
    assert problems_of(found, committed, complete=False) == []
    problems = problems_of(found, committed, complete=True)
    assert [problem.split(":")[0] for problem in problems] == ["new is new", "gone vanished"]


def test_accepting_keeps_what_was_not_counted_here(tmp_path):
    path = tmp_path / "counts.json"
    assert load_committed(path) == {}
    accept(path, {"torch 1.0": {"b": 2}})
    accept(path, {"any": {"a": 10}})
    assert load_committed(path) == {"any": {"a": 10}, "torch 1.0": {"b": 2}}
    path.write_text(path.read_text().replace("10", '"10"'))
    with pytest.raises(FormatError, match="whole number"):
        load_committed(path)


def test_counts_of_the_framework_stand_under_its_version():
    assert section_of(Provider("ours", lambda i: i)) == "any"
    version = ".".join(torch.__version__.split(".")[:2])
    assert section_of(Provider("ours", lambda i: i, exact_counts=True)).startswith(f"torch {version}, ")


def test_launches_are_counted_without_a_gpu():
    pytest.importorskip("triton", reason="Triton is not installed")
    from walsh.measure.launches import count_triton_launches

    found = count_triton_launches()
    # One pass over the row, and a large row in two.
    assert found["hadamard_transform n=32 torch.float32 | launches"] == 1
    assert found["hadamard_transform n=32768 torch.float32 | launches"] == 2
    assert min(found.values()) >= 1
