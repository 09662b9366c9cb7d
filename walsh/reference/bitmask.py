"""Ternary codes as a bit mask and signs (SPEC.md, section *bitmask*).

    mask  bit p & 7 of byte p >> 3 is 1 where q_p is not 0           row-major positions p, least significant bit first
    signs one bit per non-zero in the same order, 1 = +1             padding bits are 0

One bit per weight and one more per non-zero: 1 + (1 - p0) bits for a fraction p0 of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from walsh.errors import FormatError, ParameterError
from walsh.reference._check import as_dtype, require_integer, require_shape, require_ternary


def bitmask_encode(q: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes as mask and signs.

    Args:
        q: int8 in {-1, 0, 1}, any shape.

    Returns:
        mask uint8 [ceil(size / 8)] and signs uint8 [ceil(non-zeros / 8)].

    Raises:
        DTypeError: q is not int8. ParameterError: another value.
    """
    q = as_dtype("q", q, np.int8, "make codes with `ternary`")
    require_ternary("q", q)
    flat = q.ravel()
    return np.packbits(flat != 0, bitorder="little"), np.packbits(flat[flat != 0] > 0, bitorder="little")


def bitmask_decode(mask: ArrayLike, signs: ArrayLike, shape: Sequence[int]) -> NDArray[np.int8]:
    """The inverse of :func:`bitmask_encode`.

    Args:
        mask, signs: uint8, one axis each.
        shape: of the result.

    Returns:
        q int8 of this shape.

    Raises:
        ParameterError: shape is not a list of integers of at least 0. DTypeError: not uint8. ShapeError: more than one
        axis. FormatError: a wrong length, a set padding bit, or signs that do not fit the mask.
    """
    if isinstance(shape, str | bytes) or not isinstance(shape, Sequence):
        raise ParameterError(f"shape is {shape!r}: expected a list of integers")
    size = math.prod(sizes := tuple(require_integer("an axis of shape", axis, 0) for axis in shape))
    nonzero = _bits("mask", mask, size, f"the shape {list(sizes)}")
    positive = _bits("signs", signs, int(nonzero.sum()), "the non-zeros of the mask")
    q = np.zeros(size, dtype=np.int8)
    q[nonzero] = np.where(positive, 1, -1)
    return q.reshape(sizes)


def _bits(name: str, data: ArrayLike, count: int, source: str) -> NDArray[np.bool_]:
    """The first ``count`` bits of bytes that hold exactly so many, their padding being 0."""
    data = as_dtype(name, data, np.uint8, "make it with `bitmask_encode`")
    require_shape(name, data, (None,), "[bytes]")
    if data.size != -(-count // 8):
        raise FormatError(f"{name} has {data.size} bytes: expected {-(-count // 8)} for {count} bits, from {source}")
    bits = np.unpackbits(data, bitorder="little").astype(np.bool_)
    if bits[count:].any():
        raise FormatError(f"{name} has a padding bit set past bit {count}: expected 0; the bytes are damaged")
    return bits[:count]
