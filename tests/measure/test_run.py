"""Whole runs of fake providers: refusal, limits, gates, footers, files."""

import dataclasses

import pytest
import torch

from tests.measure.conftest import double, make_case, timed
from walsh.errors import FormatError
from walsh.measure import limits as limits_module
from walsh.measure import run as run_module
from walsh.measure.case import Absent, Provider, Setting, Work
from walsh.measure.limits import measure_limits
from walsh.measure.machine import Limits, OverLimit, check_fraction
from walsh.measure.rows import read_run, write_run
from walsh.measure.run import Plan, perform
from walsh.measure.timing import CpuClock
from walsh.measure.verdict import NotConforming, Verdict

MACHINE = Limits({1 << 20: 1e9}, {"float32": 1e9}, 1e-6)


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setattr(run_module, "measure_limits", lambda *a, **k: Limits.from_dict(MACHINE.to_dict()))


def make_plan(case, verdicts=(), committed=None, absent=()):
    proofs = {name: Verdict(name, "m" * 64, "d" * 64, 10, 1) for name in verdicts}
    return Plan(Setting(quick=True), [case], list(absent), proofs, "m" * 64, 0.0, ["bench"], committed)


def test_a_backend_without_proof_is_not_timed(clock):
    calls = []
    case = make_case(Provider("ours", lambda i: calls.append(1), "torch"))
    with pytest.raises(NotConforming, match="torch"):
        perform(make_plan(case), clock)
    assert not calls


def test_rows_carry_their_proof_and_their_origin(clock):
    case = make_case(Provider("ours", timed(5e-4, double), "torch"))
    run = perform(make_plan(case, ["torch"], absent=[Absent("c", "p", "why")]), clock)
    baseline, ours = run.rows
    assert (baseline["role"], ours["role"]) == ("baseline", "candidate")
    assert ours["conformance"] == "d" * 64
    assert baseline["conformance"] is None
    assert ours["manifest"] == "m" * 64
    for key in ("commit", "dirty", "packages", "cpu", "gpu", "cores", "affinity", "torch_threads", "seed"):
        assert key in ours["provenance"]
    assert ours["binds"] == "memory"
    assert ours["limit_seconds"] == pytest.approx(1024 / 1e9)
    assert run.footer["problems"] == []
    assert run.absent[0]["reason"] == "why"


def test_more_than_100_percent_of_a_limit_is_an_error(clock):
    case = dataclasses.replace(make_case(), work=Work(0, 1e9))
    run = perform(make_plan(case), clock)
    assert run.rows[0]["fraction"] > 1
    assert len(run.footer["problems"]) == 1
    assert "% of a limit measured in the same run" in run.footer["problems"][0]
    check_fraction("at the limit", 1.0)
    with pytest.raises(OverLimit, match="100\\.1 %"):
        check_fraction("just above", 1.001)


def test_a_kernel_slowed_by_30_percent_misses_its_gate(clock):
    def gated(seconds):
        return make_case(Provider("ours", timed(seconds, double), "torch", least_ratio=1.8))

    assert perform(make_plan(gated(5e-4), ["torch"]), clock).footer["problems"] == []
    problems = perform(make_plan(gated(6.5e-4), ["torch"]), clock).footer["problems"]
    assert len(problems) == 1
    assert "its gate is 1.8" in problems[0]


def test_a_stale_kernel_fails_the_run(clock):
    kept = []

    def stale(inputs):
        if not kept:
            kept.append(double(inputs))
        return kept[0]

    run = perform(make_plan(make_case(Provider("ours", timed(1e-9, stale), "torch")), ["torch"]), clock)
    assert [row["provider"] for row in run.rows] == ["plain"]
    assert "the output of a timed call is wrong" in run.footer["problems"][0]


def test_a_case_that_raises_fails_the_run_and_spares_the_others(clock):
    def broken(inputs):
        raise RuntimeError("boom")

    bad = dataclasses.replace(make_case(Provider("ours", broken, "torch")), name="rms_norm/bad")
    plan = dataclasses.replace(make_plan(make_case(), ["torch"]), cases=[bad, make_case()])
    run = perform(plan, clock)
    assert run.footer["problems"] == ["rms_norm/bad: RuntimeError: boom"]
    assert [row["case"] for row in run.rows] == ["rms_norm/fake"]


def test_a_run_is_read_back_as_it_was_written(clock, tmp_path):
    run = perform(make_plan(make_case()), clock)
    write_run(tmp_path / "rows.jsonl", run)
    again = read_run(tmp_path / "rows.jsonl")
    write_run(tmp_path / "again.jsonl", again)
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:-1], "no footer"),
        (lambda lines: [lines[0], *lines[2:]], "its footer claims"),
        (lambda lines: lines[1:], "one header"),
        (lambda lines: [line.replace('"p50"', '"p51"') for line in lines], "missing or unknown"),
        (lambda lines: [*lines, "{"], "JSON lines"),
        (lambda lines: ['{"type": "other"}', *lines], "type 'other'"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(clock, tmp_path, edit, message):
    path = tmp_path / "rows.jsonl"
    write_run(path, perform(make_plan(make_case()), clock))
    path.write_text("\n".join(edit(path.read_text("utf-8").splitlines())) + "\n", encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        read_run(path)


def test_the_binding_limit_is_the_largest():
    machine = Limits({1 << 10: 1e9, 1 << 20: 2e9}, {"float32": 1e10, "int8": 4e10}, 1e-5)
    assert machine.bind(Work(0, 4e6)) == (pytest.approx(2e-3), "memory")
    assert machine.bind(Work(1e9, 4e6)) == (pytest.approx(0.1), "compute")
    assert machine.bind(Work(1e9, 4e6, peak="int8")) == (pytest.approx(0.025), "compute")
    assert machine.bind(Work(10, 10, launches=3)) == (pytest.approx(3e-5), "launch")


def test_limits_are_measured_and_keep_the_better():
    found = measure_limits(CpuClock(flush_bytes=4096), quick=True, repeats=1)
    assert set(found.peak) >= {"float32", "bfloat16", "int8"}
    assert found.launch < 1e-2
    better = Limits({size: 2 * rate for size, rate in found.bandwidth.items()}, {"float32": 1.0}, 1.0)
    peak = found.peak["float32"]
    found.merge(better)
    assert found.bandwidth == better.bandwidth
    assert found.peak["float32"] == peak
    assert found.launch < 1e-2
    assert limits_module.WORKING_SETS[-2] in found.bandwidth
    assert torch.get_num_threads() >= 1
