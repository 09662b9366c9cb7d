"""Validation shared by the references: every argument is looked at before anything is computed.

``as_*`` convert and check the dtype, ``require_*`` check shapes, values and parameters. Each raises the typed error of
``walsh.errors`` whose message names the wrong value, the expected one and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from walsh.errors import DTypeError, ParameterError, RangeError, ShapeError

Array = NDArray[Any]
Float = NDArray[np.float64]
Int = NDArray[np.int64]

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Names of the dtypes that count as float; by name, so that bfloat16 needs no import."""

P = ParamSpec("P")
R = TypeVar("R")


def ieee(function: Callable[P, R]) -> Callable[P, R]:
    """Let NaN and infinity propagate as IEEE arithmetic has it, without NumPy's warnings."""

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return quiet


def as_array(name: str, x: ArrayLike) -> Array:
    """The argument as an array, ShapeError if it is a ragged list; contiguous, so that strides cannot change a bit."""
    try:
        return np.asarray(x, order="C")
    except ValueError as error:
        raise ShapeError(f"{name} is not an array: {error}; give every row the same length") from None


def is_float(x: Array) -> bool:
    """Whether x has one of the four float dtypes."""
    return x.dtype.name in FLOATS


def as_float(name: str, x: ArrayLike) -> Float:
    """The argument in float64, not copied if it is so already; DTypeError unless it is one of the four float dtypes."""
    x = as_array(name, x)
    if not is_float(x):
        raise DTypeError(f"{name} is {x.dtype}: expected {', '.join(FLOATS)}; convert it first")
    with np.errstate(invalid="ignore"):  # a signalling NaN is an input like any other
        return x.astype(np.float64, copy=False)


def as_integer(name: str, x: ArrayLike) -> Array:
    """The argument as it is; DTypeError unless its dtype is an integer one (bool is not)."""
    x = as_array(name, x)
    if x.dtype.kind not in "iu":
        raise DTypeError(f"{name} is {x.dtype}: expected an integer dtype such as int64; convert it first")
    return x


def as_dtype(name: str, x: ArrayLike, dtype: type[np.generic], remedy: str) -> Array:
    """The argument as it is; DTypeError unless it has exactly this dtype."""
    x = as_array(name, x)
    if x.dtype != dtype:
        raise DTypeError(f"{name} is {x.dtype}: expected {np.dtype(dtype)}; {remedy}")
    return x


def as_indices(name: str, x: ArrayLike, low: int, high: int, remedy: str) -> Int:
    """The argument as int64; DTypeError unless integer, RangeError unless all of it lies in low .. high - 1."""
    x = as_integer(name, x)
    if x.size:
        least, most = int(x.min()), int(x.max())
        if least < low or most >= high:
            wrong = least if least < low else most
            raise RangeError(f"{name} holds {wrong}: expected {low} .. {high - 1}; {remedy}")
    return x.astype(np.int64)


def require_shape(name: str, x: Array, shape: tuple[int | None, ...], letters: str) -> None:
    """ShapeError unless x has this shape; None allows any length; ``letters`` says it in shape letters."""
    if x.ndim != len(shape) or any(e is not None and e != n for n, e in zip(x.shape, shape, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in shape)
        raise ShapeError(f"{name} has shape {list(x.shape)}: expected {letters} = [{wanted}]; reshape it")


def require_axes(name: str, x: Array, least: int, letters: str) -> None:
    """ShapeError unless x has at least this many axes."""
    if x.ndim < least:
        raise ShapeError(f"{name} has shape {list(x.shape)}: expected {letters}; add the missing axes")


def as_upstream(name: str, dy: ArrayLike, shape: tuple[int, ...]) -> Float:
    """The gradient that comes from above: float, and of the shape of the result."""
    dy = as_float(name, dy)
    require_shape(name, dy, shape, "the shape of the result")
    return dy


def as_optional(name: str, x: ArrayLike | None, shape: tuple[int, ...], letters: str) -> Float | None:
    """None, or x in float64 if it has this shape."""
    if x is None:
        return None
    x = as_float(name, x)
    require_shape(name, x, shape, letters)
    return x


def require_ternary(name: str, q: Array) -> None:
    """ParameterError unless every element is -1, 0 or 1."""
    if q.size:
        least, most = int(q.min()), int(q.max())
        if least < -1 or most > 1:
            wrong = least if least < -1 else most
            raise ParameterError(f"{name} holds code {wrong}: expected -1, 0 or 1; make codes with `ternary`")


def require_integer(name: str, value: object, least: int) -> int:
    """The value as an int; ParameterError unless it is an integer of at least ``least``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} is {value!r}: expected an integer of at least {least}")
    return int(value)


def require_number(name: str, value: object, least: float, exclusive: bool = False) -> float:
    """The value as a float; ParameterError unless it is a finite number from ``least`` (or above it) up."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]  # narrowed by is_number
    if not math.isfinite(number) or number < least or (exclusive and number == least):
        bound = "above" if exclusive else "of at least"
        raise ParameterError(f"{name} is {value!r}: expected a finite number {bound} {least}")
    return number


def rows(shape: tuple[int, ...]) -> int:
    """Number of tokens under these leading axes: their product, 1 for none, 0 if one is empty."""
    return math.prod(shape)
