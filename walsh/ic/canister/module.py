"""The shipped module, its record and its interface: files beside this one, made by :mod:`walsh.ic.canister.build`."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from walsh.errors import BackendError, FormatError
from walsh.ic.binary import text, unsigned

FOLDER = Path(__file__).parent
MODULE = FOLDER / "walsh_canister.wasm"
NAMES = FOLDER / "walsh_canister.names"
"""The module's name section, deflated: profiles want it, and the platform does not."""
RECORD = FOLDER / "walsh_canister.json"
INTERFACE = FOLDER / "walsh.did"
"""A copy of ``canister/ic/walsh.did``, for installed packages."""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path.name}: {error.strerror}; run `python -m walsh.ic.canister.build`") from None


def read_record() -> dict[str, Any]:
    """The record of the shipped module, checked against its bytes.

    Raises:
        BackendError: if module or record are missing.
        FormatError: if they do not belong together.
    """
    record: dict[str, Any] = json.loads(_read(RECORD))
    found = hashlib.sha256(_read(MODULE)).hexdigest()
    if found != record["sha256"]:
        raise FormatError(f"{MODULE.name} has sha256 {found}: its record says {record['sha256']}; build it again")
    return record


def with_section(module: bytes, name: str, content: bytes) -> bytes:
    """A module with one more custom section at its end."""
    body = text(name) + content
    return module + b"\0" + unsigned(len(body)) + body


def named_module() -> bytes:
    """The shipped module with the names of its functions: the same code, for profiles.

    Raises:
        BackendError: if a file is missing.
        FormatError: if files do not belong together.
    """
    record, names = read_record(), _read(NAMES)
    if hashlib.sha256(names).hexdigest() != record["names_sha256"]:
        raise FormatError(f"{NAMES.name} does not belong to {MODULE.name}; build it again")
    return with_section(_read(MODULE), "name", zlib.decompress(names))


def with_names(wasm: bytes) -> bytes:
    """A module as it is, or with its names if it is the shipped one."""
    shipped = MODULE.is_file() and NAMES.is_file() and wasm == MODULE.read_bytes()
    return named_module() if shipped else wasm
