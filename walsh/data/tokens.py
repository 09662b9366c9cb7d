"""Token files: a corpus as one memory-mapped array of token ids, with a header that says whose ids they are.

Layout, little-endian, 64 bytes of header and then ``count`` ids::

    0   8  magic  b"WALSHTOK"
    8   4  format version, 1
    12  4  bytes per id, 2 or 4
    16  8  count
    24  32 sha256 of the tokenizer (Tokenizer.digest)
    56  8  zero
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walsh.data.tokenizers import Tokenizer
from walsh.errors import DataError, FormatError

MAGIC = b"WALSHTOK"
VERSION = 1
_HEADER = struct.Struct("<8sIIQ32s8x")


def write_tokens(path: Path, documents: Iterable[NDArray[np.int64]], tokenizer: Tokenizer) -> int:
    """Write documents one after another, each followed by the end token.

    The file appears under its name only when it is whole.

    Args:
        path: of the file; its folder is made if need be.
        documents: token ids int64 [T] each, taken lazily.
        tokenizer: whose ids they are.

    Returns:
        how many ids were written, end tokens counted.
    """
    width = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    dtype = np.dtype(f"<u{width}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    count = 0
    end = np.array([tokenizer.end_token], dtype=dtype)
    try:
        with partial.open("wb") as file:
            file.write(bytes(_HEADER.size))
            for ids in documents:
                file.write(ids.astype(dtype).tobytes())
                file.write(end.tobytes())
                count += len(ids) + 1
            file.seek(0)
            file.write(_HEADER.pack(MAGIC, VERSION, width, count, bytes.fromhex(tokenizer.digest)))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def read_tokens(path: Path, tokenizer: Tokenizer) -> NDArray[np.unsignedinteger]:
    """Map a token file into memory, read-only.

    Args:
        path: of the file.
        tokenizer: whose ids it must hold.

    Returns:
        uint16 or uint32 [count].

    Raises:
        DataError: if the file is missing or was made by another tokenizer.
        FormatError: if it is no token file, or shorter or longer than its header says.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such token file; make it with: walsh data prepare")
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise FormatError(f"{path}: not a token file; make it anew with: walsh data prepare")
    _, version, width, count, digest = _HEADER.unpack(header)
    if version != VERSION or width not in (2, 4):
        raise FormatError(f"{path}: version {version} with {width} bytes per id; this walsh reads version {VERSION}")
    expected = _HEADER.size + width * count
    if path.stat().st_size != expected:
        raise FormatError(f"{path}: {path.stat().st_size} bytes, its header says {expected}; make it anew")
    if digest.hex() != tokenizer.digest:
        raise DataError(
            f"{path}: made by tokenizer {digest.hex()[:12]}, this is {tokenizer.kind} {tokenizer.digest[:12]}; "
            "make it anew with: walsh data prepare"
        )
    if count == 0:
        return np.zeros(0, dtype=f"<u{width}")
    return np.memmap(path, dtype=f"<u{width}", mode="r", offset=_HEADER.size, shape=(count,))
