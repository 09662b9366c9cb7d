"""The shipped module, its record and its interface: files beside this one, made by :mod:`walsh.ic.canister.build`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from walsh.errors import BackendError, FormatError

FOLDER = Path(__file__).parent
MODULE = FOLDER / "walsh_canister.wasm"
RECORD = FOLDER / "walsh_canister.json"
INTERFACE = FOLDER / "walsh.did"
"""A copy of ``canister/ic/walsh.did``, for installed packages."""


def read_record() -> dict[str, Any]:
    """The record of the shipped module, checked against its bytes.

    Raises:
        BackendError: if module or record are missing.
        FormatError: if they do not belong together.
    """
    try:
        record: dict[str, Any] = json.loads(RECORD.read_text(encoding="ascii"))
        found = hashlib.sha256(MODULE.read_bytes()).hexdigest()
    except OSError as error:
        raise BackendError(f"{error.filename}: {error.strerror}; run `python -m walsh.ic.canister.build`") from None
    if found != record["sha256"]:
        raise FormatError(f"{MODULE.name} has sha256 {found}: its record says {record['sha256']}; build it again")
    return record
