"""The configuration table and the search that fills it, without a GPU: times are computed, never measured.

Nothing here runs a kernel: launches are recorded, as for ahead-of-time compilation, so any machine with Triton will do.
"""

import json
from dataclasses import asdict, replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from walsh.errors import BackendError, ParameterError  # noqa: E402  # after the guards
from walsh.kernels.triton import _cases, _config, _excuses, _workloads, tune  # noqa: E402
from walsh.kernels.triton import compile as ahead  # noqa: E402
from walsh.kernels.triton._config import Rows, Shape, configured, given, shape_of  # noqa: E402
from walsh.kernels.triton._launch import record_launches  # noqa: E402
from walsh.kernels.triton.gemm_tiles import Blocks  # noqa: E402

BF16, META = torch.bfloat16, torch.device("meta")
SHAPES = {
    "signed_xor": Shape("signed_xor", 256, 64, 64, 8, BF16),
    "signed_xor_fast": Shape("signed_xor_fast", 256, 64, 64, 8, BF16),
    "hadamard_linear": Shape("hadamard_linear", 256, 16, 16, 32, BF16),
    "hadamard_weight": Shape("hadamard_weight", 16, 16, 256, 32, BF16),
    "hadamard_quantize": Shape("hadamard_quantize", 256, 16, 1, 32, BF16),
    "hadamard_transform": Shape("hadamard_transform", 256, 64, 1, 1, BF16),
    "attention": Shape("attention", 256, 256, 64, 1, BF16),
    "attention_dq": Shape("attention_dq", 256, 256, 64, 1, BF16),
    "attention_dkv": Shape("attention_dkv", 256, 256, 64, 1, BF16),
    "log_sum": Shape("log_sum", 256, 8192, 1, 1, BF16),
    "logits_gradient": Shape("logits_gradient", 256, 8192, 1, 1, BF16),
    "rms_norm": Shape("rms_norm", 256, 512, 1, 1, BF16),
    "rms_norm_backward": Shape("rms_norm_backward", 256, 512, 1, 1, BF16),
    "quantize_activations": Shape("quantize_activations", 256, 512, 1, 1, BF16),
    "ternary": Shape("ternary", 65536, 1, 1, 1, BF16),
    "ternary_packed": Shape("ternary_packed", 65536, 1, 1, 1, BF16),
}
KERNELS = {
    "signed_xor": "signed_xor_kernel",
    "signed_xor_fast": "signed_xor_kernel",
    "hadamard_transform": "transform_last_kernel",
    "quantize_activations": "quantize_kernel",
    "ternary_packed": "ternary_pack_kernel",
}
"""The kernel that an entry decides, where it is not the op's name with ``_kernel``."""


def launches_of(call, op):
    """The recorded launches of the kernel that an entry of this op decides."""
    with record_launches() as launches:
        call()
    name = KERNELS.get(op, f"{op}_kernel")
    return [launch for launch in launches.values() if launch.kernel.__name__ == name]


def rule_of(shape):
    with record_launches(), _config.asked() as shapes:
        _workloads.workload(shape, META)()
    return shapes[shape]


def test_sizes_are_rounded_up_to_powers_of_two():
    assert [_config.bucket(size) for size in (0, 1, 2, 3, 170, 2048, 2049)] == [1, 1, 2, 4, 256, 2048, 4096]
    shape = shape_of("signed_xor", (2000, 170, 512), 8, BF16)
    assert shape.key == "signed_xor/M2048/N256/K512/D8/bfloat16"
    assert Shape.parse(shape.key) == shape


@pytest.mark.parametrize("key", ["", "signed_xor", "signed_xor/M1/N1/K1/D1/nothing", "x/M1/N1/K1/D1/bfloat16/more"])
def test_a_damaged_key_is_refused(key):
    with pytest.raises(ParameterError, match="run the tuner again"):
        Shape.parse(key)
    with pytest.raises(ParameterError, match="expected an op"):
        _workloads.workload(Shape("unknown", 1, 1, 1, 1, BF16), META)


def test_the_table_knows_better_than_the_rule_only_where_it_has_an_entry():
    shape, rule = Shape("rms_norm", 8, 64, 1, 1, BF16), Rows(4, 64, 4)
    assert configured(shape, META, rule) is rule
    with given({shape.key: {"rows": 2, "warps": 1}}):
        assert configured(shape, META, rule) == Rows(2, 64, 1)
        assert configured(replace(shape, m=16), META, rule) is rule
    with given({shape.key: {"bm": 2}}), pytest.raises(ParameterError, match=r"\['bm'\]"):
        configured(shape, META, rule)


