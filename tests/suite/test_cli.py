"""The command line: exit codes, and what a person sees."""

import json
import os
import re
import subprocess
import sys
import types

import click
import pytest
from click.testing import CliRunner

from walsh import __version__
from walsh.cli import main
from walsh.errors import DataError, FormatError
from walsh.suite import tensors
from walsh.suite.report import read_report
from walsh.suite.schema import dump_canonical

BACKENDS = """
import numpy as np
from walsh.errors import ShapeError

class Right:
    def describe(self):
        return {"name": "right", "version": "1", "calls": ["hadamard_transform"]}
    def run(self, op, params, inputs, out):
        x = inputs["x"]
        if x.shape[-1] != 2:
            raise ShapeError("expected 2")
        out["y"][..., 0], out["y"][..., 1] = x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]
    def close(self):
        pass

class Wrong(Right):
    def describe(self):
        return {**super().describe(), "name": "wrong"}
    def run(self, op, params, inputs, out):
        super().run(op, params, inputs, out)
        out["y"][..., 1] += np.float32(1)

class Dead(Right):
    def run(self, op, params, inputs, out):
        raise OSError("no device")

class Refusing(Right):
    def run(self, op, params, inputs, out):
        from walsh.suite.backend import Skip
        return Skip("out of order")

class Unmakeable:
    def __init__(self):
        raise OSError("no driver")

def transform(x, normalize=True):
    if x.shape[-1] != 2:
        raise ValueError("expected 2")
    return np.stack([x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]], axis=-1)
"""


@pytest.fixture
def walsh(full, tmp_path, monkeypatch):
    (tmp_path / "cli_backends.py").write_text(BACKENDS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def walsh(*arguments, vectors=full, command="conformance"):
        where = ["--vectors", str(vectors)] if vectors else []
        return CliRunner().invoke(main, [command, *where, *arguments])

    return walsh


def right(walsh, *more, **options):
    return walsh("--backend", "cli_backends:Right", *more, **options)


def test_exit_0(walsh):
    found = right(walsh)
    assert found.exit_code == 0, found.output
    assert "CONFORMING  right: 401 pass, 0 fail" in found.output
    assert re.search(r"401 of 401 cases, vectors [0-9a-f]{16}, walsh .*, exit 0", found.output)
    assert re.search(r"hadamard +right +ok 400 +ok 1", found.output)
    assert "\x1b" not in found.output


def test_exit_1(walsh):
    found = walsh("--backend", "cli_backends:Wrong", "--max-failures", "1")
    assert found.exit_code == 1
    for part in (
        "NOT CONFORMING",
        "hadamard/exact/case-0",
        "3 of 6 elements of y differ",
        "0xc0400000  -3",
        "0xc0000000  -2",
        "ULP",
        "repeat     walsh conformance --backend cli_backends:Wrong --vectors",
        "--case hadamard/exact/case-0",
        "399 more of wrong",
    ):
        assert part in found.output, found.output


def test_the_note_of_a_vector_is_shown(walsh):
    found = walsh("--backend", "cli_backends:Wrong", "--case", "hadamard/exact/case-9")
    assert "smells of  swapped halves: sum and difference change places" in found.output


def test_refusing_every_case_shows_nothing(walsh):
    found = walsh("--backend", "cli_backends:Refusing")
    assert found.exit_code == 3
    assert "INCOMPLETE  right: 0 pass, 0 fail, 401 skip" in found.output
    assert "right answered no case, which shows nothing; its first refusal: out of order" in found.output


def test_exit_2(walsh, full):
    (full / "deviations").mkdir()
    entry = {
        "case": "hadamard/exact/case-3",
        "reason": "was wrong once",
        "issue": "https://example.org/1",
        "date": "2024-01-01",
        "expiry": "9999-01-01",
    }
    document = {"schema": 1, "backend": "right", "deviations": [entry]}
    (full / "deviations" / "right.json").write_bytes(dump_canonical(document))
    found = right(walsh)
    assert found.exit_code == 2
    assert "UNEXPECTED PASS" in found.output


def test_exit_3(walsh, full):
    (full / "vectors/hadamard/invalid.json").unlink()
    found = right(walsh)
    assert found.exit_code == 3
    assert found.output.startswith("error: vectors/hadamard/invalid.json")
    assert len(found.output.splitlines()) == 1


def test_exit_3_for_too_few(walsh, small):
    assert right(walsh, vectors=small).exit_code == 3


@pytest.mark.parametrize(
    "backend", ["cli_backends:Dead", "cli_backends:Unmakeable", "cli_backends:None", "no.such:X", "x"]
)
def test_exit_4(walsh, backend):
    found = walsh("--backend", backend)
    assert found.exit_code == 4
    assert "Traceback" not in found.output


def test_a_command_is_named_as_it_was_given(walsh):
    found = walsh("--backend", "cmd:cat")
    assert "BROKEN  cmd:cat: cat: no description" in found.output  # and no picture of one
    found = walsh("--backend", "cmd:'python")
    assert found.exit_code == 4
    assert found.output.splitlines()[-1].startswith("error: cmd:'python: no closing quotation")


def test_exit_4_when_a_process_has_nothing_to_say(walsh):
    found = walsh("--backend", f"cmd:{sys.executable} -c pass")
    assert found.exit_code == 4
    assert "ADAPTER BROKEN" in found.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--colour"],
        ["--lane", "fast"],
        ["--op", "no_such_op"],
        ["--case", "nothing/*"],
        ["--function", "cli_backends:transform"],
        ["--function", "cli_backends:transform", "--op", "hadamard", "--backend", "torch"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--badge", "badge.txt"],
        ["--json", "/no/such/folder/report.jsonl"],
        ["--json", "/proc/report.jsonl"],
    ],
)
def test_exit_64(walsh, arguments):
    found = walsh(*arguments)
    assert found.exit_code == 64, found.output
    assert "Traceback" not in found.output


