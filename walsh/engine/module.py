"""The shipped module ``walsh_engine.wasm`` and the record of where it came from.

The record names the digest of the sources, the toolchain, the flags, and size and sha256 of the module;
``walsh.engine.build`` writes both.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from walsh.errors import BackendError, FormatError

FOLDER = Path(__file__).parent
MODULE = FOLDER / "walsh_engine.wasm"
RECORD = FOLDER / "walsh_engine.json"


def module_path() -> Path:
    """The module to run: the shipped one, or another build of it that ``WALSH_ENGINE`` names."""
    other = os.environ.get("WALSH_ENGINE")
    if other:
        return Path(other)
    read_record()
    return MODULE


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
        raise BackendError(f"{error.filename}: {error.strerror}; run `python -m walsh.engine.build`") from None
    if found != record["sha256"]:
        raise FormatError(f"{MODULE.name} has sha256 {found}: its record says {record['sha256']}; build it again")
    return record
