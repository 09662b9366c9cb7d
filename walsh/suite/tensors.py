"""Tensors as conformance files write them: exact in every language, small where that is possible.

A tensor is ``{dtype, shape}`` and exactly one of::

    bits    hex of the little-endian bytes, row-major, at most 1 KiB of data
    paint   {mul, add, mod, sub, shift}: value(i) = (((i * mul + add) mod m) - sub) * 2^shift, i the row-major index
    file    {path, key}: a tensor of a safetensors file beside the JSON file
    digest  sha256 over dtype, shape and content; for results only, where equality of bits is all that is asked

Paint recipes are evaluated in integers and must be representable: a recipe that would round is an error, so that no
language needs our rounding to make our inputs. Digests are over content, never over files, and see every NaN as one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from walsh.errors import VectorError
from walsh.suite.seal import require_unsealed

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint64": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
}
"""The dtypes of vectors by name."""

MAX_INLINE = 1024
"""Bytes of data that a tensor may carry as hex."""

_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U64": "uint64",
    "BOOL": "bool",
}


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is one of the four floating dtypes (NumPy does not count bfloat16 among them)."""
    return dtype.name in ("float64", "float32", "float16", "bfloat16")


def round_to(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values rounded once, half to even, to a floating dtype.

    Args:
        values: floating [...]; read as float64.
        dtype: one of the four floating dtypes.

    Returns:
        [...] of that dtype. Values past its range become infinities without a warning.
    """
    wide = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype != DTYPES["bfloat16"]:
            return wide.astype(dtype)
        # float64 -> bfloat16 goes through float32 and would round twice. Rounding the first step to odd (Boldo and
        # Melquiond, 2008) leaves enough information for the second to be correct.
        narrow = np.asarray(wide.astype(np.float32))
        bits = narrow.view(np.uint32)
        inexact = np.isfinite(wide) & (narrow.astype(np.float64) != wide) & (bits & 1 == 0)
        away = np.abs(narrow.astype(np.float64)) > np.abs(wide)
        # An even neighbour is replaced by the odd one on the other side of the value: one bit up or down.
        bits = np.where(inexact, np.where(away, bits - np.uint32(1), bits + np.uint32(1)), bits).astype(np.uint32)
        return bits.view(np.float32).astype(dtype)


def to_bytes(array: Array) -> bytes:
    """Little-endian bytes in row-major order."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype.byteorder == ">":
        contiguous = contiguous.astype(contiguous.dtype.newbyteorder("<"))
    return contiguous.tobytes()


def from_bytes(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`to_bytes`; a fresh, writable array.

    Raises:
        VectorError: if the number of bytes does not fit, or a bool is neither 0 nor 1.
    """
    kind = find_dtype(dtype)
    expected = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(data) != expected:
        raise VectorError(f"{len(data)} bytes for {dtype}{list(shape)}: expected {expected}")
    if dtype == "bool" and not set(data) <= {0, 1}:
        raise VectorError("a bool tensor with bytes other than 0 and 1")
    return np.frombuffer(bytearray(data), dtype=kind).reshape(shape)


def find_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name, or a VectorError that lists those there are."""
    try:
        return DTYPES[name]
    except KeyError:
        raise VectorError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}") from None


def paint(recipe: Mapping[str, int], dtype: str, shape: tuple[int, ...]) -> Array:
    """Evaluate a paint recipe.

    Args:
        recipe: integers ``mul``, ``add``, ``mod`` (positive), ``sub`` and ``shift``.
        dtype: name of the dtype.
        shape: of the result.

    Returns:
        ``(((i * mul + add) mod m) - sub) * 2^shift`` at row-major index i.

    Raises:
        VectorError: if a value is not representable in the dtype.
    """
    kind = find_dtype(dtype)
    mul, add, mod, sub, shift = (int(recipe[name]) for name in ("mul", "add", "mod", "sub", "shift"))
    if mod <= 0:
        raise VectorError(f"paint: mod is {mod}, expected a positive integer")
    size = int(np.prod(shape, dtype=np.int64))
    # The residues repeat with period mod, so only the first of them need exact (unbounded) integers.
    period = [((i * mul + add) % mod) - sub for i in range(min(size, mod))]
    if shift < 0 and not is_float(kind):
        raise VectorError(f"paint: shift {shift} makes fractions, which {dtype} does not hold")
    if is_float(kind):
        if any(abs(value) > 2**53 for value in period):
            raise VectorError("paint: residues past 2^53 are not exact in float64")
        exact = np.ldexp(np.array(period, dtype=np.float64), shift)
        base = round_to(exact, kind)
        wrong = base.astype(np.float64) != exact
    else:
        values = np.array([value << shift for value in period], dtype=object)
        low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
        wrong = np.array([not low <= value <= high for value in values], dtype=bool)
        base = np.zeros(len(period), dtype=kind) if wrong.any() else values.astype(kind)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise VectorError(f"paint: value {period[i]} * 2^{shift} at index {i} is not representable in {dtype}")
    if size == 0:
        return np.zeros(shape, dtype=kind)
    return base[np.arange(size) % len(period)].reshape(shape)


def digest(array: Array) -> str:
    """sha256 (hex) over ``float32[2,3]``, a line feed and the little-endian content, every NaN made the same one."""
    content = np.ascontiguousarray(array)
    if is_float(content.dtype):
        nan = np.isnan(content)
        if nan.any():
            content = np.where(nan, np.array(np.nan, dtype=content.dtype), content)
            bits = content.view(f"u{content.dtype.itemsize}")
            bits[nan] &= np.array((1 << (8 * content.dtype.itemsize - 1)) - 1, dtype=bits.dtype)
    header = f"{content.dtype.name}[{','.join(map(str, array.shape))}]\n".encode("ascii")
    return hashlib.sha256(header + to_bytes(content)).hexdigest()


def encode(array: Array) -> dict[str, Any]:
    """A tensor as ``{dtype, shape, bits}``.

    Raises:
        VectorError: for more than 1 KiB of data: write a file, or paint it.
    """
    if array.nbytes > MAX_INLINE:
        raise VectorError(f"{array.nbytes} bytes inline: at most {MAX_INLINE}; use a file or a paint recipe")
    find_dtype(array.dtype.name)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "bits": to_bytes(array).hex()}


