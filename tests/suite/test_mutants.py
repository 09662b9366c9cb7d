"""The registry of seeded bugs, the import hook, and a few mutants run for real."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from walsh.cli import main
from walsh.errors import ParameterError, VectorError
from walsh.suite.catalog import OPS
from walsh.suite.mutants import (
    CLASSES,
    Edit,
    Mutant,
    apply_edits,
    check_sources,
    find_mutant,
    load_excused,
    load_registry,
    source_path,
)
from walsh.suite.mutants import campaign as campaign_module
from walsh.suite.mutants.campaign import (
    Campaign,
    Verdict,
    draw_sample,
    run_campaign,
    select_mutants,
    summarise,
    to_markdown,
    touched,
)
from walsh.suite.schema import dump_canonical, locate_data


def test_there_are_enough():
    registry = load_registry()
    assert len(registry) >= 120
    counts = Counter(mutant.op for mutant in registry)
    assert set(counts) == set(OPS)
    assert min(counts.values()) >= 8
    backends = Counter(mutant.backend for mutant in registry)
    assert backends["reference"] + backends["torch"] >= 200
    assert backends["triton"] >= 45
    assert backends["rust"] >= 10
    assert {mutant.kind for mutant in registry} == set(CLASSES)


def test_every_edit_fits_its_module():
    check_sources(load_registry())


def test_an_edit_that_does_not_fit():
    edits = [Edit("walsh.errors", "class", "struct")]
    with pytest.raises(VectorError, match="occurs 2 times"):
        apply_edits("class A: pass\nclass B: pass\n", edits, "x")
    with pytest.raises(VectorError, match="occurs 0 times"):
        apply_edits("", edits, "x")
    with pytest.raises(VectorError, match="no Python"):
        apply_edits("class A: pass\n", edits, "x")


def test_a_mutant_is_what_is_imported():
    """In a process of its own, because this one has imported everything."""
    code = """
import inspect
from walsh.suite.mutants import find_mutant
from walsh.suite.mutants.rewrite import install
install(find_mutant("hadamard-reference-sign"))
from walsh import reference
print(reference.hadamard_transform([1.0, 2.0], normalize=False).tolist())
print("b - a" in inspect.getsource(reference.hadamard.butterflies))
try:
    install(find_mutant("hadamard-reference-sign"))
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["[3.0, 1.0]", "True"]
    assert "imported already" in lines[2]


def pick(*names):
    return [find_mutant(name) for name in names]


@pytest.fixture(scope="module")
def campaign():
    chosen = pick("bitmask-reference-bit-order", "rms_norm-reference-epsilon-default", "bitmask-torch-tail")
    return run_campaign(chosen, locate_data(), matrix=True, manifest="0" * 64)


def test_some_mutants_are_killed_in_their_lane(campaign):
    assert not campaign.controls
    assert [verdict.status for verdict in campaign.verdicts] == ["killed"] * 3
    for verdict in campaign.verdicts:
        assert verdict.mutant.killer in verdict.kills
        assert verdict.kills[verdict.mutant.killer]["case"].startswith(verdict.mutant.op)
    assert campaign.passed


def test_a_survivor_and_a_broken_mutant_are_told(tmp_path):
    """An unregistered mutant is broken in the worker; a mutant that changes nothing would survive."""
    ghost = Mutant("bitmask-reference-ghost", "bitmask", "reference", "sign", (), "exact", "not registered")
    found = run_campaign([ghost], locate_data())
    assert found.verdicts[0].status == "broken"
    assert "not in the registry" in found.verdicts[0].message
    assert not found.passed


def verdicts(status, **more):
    mutant = find_mutant("bitmask-torch-tail")
    return Campaign((Verdict(mutant, status, {}, 0.1),), **more)


@pytest.mark.parametrize("status", ["survived", "broken"])
def test_a_survivor_fails(status):
    assert not verdicts(status).passed


def test_an_excused_survivor_passes_and_a_failing_control_does_not():
    assert verdicts("excused").passed
    assert not verdicts("killed", controls=("torch, bitmask",)).passed
    assert not verdicts("killed", problems=("stale",)).passed
    assert not Campaign(()).passed


def test_reports(campaign):
    document = json.loads(json.dumps(summarise(campaign)))
    assert document["killed"] == document["total"] == 3
    assert document["mutants"][0]["kills"]["exact"].startswith("bitmask/")
    page = to_markdown(campaign)
    assert "3 of 3 mutants killed" in page
    assert "## rms_norm" in page
    assert "**X**" in page


def test_select():
    registry = load_registry()
    assert {m.op for m in select_mutants(registry, ["rope"], [], [])} == {"rope"}
    assert {m.backend for m in select_mutants(registry, [], ["torch"], [])} == {"torch"}
    assert len(select_mutants(registry, [], [], ["bitmask-torch-tail"])) == 1
    for wrong in (["x"], [], []), ([], ["x"], []), ([], [], ["x"]), (["rope"], [], ["bitmask-torch-tail"]):
        with pytest.raises(ParameterError):
            select_mutants(registry, *wrong)


