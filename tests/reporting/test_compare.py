import pytest

from tests.reporting.conftest import COUNTS, make_row, make_run, usual_rows
from walsh.reporting.compare import compare_rows, compare_runs


def test_a_kernel_slowed_by_30_percent_is_a_regression():
    found = compare_runs(make_run(usual_rows(2.0)), make_run(usual_rows(2.0 / 1.3)))
    assert [(c.case, c.provider) for c in found.regressions] == [("cayley_dickson/forward/M4/float32", "walsh torch")]
    assert "was 2.000 times its baseline and is 1.538" in found.problems[0]


def test_it_is_found_through_intervals_of_a_tenth_and_not_through_those_of_a_half():
    old, new = make_row("a", "b", 2.0, 0.1), make_row("a", "b", 2.0 / 1.3, 0.1)
    assert compare_rows(old, new).kind == "regression"
    wide = [make_row("a", "b", 2.0, 0.5), make_row("a", "b", 2.0 / 1.3, 0.5)]
    assert compare_rows(*wide).kind == "same"


def test_improvements_and_small_changes_are_told_apart():
    assert compare_rows(make_row("a", "b", 1.0), make_row("a", "b", 1.3)).kind == "improvement"
    assert compare_rows(make_row("a", "b", 1.0), make_row("a", "b", 1.02)).kind == "same"
    assert compare_rows(make_row("a", "b", 1.0), make_row("a", "b", 0.98)).kind == "same"


def test_the_interval_of_a_change_is_that_of_independent_logs():
    change = compare_rows(make_row("a", "b", 2.0, 0.1), make_row("a", "b", 1.0, 0.2))
    assert change.value == pytest.approx(0.5)
    assert change.low == pytest.approx(0.5 * 2.718281828459045 ** -((0.22314**2 + 0.09531**2) ** 0.5), rel=1e-4)
    assert change.high == pytest.approx(0.5 * 2.718281828459045 ** ((0.18232**2 + 0.10536**2) ** 0.5), rel=1e-4)


def test_rows_counts_and_conditions_that_differ_are_named():
    old = make_run(usual_rows(), counts=COUNTS)
    new = make_run([*usual_rows()[:-4], make_row("new/case", "walsh torch", 1.0)], counts=[(COUNTS[0][0], 7)])
    new.header["manifest"] = "b" * 64
    found = compare_runs(old, new)
    assert found.appeared == ("new/case | walsh torch",)
    assert set(found.vanished) == {"rope/forward/M4 | walsh torch", "decode/P4 | walsh torch"}
    assert found.counts == (("any", COUNTS[0][0], 1000, 7),)
    assert any("vectors" in remark for remark in found.remarks)
