"""Write ``.walsh`` files: strict weights, configuration and tokenizer in one container (conformance/FORMAT.md).

8 bytes          header length, little-endian
header           JSON: tensor -> dtype, shape, data_offsets; __metadata__ has one key, "walsh", with the record
data             tensors without holes, tables first

record           {format, version, config, tokenizer, tensors: name -> {packing, shape, sha256}}
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from walsh.codec import packings
from walsh.codec.layout import FORMAT, NAMES, ORDER, TOKENS, VERSION, Array, Stored, strict_form
from walsh.codec.rows import table_stems
from walsh.data.tokenizers import Tokenizer
from walsh.errors import DTypeError, ParameterError


def _pack_tokens(tokens: Iterable[bytes]) -> Stored:
    parts = []
    for token in tokens:
        if not 1 <= len(token) <= 255:
            raise ParameterError(f"a token of {len(token)} bytes: the format holds tokens of 1 to 255")
        parts.append(bytes([len(token)]) + token)
    content = b"".join(parts)
    return Stored("deflate", (len(content),), np.frombuffer(zlib.compress(content, 9), dtype=np.uint8))


def _store(name: str, tensor: Array, tables: set[str], prefer: str, chosen: str | None) -> Stored:
    tensor = np.ascontiguousarray(tensor) if np.ndim(tensor) else np.asarray(tensor)
    if tensor.dtype not in NAMES:
        raise DTypeError(f"weight {name!r} is {tensor.dtype}: expected {', '.join(map(str, NAMES))}; use `export`")
    if name in tables:
        packing = chosen or ("int4" if packings.fits_int4(tensor) else "raw")
        return Stored(packing, tensor.shape, tensor if packing == "raw" else packings.pack(tensor, packing))
    if tensor.dtype == np.int8 and name.endswith(".codes") and ".mixer." not in name:
        if chosen:
            return Stored(chosen, tensor.shape, packings.pack(tensor, chosen))
        packing, data, considered = packings.compare(tensor, prefer)
        return Stored(packing, tensor.shape, data, considered)
    return Stored("raw", tensor.shape, tensor)


def store(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    prefer: str = "size",
    packing: Mapping[str, str] | None = None,
) -> dict[str, Stored]:
    """Every tensor as the file will have it; arguments and errors as :func:`dump`."""
    from walsh.reference.strict.weights import check_weights

    check_weights(weights, strict_form(config))
    tables = _tables(config)
    chosen = packing or {}
    stored = {name: _store(name, tensor, tables, prefer, chosen.get(name)) for name, tensor in weights.items()}
    if tokenizer is not None and tokenizer.kind == "gpt2":
        stored[TOKENS] = _pack_tokens(tokenizer.token_bytes(i) for i in range(tokenizer.end_token))
    return stored


def assemble(stored: Mapping[str, Stored], config: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> bytes:
    """The file of tensors that :func:`store` made."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        "config": dict(config),
        "tokenizer": None if tokenizer is None else tokenizer.to_dict(),
        "tensors": {
            name: {
                "packing": item.packing,
                "shape": list(item.shape),
                "sha256": hashlib.sha256(_little_endian(item.data)).hexdigest(),
            }
            for name, item in sorted(stored.items())
        },
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _assemble(stored, _tables(config), text)


def dump(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    prefer: str = "size",
    packing: Mapping[str, str] | None = None,
) -> bytes:
    """A model as the bytes of a file; nothing is lost.

    Args:
        weights: strict weights, as ``walsh.reference.strict.export`` makes them.
        config: the model's configuration.
        tokenizer: travels inside.
        prefer: ``size`` or ``speed``, for the choice of a packing per ternary tensor. Tables whose codes fit into four
            bits get four.
        packing: packings by name, where the choice is not wanted.

    Returns:
        The bytes.

    Raises:
        ParameterError, StrictError: an incomplete or superfluous weight, a wrong configuration or preference.
        DTypeError, ShapeError: a weight that is not what the configuration says.
    """
    return assemble(store(weights, config, tokenizer, prefer, packing), config, tokenizer)


def _tables(config: Mapping[str, Any]) -> set[str]:
    return {f"{stem}.codes" for stem in table_stems(config)}


def _little_endian(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _assemble(stored: Mapping[str, Stored], tables: set[str], record: str) -> bytes:
    """Header and data; tables first, so that a reader can let go of everything behind them."""

    def order(name: str) -> tuple[int, str]:
        return (0 if name in tables else ORDER[NAMES[stored[name].data.dtype]], name)

    header: dict[str, Any] = {"__metadata__": {"walsh": record}}
    parts, offset = [], 0
    for name in sorted(stored, key=order):
        data = stored[name].data
        header[name] = {
            "dtype": NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [offset, offset + data.nbytes],
        }
        parts.append(_little_endian(data))
        offset += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % 64)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def write_walsh(
    path: str | os.PathLike[str],
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    prefer: str = "size",
    packing: Mapping[str, str] | None = None,
) -> int:
    """Write a file; arguments and errors as :func:`dump`. There is never half a file under this name.

    Returns:
        Its bytes.
    """
    content = dump(weights, config, tokenizer, prefer, packing)
    write_atomically(Path(path), content)
    return len(content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and rename; permissions are those of any new file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