def test_a_sample_is_the_same_for_a_seed():
    registry = load_registry()
    assert draw_sample(registry, 5, "a") == draw_sample(registry, 5, "a")
    assert draw_sample(registry, 5, "a") != draw_sample(registry, 5, "b")
    assert len(draw_sample(registry, 10**6, "a")) == len(registry)


def test_what_a_change_touches():
    registry = load_registry()
    assert touched(registry, ["README.md"]) == []
    assert {m.op for m in touched(registry, ["walsh/kernels/torch/rope.py"])} == {"rope"}
    assert {m.op for m in touched(registry, ["conformance/vectors/bitmask/exact-encode.json"])} == {"bitmask"}
    assert "swiglu" in {m.op for m in touched(registry, ["walsh/reference/strict/_arithmetic.py"])}
    assert touched(registry, ["walsh/suite/comparer.py"]) == list(registry)


def test_excuses(tmp_path):
    (tmp_path / "mutants").mkdir()
    path = tmp_path / "mutants" / "excused.json"
    assert load_excused(tmp_path) == {}
    entry = {"id": "bitmask-torch-tail", "reason": "no input can tell them apart", "date": "2024-01-01"}
    path.write_bytes(dump_canonical({"schema": 1, "excused": [entry]}))
    assert load_excused(tmp_path) == {entry["id"]: entry["reason"]}
    path.write_bytes(dump_canonical({"schema": 1, "excused": [{**entry, "id": "no-such"}]}))
    with pytest.raises(VectorError, match="not in the registry"):
        load_excused(tmp_path)
    path.write_bytes(dump_canonical({"schema": 1, "excused": [{**entry, "reason": "why not"}]}))
    with pytest.raises(VectorError):
        load_excused(tmp_path)
    assert load_excused(locate_data()) is not None


def test_the_command_lists_and_refuses():
    run = CliRunner().invoke
    found = run(main, ["mutants", "--list", "--op", "rope"])
    assert found.exit_code == 0
    assert "rope-torch-backward" in found.output
    assert run(main, ["mutants", "--op", "nothing"]).exit_code == 64
    assert run(main, ["mutants", "--changed-since", "no-such-revision"]).exit_code == 64
    assert run(main, ["mutants", "--list", "--sample", "3"]).output.count("\n") == 3


def test_a_clone_without_the_revision_runs_the_sample():
    """A shallow clone does not have it; then nothing is known about what changed."""
    run = CliRunner().invoke
    found = run(main, ["mutants", "--list", "--changed-since", "no-such-revision", "--sample", "3"])
    assert found.exit_code == 0
    assert found.stdout.count("\n") == 3
    assert "cannot compare with no-such-revision" in found.stderr
    limited = run(main, ["mutants", "--list", "--op", "rope", "--at-most", "2", "--seed", "1"])
    assert limited.stdout.count("\n") == 2
    assert "by seed 1" in limited.stderr
    assert run(main, ["mutants", "--list", "--op", "rope", "--at-most", "2", "--seed", "1"]).stdout == limited.stdout


def test_a_mutant_of_the_engine_is_a_change_of_its_sources():
    rope = source_path("walsh_engine::rope")
    assert rope.parts[-4:] == ("canister", "engine", "src", "rope.rs")
    assert {m.backend for m in touched(load_registry(), ["canister/engine/src/rope.rs"])} == {
        "reference",
        "torch",
        "triton",
        "rust",
    }
    assert {m.op for m in touched(load_registry(), ["canister/engine/src/arithmetic.rs"])} >= {"swiglu", "attention"}
    with pytest.raises(VectorError, match="need a checkout"):
        source_path("walsh_engine::no_such")


def test_a_mutant_of_the_engine_needs_a_toolchain(monkeypatch):
    monkeypatch.setattr(campaign_module, "available", lambda backend: backend != "rust")
    found = run_campaign([find_mutant("rope-rust-sign")], locate_data())
    assert found.skipped == {"rust": 1}
    assert not found.passed
    assert "Not run here: 1 of rust" in to_markdown(found)


def test_the_command_runs(tmp_path):
    """In a process of its own: a worker's output goes to the real stdout."""
    files = [tmp_path / "kill.json", tmp_path / "kill.md"]
    command = [sys.executable, "-m", "walsh", "mutants", "--id", "bitmask-reference-padding"]
    command += ["--json", str(files[0]), "--markdown", str(files[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 mutants killed" in done.stdout
    assert json.loads(files[0].read_text())["mutants"][0]["kills"]
    assert "# Kill matrix" in files[1].read_text()
