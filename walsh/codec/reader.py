"""Read ``.walsh`` files (conformance/FORMAT.md).

Nothing is trusted: every size, offset, code and digest is checked before it is used, and what is allocated is bounded
by what the file itself holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from walsh.codec import packings
from walsh.codec.layout import (
    DTYPES,
    FORMAT,
    MAX_ELEMENTS,
    MAX_HEADER,
    MOST_PER_BYTE,
    TOKENS,
    VERSION,
    Array,
    Stored,
    WalshFile,
    strict_form,
)
from walsh.codec.tokenizer import BytePairTokenizer
from walsh.data.tokenizers import Tokenizer, from_dict
from walsh.errors import FormatError, NonFiniteError, RangeError
from walsh.reference.config import complete_config
from walsh.reference.embedding import hash_indices

FOREIGN = "is it a .walsh file, whole? walsh also reads SPIN and .pt files, and folders of checkpoints"
"""What to ask of a file that breaks off, or begins like none of ours."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("a key stands twice in an object")
    return members


def _no_constant(text: str) -> Any:
    raise FormatError(f"{text} in JSON: expected finite numbers")


def parse_json(what: str, text: bytes | str) -> dict[str, Any]:
    """A JSON object without duplicate keys.

    Raises:
        FormatError: for anything else.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {type(value).__name__}: expected an object")
    return value


def _sizes(what: str, value: Any, most: int) -> tuple[int, ...]:
    good = isinstance(value, list) and len(value) <= 8
    if not good or not all(type(n) is int and 0 <= n <= most for n in value):
        raise FormatError(f"{what} is {value!r}: expected at most 8 sizes of 0 to {most}")
    return tuple(value)


def _elements(what: str, shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    if total > MAX_ELEMENTS:
        raise FormatError(f"{what} has {total} elements: expected at most {MAX_ELEMENTS}")
    return total


def _member(what: str, value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise FormatError(f"{what}: expected an object with {', '.join(keys)}")
    return value


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    if len(content) < 8:
        raise FormatError(f"a file of {len(content)} bytes: expected at least 8; {FOREIGN}")
    length = int.from_bytes(content[:8], "little")
    room = min(len(content) - 8, MAX_HEADER)
    if length > room:
        raise FormatError(f"a header of {length} bytes: expected at most {room}; {FOREIGN}")
    text = content[8 : 8 + length]
    if not text.startswith(b"{"):
        raise FormatError(f"the header does not start with an opening brace; {FOREIGN}")
    return parse_json("the header", text), 8 + length


def _tensors(header: Mapping[str, Any], content: bytes, start: int) -> dict[str, Array]:
    """Stored tensors by name, views of the file."""
    data = memoryview(content)[start:]
    found, spans = {}, []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        what = f"tensor {name!r}"
        entry = _member(what, value, ("dtype", "shape", "data_offsets"))
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise FormatError(f"{what} has dtype {entry['dtype']!r}: expected one of {', '.join(DTYPES)}")
        dtype = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<")
        shape = _sizes(f"shape of {what}", entry["shape"], MAX_ELEMENTS)
        offsets = _sizes(f"data_offsets of {what}", entry["data_offsets"], len(data))
        if len(offsets) != 2 or offsets[1] - offsets[0] != _elements(what, shape) * dtype.itemsize:
            raise FormatError(
                f"{what} stands at {list(offsets)}: expected {_elements(what, shape) * dtype.itemsize} bytes"
            )
        spans.append((*offsets, name))
        found[name] = np.frombuffer(data[offsets[0] : offsets[1]], dtype=dtype).reshape(shape)
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise FormatError(f"tensor {name!r} starts at {first}: expected {end}, tensors without holes or overlap")
        end = last
    if end != len(data):
        raise FormatError(f"{len(data) - end} bytes after the last tensor")
    return found


def _record(header: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(header.get("__metadata__"), dict) or "walsh" not in header["__metadata__"]:
        raise FormatError(
            "__metadata__ lacks walsh: a safetensors file of something else; of a checkpoint give the folder"
        )
    metadata = _member("__metadata__", header["__metadata__"], ("walsh",))
    if not isinstance(metadata["walsh"], str):
        raise FormatError("__metadata__.walsh: expected a text")
    record = parse_json("the record", metadata["walsh"])
    _member("the record", record, ("format", "version", "config", "tokenizer", "tensors"))
    if record["format"] != FORMAT or type(record["version"]) is not int or record["version"] != VERSION:
        raise FormatError(f"format {record['format']!r} version {record['version']!r}: expected {FORMAT!r} {VERSION}")
    for key in ("config", "tensors"):
        if not isinstance(record[key], dict):
            raise FormatError(f"the record's {key}: expected an object")
    return record


def _describe(record: Mapping[str, Any], tensors: Mapping[str, Array], verify: bool) -> dict[str, Stored]:
    if set(record["tensors"]) != set(tensors):
        odd = sorted(set(record["tensors"]) ^ set(tensors))[0]
        raise FormatError(f"tensor {odd!r} is described or stored, but not both")
    stored = {}
    for name, data in tensors.items():
        what = f"tensor {name!r}"
        entry = _member(what, record["tensors"][name], ("packing", "shape", "sha256"))
        shape = _sizes(f"shape of {what}", entry["shape"], MAX_ELEMENTS)
        if entry["packing"] == "raw":
            if shape != data.shape:
                raise FormatError(f"{what} is stored with shape {list(data.shape)}, described with {list(shape)}")
        elif data.dtype != np.uint8 or data.ndim != 1 or not isinstance(entry["packing"], str):
            raise FormatError(f"{what} is packed: expected U8 of one axis and a named packing")
        elif _elements(what, shape) > max(data.size, 1) * MOST_PER_BYTE:
            raise FormatError(f"{what} claims {_elements(what, shape)} elements in {data.size} bytes")
        if verify:
            digest = hashlib.sha256(data.tobytes()).hexdigest()
            if digest != entry["sha256"]:
                raise FormatError(f"{what} has sha256 {digest}: expected {entry['sha256']}; the file is damaged")
        stored[name] = Stored(entry["packing"], shape, data)
    return stored


def _tokens(stored: Stored | None) -> tuple[bytes, ...]:
    if stored is None:
        raise FormatError(f"tensor {TOKENS!r} is missing: a byte-pair tokenizer has its tokens there")
    content = stored.data.tobytes()
    if stored.packing == "deflate":
        content = packings.inflate(content, _elements(TOKENS, stored.shape))
    elif stored.packing != "raw":
        raise FormatError(f"tensor {TOKENS!r} has packing {stored.packing!r}: expected deflate or raw")
    tokens: list[bytes] = []
    at = 0
    while at < len(content):
        end = at + 1 + content[at]
        if end == at + 1 or end > len(content):
            raise FormatError(f"token {len(tokens)} breaks the bytes of {TOKENS!r}")
        tokens.append(content[at + 1 : end])
        at = end
    return tuple(tokens)


def outline(content: bytes, verify: bool = True) -> WalshFile:
    """A file without its weights: what it is, with no tensor unpacked; errors as :func:`load`, as far as they show."""
    header, start = _header(content)
    tensors = _tensors(header, content, start)
    record = _record(header)
    stored = _describe(record, tensors, verify)
    config = complete_config(record["config"])
    tokenizer = _tokenizer(record["tokenizer"], stored.get(TOKENS), config["vocab_size"])
    tokens = tokenizer.tokens if isinstance(tokenizer, BytePairTokenizer) else ()
    return WalshFile({}, record["config"], tokenizer, stored, tokens, len(content))


def load(content: bytes, verify: bool = True) -> WalshFile:
    """Read the bytes of a file.

    Args:
        content: the whole file.
        verify: compare every tensor's SHA-256.

    Raises:
        FormatError: for whatever breaks the format.
        ParameterError, ShapeError, DTypeError, StrictError, NonFiniteError: a well-formed file whose weights are not
            those of its configuration, or not finite. RangeError: hash indices outside their tables.
    """
    from walsh.reference.strict.weights import check_weights

    file = outline(content, verify)
    weights = {name: _finite(name, _unpack(item)) for name, item in file.stored.items() if name != TOKENS}
    check_weights(weights, strict_form(file.config))
    _require_places(weights, file.config)
    return replace(file, weights=weights)


def _require_places(weights: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    """Raise RangeError unless every index of a hash embedding is a row of its table."""
    tables = config.get("hash_embeddings", 0)
    if not tables:
        return
    places = weights.get("embedding.indices")
    if places is None:
        places = hash_indices(np.arange(config["vocab_size"]), tables)
    for i in range(tables):
        height, column = weights[f"embedding.tables.{i}.codes"].shape[0], places[:, i]
        if column.size and not 0 <= int(column.min()) <= int(column.max()) < height:
            raise RangeError(f"indices of embedding.tables.{i} leave its {height} rows; the file is not one model's")


def _finite(name: str, weight: Array) -> Array:
    if weight.dtype.kind == "f" and not np.isfinite(weight).all():
        raise NonFiniteError(f"weight {name!r} holds NaN or infinity: no model can be run with it; export it again")
    return weight


def _unpack(item: Stored) -> Array:
    if item.packing == "raw":
        return np.array(item.data, dtype=item.data.dtype.newbyteorder("="))
    return packings.unpack(item.data, item.packing, item.shape)


def _tokenizer(record: Any, stored: Stored | None, vocabulary: int) -> Tokenizer | None:
    if record is None:
        return None
    if not isinstance(record, dict):
        raise FormatError(f"the record's tokenizer is {record!r}: expected an object or null")
    pairs = record.get("kind") == BytePairTokenizer.kind
    tokenizer = BytePairTokenizer(_tokens(stored)) if pairs else from_dict(record)
    if tokenizer.end_token > vocabulary:
        raise FormatError(f"a tokenizer of {tokenizer.end_token} tokens for a vocabulary of {vocabulary}")
    return tokenizer


def read_walsh(path: str | os.PathLike[str], verify: bool = True) -> WalshFile:
    """Read a file; see :func:`load`.

    Raises:
        FormatError: also if the file cannot be read at all.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{os.fspath(path)}: {error.strerror}") from None
    return load(content, verify)


def summary(file: WalshFile) -> list[dict[str, Any]]:
    """One row per tensor: name, packing, shape, bytes and bits per element, largest first."""
    rows = []
    for name, item in file.stored.items():
        elements = max(int(np.prod(item.shape, dtype=np.int64)), 1)
        row = {"name": name, "packing": item.packing, "shape": list(item.shape), "bytes": int(item.data.nbytes)}
        rows.append(row | {"bits": 8 * int(item.data.nbytes) / elements})
    return sorted(rows, key=lambda row: (-row["bytes"], row["name"]))
