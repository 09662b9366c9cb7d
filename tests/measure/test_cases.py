"""The case files: one per op and job, every provider right, every formula stated."""

import pytest

from walsh.errors import ParameterError
from walsh.measure import work
from walsh.measure.case import Setting
from walsh.measure.cases import JOBS, load_cases, locate_cases
from walsh.suite.catalog import OPS

ROOMS = (*OPS, *JOBS)


def test_every_op_and_every_job_has_its_file():
    folder = locate_cases()
    assert [room for room in ROOMS if not (folder / f"{room}.py").is_file()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_provider_passes_the_check_of_its_case_on_other_values(room):
    cases, absent = load_cases(locate_cases(), Setting(quick=True), [room])
    assert cases or absent
    for case in cases:
        assert case.work.bytes > 0
        names = [provider.name for provider in case.providers]
        assert len(set(names)) == len(names) > 1
        assert case.baseline.backend is None or room == "canister"
        for provider in case.providers:
            inputs, others = case.fresh(11), None
            error = (provider.check or case.check)(inputs, provider.run(inputs), 5)
            assert error <= 1, f"{case.name}: {provider.name}: {error}"
            stale = provider.run(inputs)
            others = case.fresh(12)
            if case.op == "load":
                continue  # its inputs are files, and a fresh one takes the place of the one before
            assert not (provider.check or case.check)(others, stale, 5) <= 1, f"{case.name}: {provider.name}: stale"


def test_cases_are_found_by_name_and_wrong_names_are_refused(tmp_path):
    setting = Setting(quick=True)
    cases, _ = load_cases(locate_cases(), setting, ["hadamard"], ["hadamard/transform*"])
    assert [case.name for case in cases] == ["hadamard/transform32/rows8192/float32"]
    with pytest.raises(ParameterError, match="neither ops nor jobs"):
        load_cases(locate_cases(), setting, ["quaternion"])
    with pytest.raises(ParameterError, match="no case fits"):
        load_cases(locate_cases(), setting, ["rope"], ["nothing"])
    with pytest.raises(ParameterError, match="--cases"):
        locate_cases(tmp_path)


def test_formulas_by_hand():
    # 2 M (K/8)(N/8) r and M K b + M N b + (K N / 8) w / 8, M = 2, K = N = 16, r = 30, float32, 2 bits
    octonion = work.cayley_dickson_linear(2, 16, 16, "float32")
    assert octonion.flops == 2 * 2 * 2 * 2 * 30
    assert octonion.bytes == 2 * 16 * 4 + 2 * 16 * 4 + 16 * 16 / 8 * 2 / 8
    assert octonion.dense_flops == 2 * 2 * 16 * 16
    # 2 M K N / 32 + 5 M (K + N)
    assert work.hadamard_linear(3, 64, 32, "bfloat16").flops == 2 * 3 * 64 * 32 / 32 + 5 * 3 * 96
    assert work.transform(320, 32, "float32").flops == 320 * 5
    assert work.transform(320, 32, "float32").bytes == 2 * 320 * 4
    assert work.ternary(100).bytes == 4 * 100 * 2 + 100
    assert work.head_mixer(2, 4, "float32", 8, 64).flops == 2 * 2 * 16 * 64
