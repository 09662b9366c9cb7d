"""Validation for strict arithmetic: nothing is converted silently, and every check precedes every computation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import DTypeError, ParameterError, RangeError, ShapeError

Array = NDArray[Any]


def typed(name: str, value: Any, dtype: str) -> Array:
    """``value`` as an array, which must have this dtype; ``"integer"`` stands for any signed or unsigned one.

    Raises:
        DTypeError: for any other dtype; strict arithmetic never converts silently.
    """
    array = np.asarray(value)
    if dtype == "integer":
        if array.dtype.kind in "iu" or array.size == 0:
            return array.astype(np.int64)
    elif array.dtype == np.dtype(dtype):
        return array
    raise DTypeError(f"{name} has dtype {array.dtype}: strict arithmetic takes {dtype}; convert it first")


def shaped(name: str, array: Array, shape: tuple[int | None, ...], letters: str) -> Array:
    """``array``, which must have this shape; None stands for any length, ``letters`` say the shape in words.

    Raises:
        ShapeError: if it has not.
    """
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ShapeError(f"{name} has shape {list(array.shape)}: expected {letters} = [{wanted}]; reshape it")
    return array


def featured(name: str, array: Array, features: int | None, letters: str) -> Array:
    """``array``, whose last axis must exist, not be empty and have this length (None: any).

    Raises:
        ShapeError: if not.
    """
    if array.ndim == 0 or array.shape[-1] == 0 or features not in (None, array.shape[-1]):
        wanted = "at least 1" if features is None else features
        raise ShapeError(f"{name} has shape {list(array.shape)}: expected last axis {letters} = {wanted}")
    return array


def within(name: str, array: Array, low: int, high: int, remedy: str) -> Array:
    """``array``, whose elements must all be in low .. high - 1.

    Raises:
        RangeError: naming the first that is not.
    """
    outside = (array < low) | (array >= high)
    if outside.any():
        raise RangeError(f"{name} holds {array[outside][0]}: expected {low} .. {high - 1}; {remedy}")
    return array


def ternary(name: str, codes: Array) -> Array:
    """``codes``, which must all be -1, 0 or 1.

    Raises:
        ParameterError: naming the first that is not.
    """
    outside = (codes < -1) | (codes > 1)
    if outside.any():
        raise ParameterError(f"{name} holds code {codes[outside][0]}: expected -1, 0 or 1; make codes with `export`")
    return codes
