"""Examples and the page *Add your kernel in ten minutes* do what they say; a registered package is found."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "add-your-kernel.md"

BIN = Path(sys.executable).parent


def run(command, folder, **environment):
    """Run as a shell would, with this environment's walsh and python first on the path."""
    given = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
    given.pop("COLUMNS", None)
    words = shlex.split(command)
    if words[0] == "walsh":
        words = [sys.executable, "-m", "walsh", *words[1:]]
    done = subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def blocks():
    """(language, content) of each fenced block of the page, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def matches(expected, actual):
    """Whether actual lines fit the expected ones: ``...`` alone is any lines, inside a line any text."""
    if not expected:
        return not actual
    if expected[0] == "...":
        return any(matches(expected[1:], actual[i:]) for i in range(len(actual) + 1))
    if not actual:
        return False
    pattern = fnmatch.translate(re.sub(r"([\[*?])", r"[\1]", expected[0]).replace("...", "*"))
    return re.fullmatch(pattern, actual[0]) is not None and matches(expected[1:], actual[1:])


def test_the_page_is_followed_word_for_word(tmp_path):
    commands = 0
    for language, content in blocks():
        if language == "python":
            (tmp_path / "kernels.py").write_text(content)
        if language != "console":
            continue
        for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
            command, *expected = part.splitlines()
            if command.startswith("pip install"):
                continue  # the tests run against the checkout
            _, output = run(command, tmp_path)
            lines = [line.rstrip() for line in output.splitlines() if line.strip()]
            assert matches(expected, lines), f"{command}\n{output}"
            commands += 1
    assert commands >= 6
    assert "<html" in (tmp_path / "report.html").read_text()
    assert "<svg" in (tmp_path / "badge.svg").read_text()


def test_the_numpy_example():
    code, output = run(
        "walsh conformance --backend my_kernels:MyKernels --op rms_norm", ROOT / "examples/numpy_backend"
    )
    assert code == 0, output
    assert "CONFORMING  my-kernels" in output
    lines = (ROOT / "examples/numpy_backend/my_kernels.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 32


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
NODE = f"node {ROOT / 'examples/javascript_backend/backend.mjs'}"


@needs_node
def test_the_javascript_example(tmp_path):
    code, output = run(f"walsh conformance validate-backend '{NODE}'", tmp_path)
    assert code == 0, output
    assert "ok    takes a request of a megabyte" in output
    code, output = run(f"walsh conformance --backend 'cmd:{NODE}' --op rms_norm", tmp_path)
    assert code == 0, output
    assert re.search(r"CONFORMING  javascript: 4\d pass, 0 fail", output)


@needs_node
def test_a_wrong_javascript_kernel_fails(tmp_path):
    source = (ROOT / "examples/javascript_backend/backend.mjs").read_text()
    (tmp_path / "wrong.mjs").write_text(source.replace("mean + eps", "mean + 2 * eps"))
    code, output = run("walsh conformance --backend 'cmd:node wrong.mjs' --op rms_norm --max-failures 1", tmp_path)
    assert code == 1, output
    assert "smells of" in output


@pytest.mark.parametrize(
    ("program", "seconds", "message"),
    [
        ("cat", 60, "has no 'description'"),
        ("false", 60, "ended with exit code 1"),
        ("python mute.py", 2, "no reply within 2 s"),
        ("python shapeless.py", 60, "output y: returned float32[1], expected"),
        ("python lenient.py", 60, "was answered normally, expected the error"),
        ("python deaf.py", 8, "still running"),
        ("python astray.py", 60, "'rms_nrom' is no call"),
    ],
)
def test_what_is_wrong_with_a_program_is_said(tmp_path, program, seconds, message):
    loop = """
import base64, json, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request["message"] == "close":
        {close}
    if request["message"] == "describe":
        print(json.dumps({{"description": {{"name": "x", "version": "1", "calls": ["{call}"]}}}}), flush=True)
        continue
    y = dict(request["outputs"].get("y", {{"dtype": "float32", "shape": [1]}}))
    n = 1
    for k in y["shape"]: n *= k
    size = {{"float32": 4, "float64": 8}}.get(y["dtype"], 2)
    {answer}
    y["base64"] = base64.b64encode(bytes(n * size)).decode()
    print(json.dumps({{"id": request["id"], "outputs": {{"y": y}}}}), flush=True)
"""
    (tmp_path / "mute.py").write_text("import time\ntime.sleep(10**6)\n")
    wrong = 'y["shape"] = [1]; y["dtype"] = "float32"; n, size = 1, 4'
    (tmp_path / "shapeless.py").write_text(loop.format(close="break", call="rms_norm", answer=wrong))
    (tmp_path / "lenient.py").write_text(loop.format(close="break", call="rms_norm", answer="pass"))
    (tmp_path / "deaf.py").write_text(loop.format(close="time.sleep(10**6)", call="rms_norm", answer="pass"))
    (tmp_path / "astray.py").write_text(loop.format(close="break", call="rms_nrom", answer="pass"))
    code, output = run(f"walsh conformance validate-backend --timeout {seconds} '{program}'", tmp_path)
    assert code == 4, output
    assert message in output.replace("\n", " ")


def install(folder):
    """What an installer leaves behind for a package that registers a backend."""
    shutil.copy(ROOT / "examples/numpy_backend/my_kernels.py", folder)
    info = folder / "my_kernels-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-kernels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[walsh.backends]\nmy-kernels = my_kernels:MyKernels\n")
    (info / "RECORD").write_text("my_kernels.py,,\nmy_kernels-1.0.dist-info/METADATA,,\n")


def test_a_registered_backend_is_found_by_its_name(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    install(site)
    command = "walsh conformance --backend my-kernels --op rms_norm"
    code, output = run(command, tmp_path, PYTHONPATH=str(site))
    assert code == 0, output
    assert "CONFORMING  my-kernels" in output
    code, output = run(command, tmp_path)
    assert code == 4
    assert "expected canister, reference, torch, triton, wasm" in output
    code, output = run("walsh conformance --backend my-kernel --op rms_norm", tmp_path, PYTHONPATH=str(site))
    assert code == 4
    assert "my-kernels" in output


def test_the_workflow_names_options_that_exist():
    text = (ROOT / "examples/ci/github-workflow.yml").read_text()
    _, shown = run("walsh conformance --help", ROOT)
    for option in set(re.findall(r"--[a-z]+", text)):
        assert option in shown