def test_exit_64_for_an_unknown_command():
    assert CliRunner().invoke(main, ["conform"]).exit_code == 64


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (FileNotFoundError(2, "No such file or directory", "/proc/x"), 64, "error: /proc/x: No such file or directory"),
        (PermissionError(13, "Permission denied", "out"), 64, "error: out: Permission denied"),
        (MemoryError(), 70, "error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 70, "error: not enough memory"),
        (RuntimeError("odd"), 70, "internal error: RuntimeError: odd"),
        (FormatError("x is damaged"), 64, "error: x is damaged"),
        (DataError("x is missing"), 64, "error: x is missing"),
    ],
)
def test_what_the_system_refuses_is_told_in_a_line(monkeypatch, error, code, told):
    def fails() -> None:
        raise error

    monkeypatch.setattr(main, "get_command", lambda *_: click.Command("train", callback=fails))
    found = CliRunner().invoke(main, ["train"])
    assert found.exit_code == code
    assert found.output.startswith(told)
    assert len(found.output.splitlines()) == 1


@pytest.mark.parametrize(("missing", "code"), [("torch", 4), ("walsh.nothing", 70)])
def test_a_package_missing_inside_a_command_names_its_extra(monkeypatch, missing, code):
    def needs_it() -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(main, "get_command", lambda *_: click.Command("train", callback=needs_it))
    found = CliRunner().invoke(main, ["train"])
    assert found.exit_code == code, found.output
    assert ("pip install 'walsh[train]'" in found.output) == (missing == "torch")


def test_debug_shows_tracebacks(walsh):
    found = walsh("--backend", "no.such:X", "--debug")
    assert type(found.exception).__name__ == "BackendError"
    assert "Traceback" in walsh("--backend", "cli_backends:Dead", "--debug", "--max-failures", "1").output


def test_two_backends_and_a_verdict_on_both(walsh):
    found = right(walsh, "--backend", "cli_backends:Wrong", "--max-failures", "0")
    assert found.exit_code == 1
    assert "right: 401 pass, 0 fail; wrong: 1 pass, 400 fail" in found.output


def test_a_function(walsh):
    found = walsh("--function", "cli_backends:transform", "--op", "hadamard_transform")
    assert found.exit_code == 0, found.output
    assert "401 pass" in found.output


