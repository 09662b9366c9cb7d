"""The case files: one per op and job, every provider right, every formula stated."""

import pytest
import torch

from walsh.errors import ParameterError
from walsh.measure import work
from walsh.measure.case import Absent, Provider, Setting
from walsh.measure.cases import JOBS, find_cases, load_cases, locate_cases
from walsh.measure.models import Model
from walsh.measure.threads import each_way
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


def test_cases_are_found_one_at_a_time(tmp_path):
    (tmp_path / "rope.py").write_text(
        "from walsh.measure.case import Absent\n\n\ndef cases(setting):\n"
        "    yield Absent('rope/a', 'somebody', 'away')\n    raise RuntimeError('asked for another')\n"
    )
    found = find_cases(tmp_path, Setting(quick=True), ["rope", "swiglu"])
    assert next(found) == Absent("rope/a", "somebody", "away")
    with pytest.raises(RuntimeError, match="asked for another"):
        next(found)


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


def test_work_of_a_head_on_some_tokens_by_hand():
    # One block of C = 64: four [C, C], gate, up and down [hidden, C]; 256 rows of the head.
    model = Model(Setting(), 1, 2, 64, 256)
    layers, head = 4 * 64 * 64 + 3 * 64 * model.config["ffn_hidden"], 256 * 64
    every, last = (model.work(10, dense=True, bits=32, heads=heads) for heads in (None, 1))
    assert (every.flops, last.flops) == (2 * 10 * (layers + head), 2 * (10 * layers + head))
    assert (every.dense_flops, last.dense_flops) == (every.flops, last.flops)
    assert every.bytes == last.bytes == 4 * (layers + head)


def test_a_plain_model_may_apply_its_head_to_the_last_token_alone():
    plain = Model(Setting(), 1, 2, 64, 256).plain
    ids, cache = torch.arange(12)[None], plain.make_cache(1, 12)
    torch.testing.assert_close(plain(ids, cache, last=True), plain(ids)[:, -1:])
    assert cache.length == 12


def test_each_way_adds_one_thread_where_that_is_a_choice():
    provider = Provider("x", lambda _: torch.get_num_threads(), exact_counts=True, model_bytes=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert each_way(Setting(), [provider]) == [provider]
        torch.set_num_threads(2)
        assert each_way(Setting("cuda"), [provider]) == [provider]
        first, second = each_way(Setting(), [provider])
        assert (first.run({}), second.run({}), torch.get_num_threads()) == (2, 1, 2)
        assert (second.name, second.exact_counts, second.model_bytes) == ("x, one thread", False, None)
    finally:
        torch.set_num_threads(before)
