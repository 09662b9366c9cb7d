"""Every job of the project, by name: ``nox -s conformance``, ``nox -s tests``, ...

Without nox on the machine, ``python3 noxfile.py -s conformance`` does the same: it first puts nox and uv into
``.nox/bootstrap`` and then goes on with them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BOOTSTRAP = ROOT / ".nox" / "bootstrap"


def bootstrap() -> int:
    """Install nox and uv into a virtual environment of their own and run this file there."""
    python = BOOTSTRAP / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if sys.version_info < (3, 11):  # noqa: UP036  # an older Python reads this line and is told, not shown a traceback
        print(f"walsh needs Python 3.11 or newer, this is {sys.version.split()[0]}: run a newer one.", file=sys.stderr)
        return 1
    ready = python.exists() and subprocess.run([python, "-c", "import nox, uv"], capture_output=True).returncode == 0
    if not ready:
        print(f"Setting up nox and uv in {BOOTSTRAP.relative_to(ROOT)} (once) ...", file=sys.stderr)
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", BOOTSTRAP])
        if made.returncode:
            print("Python's venv module does not work here; on Debian: apt-get install python3-venv", file=sys.stderr)
            return 1
        subprocess.run([python, "-m", "pip", "install", "--quiet", "nox[uv]>=2024.10.9"], check=True)
    return subprocess.run([python, __file__, *sys.argv[1:]]).returncode


try:
    import nox
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    sys.exit(bootstrap())

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "conformance", "wasm", "triton", "compile", "counts", "mutants", "tests"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Parallel test processes share the cores; a pool of threads in each would only fight over them."""


EXTRAS = ("torch", "triton", "data", "train", "hf", "wasm", "ic", "report")
"""Every extra that a session installs."""

TRITON_TESTS = ("tests/kernels/triton", "tests/test_dispatch.py")


def install(session: nox.Session, extras: str = "", *groups: str) -> None:
    """Install the project, editable, with these extras and dependency groups, at the versions of constraints.txt."""
    target = f".[{extras}]" if extras else "."
    requirements = [argument for group in groups for argument in ("--group", group)]
    session.install("-e", target, *requirements, "-c", "constraints.txt")


