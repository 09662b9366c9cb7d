"""Fuzzing finds what is wrong, shrinks it, writes a vector that fails, and leaves the right alone."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from walsh.cli import main
from walsh.errors import ParameterError
from walsh.suite.backend import Skip
from walsh.suite.backends import load_backend
from walsh.suite.backends.reference import ReferenceBackend
from walsh.suite.catalog import CALLS
from walsh.suite.fuzz import fuzz, lane_of
from walsh.suite.fuzz.draws import DRAWS
from walsh.suite.policy import Policy
from walsh.suite.runner import run_case
from walsh.suite.vectors import read_group


class Own:
    """Right, and small enough to be spoiled: rms_norm and pack_ternary in NumPy."""

    def describe(self):
        return {"name": "own", "version": "1", "calls": ["rms_norm", "hadamard_transform"]}

    def run(self, op, params, inputs, out):
        x = inputs["x"].astype(np.float64)
        if params["call"] == "rms_norm":
            y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + params["eps"]) * inputs["weight"].astype(np.float64)
        else:
            n = x.shape[-1]
            h = np.array([[(-1) ** (g & k).bit_count() for k in range(n)] for g in range(n)], dtype=np.float64)
            y = x @ h / (np.sqrt(n) if params["normalize"] else 1)
        out["y"][...] = y.astype(out["y"].dtype)

    def close(self):
        pass


class WrongFromFive(Own):
    """Wrong for rows of five features or more."""

    def run(self, op, params, inputs, out):
        super().run(op, params, inputs, out)
        if params["call"] == "rms_norm" and inputs["x"].shape[-1] >= 5:
            out["y"][..., 4] = 0


def test_every_draw_belongs_to_a_call():
    assert set(DRAWS) <= set(CALLS)
    assert {CALLS[name].op for name in DRAWS} == {CALLS[name].op for name in CALLS} - {"kv_cache", "forward"}
    assert {lane_of(CALLS[name]) for name in DRAWS} == {"exact", "rounded", "strict", "gradient"}


def test_the_right_is_left_alone(tmp_path):
    report = fuzz([Own()], rounds=60, output=tmp_path)
    assert report.rounds == 60
    assert report.found == ()
    assert report.answered == {"own": 60}
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_found_shrunk_and_written(tmp_path):
    report = fuzz([Own(), WrongFromFive()], ["rms_norm"], rounds=400, output=tmp_path)
    (found,) = report.found
    assert found.call == "rms_norm"
    (case,) = read_group_copy(found.path, tmp_path)
    x = case.load_inputs()["x"]
    # The smallest: one row, or none before it, of exactly five features, few of them not zero.
    assert x.shape == (5,)
    assert np.count_nonzero(x) == 1
    for backend, outcome in ((Own(), "pass"), (WrongFromFive(), "fail")):
        assert run_case(backend, backend.describe(), case, Policy({}, (), "")).outcome == outcome


def read_group_copy(path, folder):
    """The vector is ready to be added: in its place it loads, and fails only the wrong backend."""
    place = folder / "vectors" / "rms_norm"
    place.mkdir(parents=True)
    (place / "fuzz.json").write_bytes(path.read_bytes())
    return read_group(place / "fuzz.json")


def test_the_same_seed_draws_the_same_rounds(tmp_path):
    class Witness(Own):
        def __init__(self):
            self.seen = []

        def run(self, op, params, inputs, out):
            self.seen.append(inputs["x"].tobytes())
            super().run(op, params, inputs, out)

    def witness(seed):
        backend = Witness()
        fuzz([backend], ["rms_norm"], rounds=15, seed=seed, output=tmp_path)
        return backend.seen

    assert witness(1) == witness(1)
    assert witness(1) != witness(2)


def test_refusals_are_no_disagreement(tmp_path):
    class Choosy(Own):
        def run(self, op, params, inputs, out):
            return Skip("float32 only") if inputs["x"].dtype != np.float32 else super().run(op, params, inputs, out)

    report = fuzz([Choosy()], rounds=40, output=tmp_path)
    assert report.found == ()
    assert 0 < report.answered["own"] < 40


def test_limits(tmp_path):
    with pytest.raises(ParameterError, match="would not end"):
        fuzz([Own()], output=tmp_path)
    with pytest.raises(ParameterError, match="nothing to draw"):
        fuzz([Own()], ["rope"], rounds=1, output=tmp_path)
    assert fuzz([Own()], seconds=0.5, output=tmp_path).seconds < 30


def test_every_call_can_be_drawn(tmp_path):
    report = fuzz([ReferenceBackend()], rounds=20 * len(DRAWS), output=tmp_path)
    assert report.found == ()
    assert report.rounds == 20 * len(DRAWS)


def test_torch_and_the_reference_agree(tmp_path):
    pytest.importorskip("torch")
    report = fuzz([load_backend("reference"), load_backend("torch")], rounds=300, seed=3, output=tmp_path)
    assert [found.call for found in report.found] == []


def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "fuzzed.py").write_text(
        "from walsh.suite.backends.reference import ReferenceBackend\n"
        "class Odd(ReferenceBackend):\n"
        "    def describe(self):\n"
        "        return {'name': 'odd', 'version': '1', 'calls': ['hash_indices']}\n"
        "    def run(self, op, params, inputs, out):\n"
        "        t = inputs['ids'] % (2**40)\n"
        "        m = (1021, 1019, 1013)\n"
        "        two = params['tables'] == 2\n"
        "        for i in range(params['tables']):\n"
        "            out['indices'][..., i] = (t % 1021, t // 1021 % 1000)[i] if two else t % m[i]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    command = ["conformance", "fuzz", "--backend", "fuzzed:Odd", "--rounds", "200"]
    found = run(main, command)
    assert found.exit_code == 1, found.output
    assert "1 disagreements: hash_indices" in found.output
    assert (tmp_path / "fuzz-found/hash_indices/fuzz.json").is_file()
    document = json.loads(run(main, [*command, "--json"]).output)
    assert document["found"][0]["call"] == "hash_indices"
    assert run(main, ["conformance", "fuzz", "--op", "nothing"]).exit_code == 64
    assert run(main, ["conformance", "fuzz", "--backend", "fuzzed:Odd", "--op", "rope"]).exit_code == 64
    assert run(main, ["conformance", "fuzz", "--backend", "reference", "--rounds", "5"]).exit_code == 0