def test_every_op_is_tried_here():
    assert set(SHAPES) == set(_workloads.OPS)


@pytest.mark.parametrize("op", SHAPES)
def test_an_entry_decides_what_is_launched(op):
    shape = SHAPES[op]
    call, rule = _workloads.workload(shape, META), rule_of(shape)
    assert launches_of(call, op)
    for choice in _workloads.candidates(shape, rule)[-3:]:
        with given({shape.key: tune.entry_of(choice)}):
            found = launches_of(call, op)
        assert found
        for launch in found:
            assert launch.options["num_warps"] == choice.warps
            sides = {name: value for name, value in asdict(choice).items() if name in ("bm", "bn", "bk", "block")}
            assert set(sides.values()) <= set(launch.constants.values())


@pytest.mark.parametrize("op", SHAPES)
def test_candidates_are_few_and_begin_with_the_rule(op):
    shape, rule = SHAPES[op], rule_of(SHAPES[op])
    options = _workloads.candidates(shape, rule)
    assert options[0] == rule
    assert len(set(options)) == len(options)
    assert 3 < len(options) < 200
    for choice in options[1:]:
        if isinstance(choice, Blocks):
            assert choice.bm <= max(16, 2 * shape.m)
            assert choice.bn <= max(16, 2 * shape.n)
            assert shape.d * choice.bm * choice.bn <= 128 * 32 * choice.warps


@pytest.mark.parametrize("algebra", ["octonion", "hadamard", "dense"])
def test_what_a_model_asks_for_can_be_measured(algebra):
    wanted = tune.wanted(256, 512, algebra, BF16)
    layers = {"octonion": {"signed_xor", "signed_xor_fast"}, "dense": {"signed_xor"}}
    layers["hadamard"] = {"signed_xor", "hadamard_linear", "hadamard_weight", "hadamard_quantize"}
    everywhere = set(_workloads.OPS) - {op for ops in layers.values() for op in ops}
    assert {shape.op for shape in wanted} == everywhere | layers[algebra]
    assert {shape.m for shape in wanted if shape.op == "rms_norm"} == {256, 1}
    for shape in wanted:
        rule_of(shape)  # the workload asks for exactly this shape


class Clock:
    """Times by option, and how often each was asked for; no option, no time."""

    def __init__(self, **times):
        self.times, self.budgets = times, []

    def __call__(self, option, budget):
        self.budgets.append((option, budget))
        return self.times[option]


def test_the_search_finds_the_fastest():
    clock = Clock(rule=10.0, a=9.0, b=5.0, c=7.0)
    assert tune.search("rule", ["a", "b", "c"], clock) == "b"
    assert [option for option, budget in clock.budgets if budget == tune.SHORT] == ["rule", "a", "b", "c"]


def test_the_search_keeps_the_rule_unless_it_is_beaten_by_more_than_noise():
    assert tune.search("rule", ["a"], Clock(rule=10.0, a=10.0 * (1 - tune.MARGIN))) == "rule"
    assert tune.search("rule", ["a"], Clock(rule=10.0, a=10.0 * (1 - 2 * tune.MARGIN))) == "a"
    assert tune.search("rule", [], Clock(rule=10.0)) == "rule"


def test_the_search_passes_over_what_does_not_run(capsys):
    assert tune.search("rule", ["broken", "a"], Clock(rule=10.0, a=5.0)) == "a"
    assert "broken: KeyError" in capsys.readouterr().out
    assert tune.search("broken", ["a"], Clock(a=5.0)) == "a"
    assert tune.search("broken", ["dead"], Clock()) == "broken"


def test_the_search_times_only_the_best_again():
    names = [f"o{place}" for place in range(40)]
    times = {name: 10.0 + place for place, name in enumerate(names)}
    clock = Clock(rule=30.0, **times)
    assert tune.search("rule", names, clock) == "o0"
    again = [option for option, budget in clock.budgets if budget == tune.LONG]
    assert set(again) == {"rule", *names[:10]}


def test_a_lucky_first_time_does_not_win():
    times = iter([10.0, 1.0, 9.0, 8.0, 10.0, 10.0, 9.0, 8.0])
    assert tune.search("rule", ["lucky", "a", "b"], lambda option, budget: next(times)) == "b"