@nox.session
def conformance(session: nox.Session) -> None:
    """The main job: hold every backend that runs here to the golden vectors and print the parity matrix."""
    install(session, "torch")
    session.run("walsh", "conformance", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """What the vectors cannot say: properties, the suite's own tests, training, files, counts, pages."""
    install(session, "hf,ic,report,train,triton", "test")
    session.run("pytest", "--numprocesses=auto", "--dist=worksteal", *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and strict types."""
    install(session, "hf,ic,report,train,triton", "test", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def triton(session: nox.Session) -> None:
    """Triton kernels without a GPU: the golden vectors, the properties and their own tests in the interpreter."""
    install(session, "triton", "test")
    interpreted = {**ONE_THREAD, "TRITON_INTERPRET": "1"}
    session.run("walsh", "conformance", "--backend", "triton", "--jobs", "0", env=interpreted)
    session.run("pytest", "--numprocesses=auto", *TRITON_TESTS, env=interpreted)
    brief = {**interpreted, "HYPOTHESIS_PROFILE": "brief"}
    session.run("pytest", "--numprocesses=auto", "--dist=worksteal", "tests/properties", "-k", "triton", env=brief)


@nox.session
def gpu(session: nox.Session) -> None:
    """This machine's own GPU: vectors, sanitizers, timings, kept in ``reports/gpu``; ``-- --tune`` finds tiles."""
    install(session, "ic,report,train,triton")
    session.run("python", "-m", "bench.gpu", *session.posargs)


@nox.session(name="compile")
def compile_kernels(session: nox.Session) -> None:
    """Compile the Triton kernels for NVIDIA sm_80, sm_90, sm_100 and AMD gfx942; no GPU is needed. --full: all."""
    install(session, "triton")
    session.run("python", "-m", "walsh.kernels.triton.compile", *session.posargs)


@nox.session
def counts(session: nox.Session) -> None:
    """Exact counts against the committed ones, both ways: instructions, bytes, launches, allocations; no timing."""
    install(session, "ic,report,train,triton")
    session.run("walsh", "bench", "counts", *session.posargs, env=ONE_THREAD)


@nox.session
def wasm(session: nox.Session) -> None:
    """Engine and canister: built again where a toolchain is found, held to the vectors, and their own tests."""
    install(session, "ic,wasm", "test")
    session.run("python", "-m", "walsh.engine.build", "--check")
    session.run("walsh", "conformance", "--backend", "wasm", *session.posargs)
    session.run("walsh", "conformance", "--backend", "canister", "--op", "forward")
    rust(session, "canister", "fmt", "-p", "walsh-engine", "--check")
    rust(session, "canister/ic", "fmt", "--check")
    rust(session, "canister", "clippy", "--locked", "-p", "walsh-engine", "--all-targets", "--", "-D", "warnings")
    rust(session, "canister/ic", "clippy", "--locked", "--", "-D", "warnings")
    rust(session, "canister", "test", "--locked", "-p", "walsh-engine")


def rust(session: nox.Session, folder: str, command: str, *arguments: str) -> None:
    """Run a cargo command where cargo has it; elsewhere say that it was skipped."""
    found = shutil.which("cargo") and subprocess.run(["cargo", command, "--help"], capture_output=True).returncode == 0
    if not found:
        session.log(f"skipped: cargo {command} is not on this machine")
        return
    with session.chdir(folder):
        session.run("cargo", command, *arguments, external=True)


@nox.session
def mutants(session: nox.Session) -> None:
    """Seeded bugs that the vectors must catch: of the ops that changed since $WALSH_BASE, and some of the rest."""
    install(session, "torch")
    base = os.environ.get("WALSH_BASE", "HEAD~1")
    chosen = ["--backend", "reference", "--backend", "torch", "--changed-since", base, "--sample", "16"]
    chosen += ["--at-most", "80", "--seed", time.strftime("%Y-%m-%d", time.gmtime())]
    session.run("walsh", "mutants", "--jobs", "2", *(session.posargs or chosen))


@nox.session
def vectors(session: nox.Session) -> None:
    """Write the golden vectors anew from the references; after a change of the definition only."""
    install(session)
    session.run("walsh", "conformance", "generate", *session.posargs)


@nox.session
def deep(session: nox.Session) -> None:
    """How strong the suite is, at full numbers, kept in ``reports/deep``; hours. ``-- --part NAME`` for one part."""
    install(session, "hf,ic,report,train,triton", "test", "mutation")
    session.run("python", "-m", "walsh.suite.deep", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Draw shapes and values until two backends disagree, and shrink what was found to a vector."""
    install(session, "torch,wasm")
    chosen = session.posargs or ["--seconds", "60", "--backend", "reference", "--backend", "torch"]
    session.run("walsh", "conformance", "fuzz", *chosen)


@nox.session
def train(session: nox.Session) -> None:
    """Train a model: ``configs/laptop.toml`` on the text that Python ships, unless another configuration is named."""
    install(session, "train,wasm")
    session.run("walsh", "train", *session.posargs)
    if not session.posargs:  # the small file of the default run: made, checked, read
        session.run("walsh", "compress", "runs/laptop", "-o", "runs/laptop.walsh", "--force")
        session.run("walsh", "verify", "runs/laptop.walsh")
        session.run("walsh", "generate", "runs/laptop.walsh", "--engine", "wasm", "--prompt", "The ")


@nox.session
def ablation(session: nox.Session) -> None:
    """Algebras at equal bytes, paired seeds: ``configs/ablation.toml`` unless another comparison is named."""
    install(session, "report,train")
    session.run("walsh", "ablate", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Timings against honest baselines, and the report made of them; needs a quiet machine."""
    install(session, "ic,report,train")
    session.run("walsh", "bench", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Rebuild the pages of ``reports/`` from the rows stored there."""
    install(session, "report")
    session.run("walsh", "report", "build", *session.posargs)


@nox.session(venv_backend="none")
def lock(session: nox.Session) -> None:
    """Resolve constraints.txt anew from pyproject.toml; peers are compared with as they come."""
    extras = [f"--extra={name}" for name in EXTRAS]
    session.run(
        "uv", "pip", "compile", "--universal", "--python-version=3.11", "--upgrade", "--no-header", "--no-annotate",
        "--no-emit-index-url", "--no-emit-find-links", *extras, "--group=test", "--group=lint",
        "--group=mutation", "pyproject.toml", "--output-file=constraints.txt", external=True,
    )  # fmt: skip  # options read best as a command line


if __name__ == "__main__":
    nox.main()
