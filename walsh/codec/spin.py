"""The published container of Walsh models, "SPIN", versions 1 to 4: read into weights, write version 4.

    "SPIN", u16 version, u32 length, JSON configuration, records until "END!"
    record     u8 marker, u16 length, name, payload                                     all numbers little-endian
    array      u8 dtype (0 int8, 1 int32, 2 float16, 3 float32), u8 ndim, u32 dims, raw

    marker     payload
    E A        f32 scale, int8 array: value = code * scale                       an embedding; a hash table
    B          u8 ndim, u32 dims, u32 non-zeros, u32 bytes, mask, u32 bytes, signs    a ternary tensor
    T          u8 ndim, u32 dims, int8 array of codes q + 1: four a byte, first highest, rows padded    version 2
               u8 ndim, u32 dims, u32 non-zeros, int32 array [non-zeros, ndim] of places, int8 array of signs    1
    I          float16 array                                                     importance of a hash embedding
    J          int32 array                                                       its indices
    L S N H h  float16 array                                                     scales, norms, mixers
    R          float32 array

Versions 1 to 3 are read as far as their own bytes describe them: the records are the same, with fewer markers. What
version 3 wrote for ternary tensors is not known; its other records are read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.codec.packings import pack, require_ternary, unpack
from walsh.codec.reader import parse_json
from walsh.codec.writer import write_atomically
from walsh.errors import FormatError, ParameterError

Array = NDArray[Any]

MAGIC, END = b"SPIN", b"END!"
_DTYPES: tuple[type[np.generic], ...] = (np.int8, np.int32, np.float16, np.float32)
_PLAIN: dict[str, type[np.generic]] = dict.fromkeys("ILSNHh", np.float16) | {"J": np.int32, "R": np.float32}
MARKERS = frozenset("EABT") | _PLAIN.keys()
_MAX_AXES = 8


class _Bytes:
    """A cursor that refuses to pass the end."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, count: int, what: str) -> bytes:
        if count > len(self._content) - self._at:
            raise FormatError(f"{what} needs {count} bytes at {self._at}: {len(self._content) - self._at} are left")
        self._at += count
        return self._content[self._at - count : self._at]

    def number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def peek(self, count: int) -> bytes:
        return self._content[self._at : self._at + count]

    def require_end(self) -> None:
        if self._at != len(self._content):
            raise FormatError(f"{len(self._content) - self._at} bytes after the end")


def _dims(source: _Bytes, what: str) -> tuple[int, ...]:
    axes = source.number("B", what)
    if axes > _MAX_AXES:
        raise FormatError(f"{what} has {axes} axes: expected at most {_MAX_AXES}")
    shape = tuple(source.number("I", what) for _ in range(axes))
    if int(np.prod([float(n) for n in shape])) > 1 << 30:
        raise FormatError(f"{what} has shape {list(shape)}: too large")
    return shape


def _array(source: _Bytes, what: str, dtype: type[np.generic]) -> Array:
    code = source.number("B", what)
    if code >= len(_DTYPES) or _DTYPES[code] is not dtype:
        raise FormatError(f"{what} has dtype {code}: expected {_DTYPES.index(dtype)} ({np.dtype(dtype)})")
    shape = _dims(source, what)
    kind = np.dtype(dtype).newbyteorder("<")
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    return np.frombuffer(source.take(size, what), dtype=kind).reshape(shape).astype(dtype)