@pytest.mark.parametrize("op", SHAPES)
def test_a_shape_is_tuned_by_launching_it(op):
    """A device whose time is the distance from 2 warps finds an entry with the fewest that there are candidates for."""

    def timer(call, budget):
        return 1.0 + abs(launches_of(call, op)[0].options["num_warps"] - 2)

    shape = SHAPES[op]
    with record_launches():
        entry = tune.tune_shape(shape, META, timer)
    nearest = min((choice.warps for choice in _workloads.candidates(shape, rule_of(shape))), key=lambda w: abs(w - 2))
    rule = rule_of(shape)
    if abs(rule.warps - 2) == abs(nearest - 2):
        assert entry is None
    else:
        assert entry is not None
        assert entry["warps"] == nearest
        with given({shape.key: entry}):
            assert launches_of(_workloads.workload(shape, META), op)[0].options["num_warps"] == nearest


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """A table of two devices at another place."""
    path = tmp_path / "configs.json"
    path.write_text(_config.PATH.read_text())
    monkeypatch.setattr(_config, "PATH", path)
    shape = SHAPES["hadamard_linear"]
    entries = {shape.key: {"bm": 32, "bn": 8, "bk": 16, "warps": 4, "stages": 2}}
    for op in ("rms_norm", "log_sum"):
        entries[SHAPES[op].key] = {"rows": 1, "block": 512, "warps": 2}
    tune.store(path, "Device A", "sm_90", entries)
    tune.store(path, "Device B", "gfx942", {shape.key: {"warps": 16}})
    yield path
    _config.table.cache_clear()


def test_what_is_stored_is_read_again_by_device(tuned):
    assert sorted(_config.table()) == sorted({*json.loads(tuned.read_text())["devices"]})
    record = _config.table()["Device A"]
    assert record["target"] == "sm_90"
    assert record["configs"][SHAPES["hadamard_linear"].key]["bm"] == 32
    tune.store(tuned, "Device A", "sm_90", {}, [SHAPES["log_sum"].key])
    assert SHAPES["log_sum"].key not in _config.table()["Device A"]["configs"]
    assert SHAPES["rms_norm"].key in _config.table()["Device A"]["configs"]


def test_every_stored_configuration_is_compiled_for_its_device(tuned, monkeypatch):
    monkeypatch.setattr(_cases, "cases", lambda full: iter(()))
    selected = list(ahead._select(True, ahead.TARGETS))
    compiled = {(case, target.name) for case, _, target in selected}
    devices = {name: record for name, record in _config.table().items() if record["configs"]}
    assert {case.split(":")[0] for case, _ in compiled} == set(devices)
    for name, record in devices.items():
        keys = {
            case.split(": ")[1] for case, target in compiled if case.startswith(name) and target == record["target"]
        }
        assert keys == set(record["configs"])
    forced = [launch for case, launch, _ in selected if case.endswith(SHAPES["hadamard_linear"].key)]
    assert {launch.options["num_warps"] for launch in forced} == {4, 16}
    monkeypatch.setattr(ahead, "MOST_COMPILATIONS", 3)
    assert len(list(ahead._select(False, ahead.TARGETS))) == 3


def test_the_stored_table_is_what_its_readers_expect():
    for name, record in _config.table().items():
        assert record["target"] in {target.name for target in ahead.TARGETS}, name
        for key, entry in record["configs"].items():
            rule = rule_of(Shape.parse(key))
            assert set(entry) <= set(asdict(rule)), key


def test_continuous_integration_can_afford_the_compilations():
    assert len(list(ahead._select(False, ahead.TARGETS))) <= ahead.MOST_COMPILATIONS


def test_an_excuse_is_for_so_much_of_one_kernel():
    excuse = _excuses.Excuse("some_kernel", 16, "because", {"N": 64})
    assert excuse.covers("some_kernel", {"N": 64, "M": 1}, 16)
    assert not excuse.covers("some_kernel", {"N": 64}, 17)
    assert not excuse.covers("some_kernel", {"N": 32}, 8)
    assert not excuse.covers("other_kernel", {"N": 64}, 8)
    assert not replace(excuse, version="0.").covers("some_kernel", {"N": 64}, 8)
    assert all(excuse.reason for excuse in _excuses.EXCUSED_SPILLS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(BackendError, match="real hardware"):
        tune.tune_here([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpu_session_says_that_it_could_not_tune():
    gpu = pytest.importorskip("bench.gpu")
    step = gpu.tune_kernels(quick=True)
    assert (step.name, step.outcome) == ("tune", "fail")
    assert "real hardware" in step.detail
