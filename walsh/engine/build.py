"""Build the engine: ``canister/engine`` (Rust) to ``walsh_engine.wasm``, with a record of where it came from.

    python -m walsh.engine.build           build, write walsh_engine.wasm and walsh_engine.json
    python -m walsh.engine.build --check   compare the recorded digest with the sources; with a toolchain, build them
                                           again and compare: the bytes, or else by running the vectors

The same sources and the same toolchain give the same bytes: one codegen unit, no debug information, and every machine
path replaced. A toolchain is a ``rustc`` with the target's library (``rustup target add wasm32-unknown-unknown``) or
with the library's sources (Debian's rust-src), from which Cargo then builds it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walsh.engine.module import FOLDER, MODULE, RECORD, read_record
from walsh.errors import BackendError

TARGET = "wasm32-unknown-unknown"
WORKSPACE = FOLDER.parent.parent / "canister"
FLAGS = ("-C", "target-feature=+simd128", "-C", "llvm-args=-disable-lsr")
"""What the code is compiled with, as in ``canister/.cargo/config.toml``; the rest is in the workspace's profile. Loop
strength reduction turns constant offsets of loads into additions, which cost an instruction each."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler that can make the module.

    Attributes:
        cargo, rustc: the programs.
        version: first line of ``rustc --version``.
        sysroot: where its library is.
        build_std: whether the target's library must be built from source.
    """

    cargo: str
    rustc: str
    version: str
    sysroot: Path
    build_std: bool


def source_files(workspace: Path = WORKSPACE) -> list[Path]:
    """Every file that the module depends on, sorted by its path in the workspace."""
    engine = workspace / "engine"
    files = [workspace / "Cargo.toml", workspace / "Cargo.lock", engine / "Cargo.toml", *(engine / "src").rglob("*.rs")]
    return sorted(files, key=lambda path: path.relative_to(workspace).as_posix())


def source_digest(workspace: Path = WORKSPACE) -> str:
    """sha256 (hex) over path and content of every source file, in order.

    Raises:
        BackendError: if the sources are not there (an installed wheel has none).
    """
    digest = hashlib.sha256()
    try:
        for path in source_files(workspace):
            content = path.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{path.relative_to(workspace).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError as error:
        raise BackendError(f"no sources of the engine at {workspace.name}/: {error.strerror}; use a checkout") from None
    return digest.hexdigest()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _candidates() -> Iterator[tuple[str, str]]:
    """(cargo, rustc) pairs: those in PATH first, then the system's beside a rustup that lacks the target."""
    seen = set()
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]:
        cargo, rustc = shutil.which("cargo", path=folder), shutil.which("rustc", path=folder)
        if cargo and rustc and rustc not in seen:
            seen.add(rustc)
            yield cargo, rustc


def find_toolchain() -> Toolchain:
    """A toolchain that can compile for WebAssembly.

    Raises:
        BackendError: if there is none; the message says how to get one.
    """
    tried = []
    for cargo, rustc in _candidates():
        version, sysroot = _output(rustc, "--version"), _output(rustc, "--print", "sysroot")
        if version is None or sysroot is None:
            continue
        library = Path(sysroot) / "lib" / "rustlib"
        if (library / TARGET / "lib").is_dir():
            return Toolchain(cargo, rustc, version, Path(sysroot), build_std=False)
        if (library / "src" / "rust" / "library" / "std").is_dir():
            return Toolchain(cargo, rustc, version, Path(sysroot), build_std=True)
        tried.append(version)
    found = f"found {'; '.join(tried)}, without it" if tried else "no rustc in PATH"
    raise BackendError(
        f"building the engine needs Rust with the library of {TARGET} ({found}): `rustup target add {TARGET}`, or the "
        "library's sources (`rustup component add rust-src`, Debian: rust-src)"
    )


def _environment(toolchain: Toolchain) -> dict[str, str]:
    cargo_home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    replaced = {WORKSPACE.resolve(): "canister", cargo_home: "cargo", toolchain.sysroot: "rust"}
    remap = [f"--remap-path-prefix={path}={name}" for path, name in replaced.items()]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS")
    }
    environment |= {"RUSTC": toolchain.rustc, "CARGO_ENCODED_RUSTFLAGS": "\x1f".join([*FLAGS, *remap])}
    environment["CARGO_TARGET_DIR"] = str(WORKSPACE / "target" / "wasm")
    if toolchain.build_std:
        environment["RUSTC_BOOTSTRAP"] = "1"
    return environment


def compile_module(toolchain: Toolchain) -> bytes:
    """Compile the sources.

    Raises:
        BackendError: if the toolchain fails.
    """
    command = [toolchain.cargo, "build", "--release", "--locked", "--target", TARGET, "--package", "walsh-engine"]
    if toolchain.build_std:
        command.append("-Zbuild-std=std,panic_abort")
    try:
        subprocess.run(command, cwd=WORKSPACE, env=_environment(toolchain), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BackendError(f"building the engine failed: {error}") from None
    return (WORKSPACE / "target" / "wasm" / TARGET / "release" / MODULE.name).read_bytes()


def build(toolchain: Toolchain | None = None) -> dict[str, Any]:
    """Compile the module and write it with its record.

    Returns:
        The record: source digest, toolchain, flags, size and sha256 of the module.

    Raises:
        BackendError: if there is no toolchain, or it fails.
    """
    toolchain = toolchain or find_toolchain()
    digest = source_digest()
    module = compile_module(toolchain)
    record = {
        "source_sha256": digest,
        "toolchain": toolchain.version,
        "library": "built from source" if toolchain.build_std else "precompiled",
        "flags": " ".join(FLAGS),
        "bytes": len(module),
        "sha256": hashlib.sha256(module).hexdigest(),
    }
    MODULE.write_bytes(module)
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="ascii")
    return record


def check() -> bool:
    """Whether the shipped module is that of the sources, by digest and, with a toolchain, by building it again.

    Another toolchain may give other bytes; what the rebuilt module computes must then be what the vectors say.
    """
    record = read_record()
    if record["source_sha256"] != source_digest():
        print("stale: run `python -m walsh.engine.build`")
        return False
    print("fresh: the module's record names these sources")
    try:
        toolchain = find_toolchain()
    except BackendError as reason:
        print(f"skipped building it again: {reason}")
        return True
    if hashlib.sha256(rebuilt := compile_module(toolchain)).hexdigest() == record["sha256"]:
        print(f"rebuilt to the same bytes by {toolchain.version}")
        return True
    print(f"rebuilt to other bytes by {toolchain.version} (the shipped one is by {record['toolchain']}): running it")
    return _conforms(rebuilt)


def _conforms(module: bytes) -> bool:
    """Whether a module passes the vectors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODULE.name
        path.write_bytes(module)
        command = [sys.executable, "-m", "walsh", "conformance", "--backend", "wasm"]
        return subprocess.run(command, env=os.environ | {"WALSH_ENGINE": str(path)}, check=False).returncode == 0


def main() -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description="Build the WebAssembly engine.")
    parser.add_argument("--check", action="store_true", help="compare the shipped module with the sources")
    if parser.parse_args().check:
        return 0 if check() else 1
    record = build()
    print(f"{MODULE.name}: {record['bytes']} bytes, sha256 {record['sha256']}, by {record['toolchain']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
