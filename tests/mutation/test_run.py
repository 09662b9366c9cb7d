"""What the campaign of random mutations looks at, and what it keeps of earlier pieces."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("mutation_run", Path(__file__).parent / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_of_the_codec_and_every_definition_is_searched(run):
    assert [target for target in run.TARGETS if not (ROOT / target).is_file()] == []
    for folder in ("walsh/codec", "walsh/reference", "walsh/reference/strict"):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.py")}
        # Left out: what only checks or names arguments, writes for the engine, or passes names on.
        idle = {f"{folder}/{name}.py" for name in ("__init__", "_check", "config", "export", "weights")}
        assert there - set(run.TARGETS) - idle <= {"walsh/reference/sampling.py"}


def test_files_that_are_not_run_again_keep_their_outcome(run, tmp_path):
    stamp = {"date": "2026-01-02", "seed": "s", "sample": 9}
    before = {"walsh/codec/rows.py": {"total": 9, "survivors": ["-a\n+b"], **stamp}}
    path = tmp_path / "mutation.json"
    path.write_text(json.dumps(run.summarise(before)))
    kept = run.earlier(path)
    report = run.summarise(kept | {"walsh/reference/rope.py": {"total": 10, "survivors": [], **stamp}})
    assert (report["total"], report["noticed"]) == (19, 18)
    assert report["parts"]["codec"]["score"] == 8 / 9
    page = run.to_markdown(report)
    assert "| `walsh/codec/rows.py` | 9 | 8 | 2026-01-02 | `s` |" in page
    assert "| `walsh/codec/spin.py` | | not run | | |" in page
    assert "```diff\n-a\n+b\n```" in page
    assert run.earlier(tmp_path / "none.json") == {}