def decode(spec: Mapping[str, Any], folder: Path) -> Array:
    """The array that a tensor description stands for; fresh and writable.

    Args:
        spec: ``{dtype, shape}`` with ``bits``, ``paint`` or ``file``.
        folder: where files are looked for.

    Raises:
        VectorError: if it describes no such array.
    """
    dtype, shape = str(spec["dtype"]), tuple(int(n) for n in spec["shape"])
    if "bits" in spec:
        return from_bytes(_unhex(spec["bits"]), dtype, shape)
    if "paint" in spec:
        return paint(spec["paint"], dtype, shape)
    if "file" in spec:
        return _decode_file(spec, folder).copy()
    raise VectorError("a tensor needs bits, paint or file")


def _decode_file(spec: Mapping[str, Any], folder: Path) -> Array:
    require_unsealed("a tensor of the suite")
    path, key = folder / spec["file"]["path"], spec["file"]["key"]
    try:
        status = path.stat()
    except OSError as error:
        raise VectorError(f"{path.name}: {error.strerror}") from None
    array = _read_cached(path, status.st_mtime_ns, status.st_size).get(key)
    if array is None:
        raise VectorError(f"{path.name} has no tensor {key!r}")
    if array.dtype.name != spec["dtype"] or list(array.shape) != list(spec["shape"]):
        found = f"{array.dtype.name}{list(array.shape)}"
        raise VectorError(f"{path.name}:{key} is {found}, expected {spec['dtype']}{list(spec['shape'])}")
    return array


@lru_cache(maxsize=2)
def _read_cached(path: Path, _modified: int, _size: int) -> dict[str, Array]:
    """The cases of a group share a file, and each asks for it several times."""
    return read_tensors(path)


def _unhex(text: str) -> bytes:
    if text != text.lower() or len(text) > 2 * MAX_INLINE:
        raise VectorError(f"bits of {len(text)} characters: expected lower-case hex of at most {MAX_INLINE} bytes")
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise VectorError(f"bits are not hex: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a safetensors file without metadata: the same tensors give the same bytes."""
    # order="C" rather than ascontiguousarray, which turns a scalar into a vector.
    path.write_bytes(safetensors.numpy.save({name: np.array(value, order="C") for name, value in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file.

    Raises:
        VectorError: if the file is missing, malformed, carries metadata or has a dtype that vectors do not know.
    """
    try:
        data = path.read_bytes()
        members = safetensors.deserialize(data)  # type: ignore[no-untyped-call]  # a compiled function
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (OSError, safetensors.SafetensorError) as error:
        raise VectorError(f"{path.name}: {error}") from None
    if "__metadata__" in header:
        raise VectorError(f"{path.name}: has __metadata__, whose order varies; write it with walsh.suite.tensors")
    tensors = {}
    for name, member in members:
        if member["dtype"] not in _SAFETENSORS:
            raise VectorError(f"{path.name}:{name}: dtype {member['dtype']}, expected one of {', '.join(_SAFETENSORS)}")
        tensors[name] = from_bytes(bytes(member["data"]), _SAFETENSORS[member["dtype"]], tuple(member["shape"]))
    return tensors
