"""Build the canister: ``canister/ic`` (Rust) to ``walsh_canister.wasm``, with a record of where it came from.

    python -m walsh.ic.canister.build           build, write walsh_canister.wasm and walsh_canister.json
    python -m walsh.ic.canister.build --check   compare the recorded source digest with the sources

Toolchain, flags and reproducibility are those of :mod:`walsh.engine.build`. The interface ``walsh.did`` is put into
the module as the metadata section ``icp:public candid:service``, where tools of the platform look for it. The names
of its functions are taken out, since a canister pays for its module's bytes, and kept in ``walsh_canister.names`` for
profiles.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from walsh.engine import build as engine
from walsh.errors import BackendError
from walsh.ic.binary import Reader
from walsh.ic.canister.module import INTERFACE, MODULE, NAMES, RECORD, read_record, with_section

CRATE = engine.WORKSPACE / "ic"
METADATA = "icp:public candid:service"


def source_files() -> list[Path]:
    """Every file that the module depends on, sorted by its path in the workspace."""
    own = [CRATE / "Cargo.toml", CRATE / "Cargo.lock", CRATE / "walsh.did", *(CRATE / "src").rglob("*.rs")]
    shared = [path for path in engine.source_files() if path.name != "Cargo.lock"]
    return sorted([*own, *shared], key=_name)


def _name(path: Path) -> str:
    return path.relative_to(engine.WORKSPACE).as_posix()


def source_digest() -> str:
    """sha256 (hex) over path and content of every source file, in order.

    Raises:
        BackendError: if the sources are not there (an installed wheel has none).
    """
    digest = hashlib.sha256()
    try:
        for path in source_files():
            content = path.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{_name(path)}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError as error:
        raise BackendError(f"no sources of the canister at {CRATE.name}/: {error.strerror}; use a checkout") from None
    return digest.hexdigest()


def split_section(module: bytes, name: str) -> tuple[bytes, bytes]:
    """(the module without its custom section of this name, the section's content); nothing if there is none."""
    reader, rest, content = Reader(module, 8), module[:8], b""
    while reader.at < len(module):
        start, kind = reader.at, reader.byte()
        inside = Reader(reader.take(reader.u32()))
        if kind == 0 and inside.name() == name:
            content = inside.data[inside.at :]
        else:
            rest += module[start : reader.at]
    return rest, content


def build(toolchain: engine.Toolchain | None = None) -> dict[str, Any]:
    """Compile the module and write it with its record and a copy of its interface.

    Returns:
        The record: source digest, toolchain, flags, size and sha256 of the module.

    Raises:
        BackendError: if there is no toolchain, or it fails.
    """
    toolchain = toolchain or engine.find_toolchain()
    digest = source_digest()
    environment = engine._environment(toolchain) | {"CARGO_TARGET_DIR": str(engine.WORKSPACE / "target" / "ic")}
    command = [toolchain.cargo, "build", "--release", "--locked", "--target", engine.TARGET]
    if toolchain.build_std:
        command.append("-Zbuild-std=std,panic_abort")
    try:
        subprocess.run(command, cwd=CRATE, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BackendError(f"building the canister failed: {error}") from None
    built = engine.WORKSPACE / "target" / "ic" / engine.TARGET / "release" / "walsh_canister.wasm"
    interface = (CRATE / "walsh.did").read_bytes()
    module, names = split_section(built.read_bytes(), "name")
    module = with_section(module, METADATA, interface)
    packed = zlib.compress(names, 9)
    record = {
        "source_sha256": digest,
        "toolchain": toolchain.version,
        "library": "built from source" if toolchain.build_std else "precompiled",
        "flags": " ".join(engine.FLAGS),
        "bytes": len(module),
        "sha256": hashlib.sha256(module).hexdigest(),
        "names_sha256": hashlib.sha256(packed).hexdigest(),
    }
    MODULE.write_bytes(module)
    NAMES.write_bytes(packed)
    INTERFACE.write_bytes(interface)
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="ascii")
    return record


def main() -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description="Build the canister.")
    parser.add_argument("--check", action="store_true", help="only compare the recorded source digest with the sources")
    if parser.parse_args().check:
        fresh = read_record()["source_sha256"] == source_digest()
        print("fresh" if fresh else "stale: run `python -m walsh.ic.canister.build`")
        return 0 if fresh else 1
    record = build()
    print(f"{MODULE.name}: {record['bytes']} bytes, sha256 {record['sha256']}, by {record['toolchain']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