def _bitmask(source: _Bytes, what: str) -> Array:
    shape = _dims(source, what)
    count = source.number("I", what)
    mask = source.take(source.number("I", what), what)
    signs = source.take(source.number("I", what), what)
    size = int(np.prod(shape, dtype=np.int64))
    if len(mask) != -(-size // 8):
        raise FormatError(f"{what} has a mask of {len(mask)} bytes: expected {-(-size // 8)}")
    codes = unpack(np.frombuffer(mask + signs, dtype=np.uint8), "bitmask", shape)
    if int(np.count_nonzero(codes)) != count:
        raise FormatError(f"{what} has {np.count_nonzero(codes)} non-zeros: expected the {count} that it states")
    return codes


def _packed_rows(source: _Bytes, what: str) -> Array:
    """Ternary codes of version 2."""
    shape = _dims(source, what)
    stored = _array(source, what, np.int8).view(np.uint8)
    if not shape or stored.shape != (*shape[:-1], -(-shape[-1] // 4)):
        raise FormatError(f"{what} of shape {list(shape)} is packed as {list(stored.shape)}: expected rows of 4 a byte")
    codes = ((stored[..., None] >> np.array([6, 4, 2, 0], dtype=np.uint8)) & 3).reshape(*shape[:-1], -1)
    codes = codes[..., : shape[-1]]
    if (codes == 3).any():
        raise FormatError(f"{what} holds code 3: expected 0, 1 or 2")
    return codes.astype(np.int8) - np.int8(1)


def _sparse(source: _Bytes, what: str) -> Array:
    """Ternary codes of version 1: places and signs of what is not zero."""
    shape = _dims(source, what)
    count = source.number("I", what)
    places, signs = _array(source, what, np.int32), _array(source, what, np.int8)
    if places.shape != (count, len(shape)) or signs.shape != (count,) or (np.abs(signs.astype(np.int16)) != 1).any():
        raise FormatError(f"{what}: expected {count} places of {len(shape)} indices, and as many signs of -1 or 1")
    size = int(np.prod(shape, dtype=np.int64))
    # No packing stands for zeros at no cost: such a tensor must not make a short file allocate much.
    if size > 4096 * max(count, 1) or (places < 0).any() or (places >= np.array(shape, dtype=np.int64)).any():
        raise FormatError(f"{what} of shape {list(shape)}: a place outside it, or hardly any non-zeros")
    codes = np.zeros(shape, dtype=np.int8)
    codes[tuple(places.T)] = signs
    if int(np.count_nonzero(codes)) != count:
        raise FormatError(f"{what} names a place twice")
    return codes


@dataclass(frozen=True)
class Record:
    """One tensor as the file has it.

    Attributes:
        name: the published one.
        marker: how it is stored.
        values: int8 codes of ternary tensors and of those with a scale, int32 indices, float32 for the rest.
        scale: by which codes are multiplied, or None.
    """

    name: str
    marker: str
    values: Array
    scale: np.float32 | None = None

    @property
    def weight(self) -> Array:
        """The tensor: codes times scale where there is one."""
        return self.values if self.scale is None else self.values.astype(np.float32) * self.scale


def _record(source: _Bytes, version: int, marker: str, name: str) -> Record:
    what = f"record {name!r}"
    if marker in "EA":
        scale = source.number("f", what)
        if not abs(scale) * 128 < float(np.finfo(np.float32).max):
            raise FormatError(f"{what} has scale {scale}: expected one that leaves values finite")
        return Record(name, marker, _array(source, what, np.int8), np.float32(scale))
    if marker == "B":
        return Record(name, marker, _bitmask(source, what))
    if marker == "T":
        if version > 2:
            raise FormatError(f"{what} has marker T, which version {version} does not describe")
        return Record(name, marker, _sparse(source, what) if version == 1 else _packed_rows(source, what))
    found = _array(source, what, _PLAIN[marker])
    return Record(name, marker, found if marker == "J" else found.astype(np.float32))


def read_records(content: bytes) -> tuple[list[Record], dict[str, Any], int]:
    """Read the bytes of a file: (records in their order, the configuration, the version).

    Raises:
        FormatError: for whatever breaks the format.
    """
    source = _Bytes(content)
    if source.take(4, "the magic") != MAGIC:
        raise FormatError(f"the file starts with {content[:4]!r}: expected {MAGIC!r}")
    version = source.number("H", "the version")
    if not 1 <= version <= 4:
        raise FormatError(f"version {version}: expected 1 to 4")
    config = parse_json("the configuration", source.take(source.number("I", "the configuration"), "the configuration"))
    records: dict[str, Record] = {}
    while source.peek(4) != END:
        marker = chr(source.number("B", "a marker"))
        if marker not in MARKERS:
            raise FormatError(f"marker {marker!r}: expected one of {''.join(sorted(MARKERS))}, or the end")
        try:
            name = source.take(source.number("H", "a name"), "a name").decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"a name is not UTF-8: {error}") from None
        if name in records:
            raise FormatError(f"record {name!r} stands twice")
        records[name] = _record(source, version, marker, name)
    source.take(4, "the end")
    source.require_end()
    return list(records.values()), config, version


def load(content: bytes) -> tuple[dict[str, Array], dict[str, Any], dict[str, str]]:
    """Read the bytes of a file.

    Returns:
        (weights by name: int8 codes of ternary tensors, int32 indices, float32 for the rest; the configuration; the
        marker of every record).

    Raises:
        FormatError: for whatever breaks the format.
    """
    records, config, _ = read_records(content)
    return {one.name: one.weight for one in records}, config, {one.name: one.marker for one in records}


def load_walsh(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a published file, as its guide names it.

    Returns:
        (state_dict, config): tensors by name, see :func:`load`, and the configuration as the file has it.

    Raises:
        FormatError: for whatever breaks the format, or cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{os.fspath(path)}: {error.strerror}") from None
    weights, config, _ = load(content)
    return weights, config


def _put_array(array: Array, dtype: type[np.generic]) -> bytes:
    values = np.asarray(array).astype(np.dtype(dtype).newbyteorder("<"))
    return struct.pack(f"<BB{values.ndim}I", _DTYPES.index(dtype), values.ndim, *values.shape) + values.tobytes()


def _put_scaled(values: Array) -> bytes:
    wide = np.asarray(values, dtype=np.float64)
    scale = np.float32(np.abs(wide).max(initial=0.0) / 127) or np.float32(1)
    return struct.pack("<f", scale) + _put_array(np.clip(np.rint(wide / np.float64(scale)), -127, 127), np.int8)


def _put_bitmask(codes: Array) -> bytes:
    stored = pack(require_ternary(np.asarray(codes)), "bitmask").tobytes()
    mask, signs = stored[: -(-codes.size // 8)], stored[-(-codes.size // 8) :]
    head = struct.pack(f"<B{codes.ndim}I", codes.ndim, *codes.shape)
    counts = struct.pack("<II", int(np.count_nonzero(codes)), len(mask))
    return head + counts + mask + struct.pack("<I", len(signs)) + signs


def dump(weights: Mapping[str, Array], config: Mapping[str, Any], markers: Mapping[str, str]) -> bytes:
    """The bytes of a version 4 file.

    Args:
        weights: tensors by name, as :func:`load` gives them.
        config: the configuration.
        markers: how each is stored; records are written in this order. int8 with one scale per tensor (E, A) and
            float16 (I, L, S, N, H, h) round.

    Raises:
        ParameterError: an unknown marker, a missing or superfluous tensor, codes that are not ternary.
    """
    text = json.dumps(dict(config), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    parts = [MAGIC, struct.pack("<HI", 4, len(text)), text]
    for name, marker in markers.items():
        if name not in weights:
            raise ParameterError(f"tensor {name!r} is missing for a record of marker {marker}")
        encoded = name.encode("utf-8")
        parts += [marker.encode("ascii"), struct.pack("<H", len(encoded)), encoded, _payload(weights[name], marker)]
    if left := sorted(set(weights) - set(markers)):
        raise ParameterError(f"tensor {left[0]!r} has no marker; name one of {''.join(sorted(MARKERS - {'T'}))}")
    return b"".join([*parts, END])


def _payload(tensor: Array, marker: str) -> bytes:
    tensor = np.asarray(tensor)
    if marker in "EA":
        return _put_scaled(tensor)
    if marker == "B":
        return _put_bitmask(tensor)
    if marker in _PLAIN:
        return _put_array(tensor, _PLAIN[marker])
    raise ParameterError(f"marker {marker!r}: version 4 has {''.join(sorted(MARKERS - {'T'}))}")


def write_spin(
    path: str | os.PathLike[str], weights: Mapping[str, Array], config: Mapping[str, Any], markers: Mapping[str, str]
) -> int:
    """Write a version 4 file atomically; arguments and errors as :func:`dump`. Returns its bytes."""
    content = dump(weights, config, markers)
    write_atomically(Path(path), content)
    return len(content)