def test_list(walsh):
    found = right(walsh, "--list", "--lane", "invalid")
    assert found.output == "hadamard/invalid/three  hadamard_transform  invalid\n"
    assert found.exit_code == 0


def test_verbose(walsh):
    found = right(walsh, "--verbose", "--case", "*/case-1*")
    assert found.output.count("pass  hadamard/exact/case-1") == 111


def test_reports(walsh, tmp_path):
    found = right(walsh, "--json", str(tmp_path / "r.jsonl"), "--junit", str(tmp_path / "r.xml"))
    assert found.exit_code == 0
    report = read_report(tmp_path / "r.jsonl")
    assert len(report.cases) == 401
    assert report.footer["exit"] == 0
    assert (tmp_path / "r.xml").read_text().count("<testcase") == 401


def test_explain(walsh, tmp_path):
    saved = tmp_path / "saved"
    arguments = ["hadamard/exact/case-9", "--backend", "cli_backends:Wrong", "--save", str(saved)]
    found = walsh(*arguments, command="explain")
    assert found.exit_code == 1
    for part in ("sums and differences", "input      x float32[3, 2] bits", "element    y[", "saved"):
        assert part in found.output, found.output
    files = {path.name.split(".")[1]: tensors.read_tensors(path) for path in saved.iterdir()}
    assert set(files) == {"inputs", "expected", "wrong"}
    assert files["expected"]["y"].tolist() == [[21, -3], [33, -3], [45, -3]]
    assert (files["wrong"]["y"] - files["expected"]["y"]).tolist() == [[0, 1]] * 3
    assert walsh("hadamard/invalid/three", "--backend", "cli_backends:Right", command="explain").exit_code == 0
    assert walsh("hadamard/*", command="explain").exit_code == 64
    assert walsh("nothing", command="explain").exit_code == 64


def test_ops(walsh):
    found = walsh(command="ops")
    assert found.exit_code == 0
    assert re.search(r"hadamard_transform +x +400", found.output)
    assert "…" not in found.output  # arguments are what one has to type
    assert "x_scale?" in found.output
    listed = json.loads(walsh("--json", command="ops").output)["calls"]
    assert {"op": "hadamard", "call": "hadamard_transform", "lanes": {"exact": 400, "invalid": 1}} in listed


def test_version_and_help():
    assert CliRunner().invoke(main, ["--version"]).output == f"walsh, version {__version__}\n"
    found = CliRunner().invoke(main, ["conformance", "--help"])
    assert found.exit_code == 0
    for word in ("--backend", "--junit", "64 bad", "generate"):
        assert word in found.output
    assert "\\" not in found.output + CliRunner().invoke(main, ["mutants", "--help"]).output


def test_module_and_dumb_terminal(full, tmp_path):
    (tmp_path / "cli_backends.py").write_text(BACKENDS)
    command = [sys.executable, "-m", "walsh", "conformance", "--vectors", str(full), "--backend", "cli_backends:Right"]
    environment = {**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    done.stdout.decode("ascii")


def test_without_torch_it_says_so(walsh, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("walsh.suite.backends.BUILTIN", {"reference": "cli_backends:Right"})
    found = walsh("--case", "*/case-1")
    assert "PyTorch is not installed" in found.output
    assert found.exit_code == 0


def test_device_of_numpy(walsh):
    found = walsh("--backend", "reference", "--device", "cuda")
    assert found.exit_code == 4
    assert "NumPy runs on cpu only" in found.output


def test_generate(monkeypatch, full):
    seen = []

    def build(root, check):
        seen.append((root, check))
        return types.SimpleNamespace(total=401, files=2, size=2**20)

    module = types.ModuleType("generate")
    module.generate = build
    monkeypatch.setitem(sys.modules, "walsh.suite.generate", module)
    found = CliRunner().invoke(main, ["conformance", "generate", "--check", "--vectors", str(full)])
    assert found.output == "401 cases in 2 files, 1.0 MiB, as committed\n"
    assert seen == [(full, True)]
