"""Mutants of the engine: its Rust sources copied, changed, and compiled to WebAssembly.

``walsh_engine::rope`` is ``canister/engine/src/rope.rs``. The copy has a target folder of its own under
``canister/target``, so that the libraries are compiled once; the engine itself is compiled for every mutant, at a low
optimisation level: Rust may not change the result of float32 arithmetic, so the bits are the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from walsh.engine import build, host
from walsh.errors import BackendError, VectorError
from walsh.suite.mutants import Edit, Mutant, apply_edits, source_path

TARGET_FOLDER = build.WORKSPACE / "target" / "mutants"

_PROFILE = {"OPT_LEVEL": "1", "LTO": "off", "CODEGEN_UNITS": "16", "INCREMENTAL": "true"}
"""Of ``[profile.release]``: seconds instead of half a minute for every mutant."""


class Workshop:
    """A copy of the engine's workspace in which mutants are built, one at a time.

    Args:
        folder: empty; the copy is made in it.

    Raises:
        BackendError: if there is no toolchain.
    """

    def __init__(self, folder: Path) -> None:
        self._toolchain = build.find_toolchain()
        self._workspace = folder / "canister"
        for path in (*build.source_files(), build.WORKSPACE / ".cargo" / "config.toml"):
            copy = self._workspace / path.relative_to(build.WORKSPACE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        # Members that the engine does not need would have to be there, or Cargo refuses the workspace.
        manifest = self._workspace / "Cargo.toml"
        lines = [line if not line.startswith("members") else 'members = ["engine"]' for line in _lines(manifest)]
        manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def make(self, mutant: Mutant | None) -> Path:
        """The module of a mutant, or of the unchanged sources, with its record beside it.

        Raises:
            VectorError: if an edit does not fit or the changed source does not compile.
        """
        made = self._workspace.parent / f"{mutant.id if mutant is not None else 'control'}.wasm"
        if mutant is None and made.exists():
            return made
        changed = self._change(mutant)
        try:
            module = self._compile(mutant.id if mutant is not None else "the unchanged engine")
        finally:
            for path, source in changed.items():
                path.write_text(source, encoding="utf-8")
        shutil.copyfile(module, made)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        made.with_suffix(".json").write_text(json.dumps({"sha256": digest}) + "\n", encoding="ascii")
        return made

    def _change(self, mutant: Mutant | None) -> dict[Path, str]:
        """Write the changed files; the unchanged content of each."""
        modules: dict[str, list[Edit]] = {}
        for edit in mutant.edits if mutant is not None else ():
            modules.setdefault(edit.module, []).append(edit)
        before = {}
        for module, edits in modules.items():
            path = self._workspace / source_path(module).relative_to(build.WORKSPACE)
            before[path] = path.read_text("utf-8")
            path.write_text(apply_edits(before[path], edits, mutant.id if mutant is not None else ""), encoding="utf-8")
        return before

    def _compile(self, name: str) -> Path:
        command = [self._toolchain.cargo, "build", "--quiet", "--release", "--target", build.TARGET]
        command += ["--package", "walsh-engine"]
        if self._toolchain.build_std:
            command.append("-Zbuild-std=std,panic_abort")
        done = subprocess.run(
            command, cwd=self._workspace, env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise VectorError(f"{name}: the changed source does not compile: {_reason(done.stderr.splitlines())}")
        return TARGET_FOLDER / build.TARGET / "release" / "walsh_engine.wasm"

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("RUSTFLAGS")}
        environment |= {f"CARGO_PROFILE_RELEASE_{name}": value for name, value in _PROFILE.items()}
        environment |= {"RUSTC": self._toolchain.rustc, "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(build.FLAGS)}
        environment["CARGO_TARGET_DIR"] = str(TARGET_FOLDER)
        return environment | ({"RUSTC_BOOTSTRAP": "1"} if self._toolchain.build_std else {})


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def _reason(lines: Sequence[str]) -> str:
    """The first error of a compiler, with the line that it points to."""
    for number, line in enumerate(lines):
        if line.startswith("error"):
            return " ".join(part.strip() for part in lines[number : number + 2])
    return lines[-1] if lines else "no message"


def use_module(module: Path) -> None:
    """From now on this process runs this module as the engine."""
    os.environ["WALSH_ENGINE"] = str(module)
    host.compiled.cache_clear()


@cache
def can_build() -> bool:
    """Whether the engine can be compiled and run here."""
    try:
        build.find_toolchain()
        build.source_digest()
    except BackendError:
        return False
    return importlib.util.find_spec("wasmtime") is not None
