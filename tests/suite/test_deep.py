"""Deep runs: what is kept of each part, and the page that is made of it. The parts themselves take hours."""

import json

import pytest

from walsh.suite import deep


def test_every_part_has_a_command_and_a_name():
    names = [part.name for part in deep.parts()]
    assert len(set(names)) == len(names)
    assert {"mutants", "triton-mutants", "rust-mutants", "mutation", "fuzz", "properties", "file-fuzz"} <= set(names)
    for part in deep.parts():
        assert part.command[0] == "-m" or (deep.ROOT / part.command[0]).suffix == ".py"


def test_the_list(capsys):
    assert deep.main(["--list"]) == 0
    assert "rust-mutants: seeded bugs in the engine" in capsys.readouterr().out


def part(code, **more):
    return deep.Part("fuzz", "a test", ("-c", code), deep._fuzz, {"DEEP_TEST": "7"}, **more)


def test_a_part_is_run_and_kept(tmp_path, monkeypatch):
    document = {"rounds": 9, "answered": {"torch": 8}, "found": [], "seed": 0}
    code = (
        f"import os; assert os.environ['DEEP_TEST'] == '7'; print('noise'); print({json.dumps(json.dumps(document))})"
    )
    monkeypatch.setattr(deep, "parts", lambda: (part(code),))
    assert deep.main(["--output", str(tmp_path), "--note", "a busy machine"]) == 0
    row = deep.load_index(tmp_path)["fuzz"]
    assert row["totals"] == {"rounds": 9, "answered by torch": 8, "disagreements": 0, "seed": 0}
    assert row["exit"] == 0
    assert len(row["vectors"]) == 64
    page = (tmp_path / "index.md").read_text()
    assert "9 rounds, 8 answered by torch, 0 disagreements" in page
    assert "a busy machine" in page


def test_a_part_that_fails_fails_the_run_and_leaves_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr(deep, "parts", lambda: (part("print('broken'); raise SystemExit(3)"),))
    assert deep.main(["--output", str(tmp_path)]) == 1
    assert deep.load_index(tmp_path)["fuzz"]["exit"] == 3
    assert (tmp_path / "fuzz.log").read_text() == "broken\n"
    assert "**failed (exit 3)**" in (tmp_path / "index.md").read_text()


def test_a_part_that_was_not_run_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deep, "usable", lambda _: False)
    assert deep.main(["--output", str(tmp_path), "--part", "triton-mutants"]) == 0
    assert "not run, triton is not here" in capsys.readouterr().out
    assert deep.load_index(tmp_path) == {}
    assert deep.to_markdown({}).count("not run yet") == len(deep.parts())


@pytest.mark.parametrize(
    ("totals", "printed", "expected"),
    [
        (deep._pytest(40), "...\n3 failed, 167 passed, 2 skipped in 9.1s", {"failed": 3, "passed": 167, "skipped": 2}),
        (deep._files, "x\n1,000 damaged files: 900 refused, 100 read, 0 problems; slowest 0.1 s", {"problems": 0}),
        (deep._schedules, "a\nall equal", {"last line": "all equal"}),
    ],
)
def test_totals_are_read_from_what_is_printed(tmp_path, totals, printed, expected):
    assert expected.items() <= totals(tmp_path, printed).items()
