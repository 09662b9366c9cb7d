"""Own budgets are measured, never wider than the a-priori bound, and never laid upon third parties."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from walsh.suite import load_backend
from walsh.suite.policy import load_policy
from walsh.suite.schema import locate_data
from walsh.suite.tighten import FACTOR, FLOOR, Measured, measure, tighten
from walsh.suite.vectors import load_suite


@pytest.mark.parametrize(("share", "allowed"), [(0.0, FLOOR), (0.01, 0.04), (0.2, 0.8), (0.2499, None), (0.9, None)])
def test_an_entry_is_four_times_what_was_measured(share: float, allowed: float | None) -> None:
    entry = Measured("rope", "rounded", "float32", "torch", share, "rope/rounded/x").entry("2026-01-01")
    assert entry.get("share") == (None if allowed is None else pytest.approx(allowed, rel=0.03))


def test_committed_shares_hold_now() -> None:
    root = locate_data()
    policy, cases = load_policy(root), load_suite(root).cases
    chosen = [case for case in cases if case.op == "rms_norm"]
    by_name = {case.name: case for case in chosen}
    for one in measure(load_backend("reference"), chosen):
        case = by_name[one.case]
        assert one.share <= policy.budget(case, one.dtype, "reference", own=True).share
        assert policy.budget(case, one.dtype, "somebody", own=False).share == 1.0


def test_tighten_replaces_only_the_entries_of_what_it_measured(tmp_path: Path) -> None:
    root = locate_data()
    shutil.copy(root / "policy.json", tmp_path)
    before = load_policy(tmp_path).entries
    cases = [case for case in load_suite(root).cases if case.name.startswith("rope/rounded/float32")]
    found = tighten(tmp_path, [load_backend("reference")], cases)
    after = load_policy(tmp_path).entries
    kept = [entry for entry in before if entry.get("backend") != "reference"]
    assert list(after[: len(kept)]) == kept
    assert [entry["op"] for entry in after[len(kept) :]] == ["rope"]
    assert found[0].share * FACTOR < 1
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
