"""The ``.walsh`` file: strict weights, configuration and tokenizer in one safetensors container (conformance/FORMAT.md).

    8 bytes          header length, little-endian
    header           JSON: tensor -> dtype, shape, data_offsets; __metadata__ has one key, "walsh", with the record
    data             tensors without holes, tables first

    record           {format, version, config, tokenizer, tensors: name -> {packing, shape, sha256}}

Reading trusts nothing: every size, offset, code and digest is checked, and what is allocated is bounded by the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.codec import packings
from walsh.codec.rows import table_stems
from walsh.data.tokenizers import Tokenizer, from_dict
from walsh.errors import DTypeError, FormatError, ParameterError

Array = NDArray[Any]

FORMAT, VERSION = "walsh", 1
TOKENS = "tokenizer.tokens"
"""The tensor that holds a byte-pair tokenizer's tokens."""

MAX_HEADER = 16 << 20
MAX_ELEMENTS = 1 << 30
_MOST_PER_BYTE = 5 * 1040  # deflate makes at most 1,032 bytes of one, base 3 five weights of each

_DTYPES = {"I8": np.int8, "U8": np.uint8, "F32": np.float32, "F64": np.float64, "I64": np.int64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_ORDER = {"F64": 1, "I64": 2, "F32": 3, "I8": 4, "U8": 5}


@dataclass(frozen=True)
class Stored:
    """One tensor as the file has it.

    Attributes:
        packing: ``raw``, a packing of ``walsh.codec.packings``, or ``deflate``.
        shape: of the tensor.
        data: what is stored.
    """

    packing: str
    shape: tuple[int, ...]
    data: Array


@dataclass(frozen=True)
class WalshFile:
    """A file that was read.

    Attributes:
        weights: strict weights by name.
        config: the model's configuration.
        tokenizer: or None.
        stored: packing, shape and bytes per tensor.
        tokens: a byte-pair tokenizer's tokens by id; empty for other kinds.
        size: bytes of the file.
    """

    weights: dict[str, Array]
    config: dict[str, Any]
    tokenizer: Tokenizer | None
    stored: dict[str, Stored] = field(repr=False)
    tokens: tuple[bytes, ...] = field(repr=False)
    size: int


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
    if tensor.dtype not in _NAMES:
        raise DTypeError(f"weight {name!r} is {tensor.dtype}: expected {', '.join(map(str, _NAMES))}; use `export`")
    if name in tables:
        packing = chosen or ("int4" if packings.fits_int4(tensor) else "raw")
        return Stored(packing, tensor.shape, tensor if packing == "raw" else packings.pack(tensor, packing))
    if tensor.dtype == np.int8 and name.endswith(".codes") and ".mixer." not in name:
        packing, data = (chosen, packings.pack(tensor, chosen)) if chosen else packings.choose(tensor, prefer)
        return Stored(packing, tensor.shape, data)
    return Stored("raw", tensor.shape, tensor)


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
    from walsh.reference.strict.weights import check_weights

    check_weights(weights, config)
    tables = {f"{stem}.codes" for stem in table_stems(config)}
    chosen = packing or {}
    stored = {name: _store(name, tensor, tables, prefer, chosen.get(name)) for name, tensor in weights.items()}
    if tokenizer is not None and tokenizer.kind == "gpt2":
        stored[TOKENS] = _pack_tokens(tokenizer.token_bytes(i) for i in range(tokenizer.end_token))
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
    return _assemble(stored, tables, json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False))


def _little_endian(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _assemble(stored: Mapping[str, Stored], tables: set[str], record: str) -> bytes:
    """Header and data; tables first, so that a reader can let go of everything behind them."""

    def order(name: str) -> tuple[int, str]:
        return (0 if name in tables else _ORDER[_NAMES[stored[name].data.dtype]], name)

    header: dict[str, Any] = {"__metadata__": {"walsh": record}}
    parts, offset = [], 0
    for name in sorted(stored, key=order):
        data = stored[name].data
        header[name] = {
            "dtype": _NAMES[data.dtype],
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
    """Write beside the target and rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# ---- reading ----------------------------------------------------------------------------------------------------------


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
        raise FormatError(f"a file of {len(content)} bytes: expected at least 8")
    length = int.from_bytes(content[:8], "little")
    room = min(len(content) - 8, MAX_HEADER)
    if length > room:
        raise FormatError(f"a header of {length} bytes: expected at most {room}")
    text = content[8 : 8 + length]
    if not text.startswith(b"{"):
        raise FormatError("the header does not start with an opening brace")
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
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            raise FormatError(f"{what} has dtype {entry['dtype']!r}: expected one of {', '.join(_DTYPES)}")
        dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
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
    metadata = _member("__metadata__", header.get("__metadata__"), ("walsh",))
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
        elif _elements(what, shape) > max(data.size, 1) * _MOST_PER_BYTE:
            raise FormatError(f"{what} claims {_elements(what, shape)} elements in {data.size} bytes")
        if verify:
            digest = hashlib.sha256(data.tobytes()).hexdigest()
            if digest != entry["sha256"]:
                raise FormatError(f"{what} has sha256 {digest}: expected {entry['sha256']}; the file is damaged")
        stored[name] = Stored(entry["packing"], shape, data)
    return stored


def _tokens(stored: Stored | None) -> tuple[bytes, ...]:
    if stored is None:
        return ()
    content = stored.data.tobytes()
    if stored.packing == "deflate":
        content = packings.inflate(content, _elements(TOKENS, stored.shape))
    elif stored.packing != "raw":
        raise FormatError(f"tensor {TOKENS!r} has packing {stored.packing!r}: expected deflate or raw")
    tokens, at = [], 0
    while at < len(content):
        end = at + 1 + content[at]
        if end == at + 1 or end > len(content):
            raise FormatError(f"token {len(tokens)} breaks the bytes of {TOKENS!r}")
        tokens.append(content[at + 1 : end])
        at = end
    return tuple(tokens)


def load(content: bytes, verify: bool = True) -> WalshFile:
    """Read the bytes of a file.

    Args:
        content: the whole file.
        verify: compare every tensor's SHA-256.

    Raises:
        FormatError: for whatever breaks the format.
        ParameterError, ShapeError, DTypeError, StrictError: a well-formed file whose weights are not those of its
            configuration.
    """
    from walsh.reference.strict.weights import check_weights

    header, start = _header(content)
    tensors = _tensors(header, content, start)
    record = _record(header)
    stored = _describe(record, tensors, verify)
    tokens = _tokens(stored.get(TOKENS))
    weights = {}
    for name, item in stored.items():
        if name != TOKENS:
            weights[name] = _unpack(item)
    check_weights(weights, record["config"])
    return WalshFile(weights, record["config"], _tokenizer(record["tokenizer"]), stored, tokens, len(content))


def _unpack(item: Stored) -> Array:
    if item.packing == "raw":
        return np.array(item.data, dtype=item.data.dtype.newbyteorder("="))
    return packings.unpack(item.data, item.packing, item.shape)


def _tokenizer(record: Any) -> Tokenizer | None:
    if record is None:
        return None
    if not isinstance(record, dict):
        raise FormatError(f"the record's tokenizer is {record!r}: expected an object or null")
    return from_dict(record)


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
        size = int(item.data.nbytes)
        rows.append(
            {
                "name": name,
                "packing": item.packing,
                "shape": list(item.shape),
                "bytes": size,
                "bits": 8 * size / elements,
            }
        )
    key: Callable[[dict[str, Any]], tuple[int, str]] = lambda row: (-row["bytes"], row["name"])  # noqa: E731 - one use
    return sorted(rows, key=key)
