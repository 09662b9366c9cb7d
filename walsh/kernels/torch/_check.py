"""Validation shared by the PyTorch kernels: every argument is looked at before anything is computed.

Each helper raises the typed error of ``walsh.errors`` whose message names the wrong value, the expected one and the
remedy. Checks of *values* (ids, codes) need one scalar from the device; they are left out while a CUDA graph is being
captured or a program is compiled, where reading a scalar is impossible or would cut it in two: validate once before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from walsh.errors import DTypeError, ParameterError, RangeError, ShapeError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

ONE_THREAD = 1 << 15
"""Elements up to which PyTorch keeps an elementwise operation or a reduction on the thread that called it."""


def require_tensor(name: str, x: Tensor) -> None:
    """Raise DTypeError unless x is a tensor: lists and numbers of people who do not check types."""
    if not isinstance(x, Tensor):
        raise DTypeError(f"{name} is of type {type(x).__name__}: expected a tensor; torch.as_tensor makes one")


def require_float(name: str, x: Tensor) -> None:
    """Raise DTypeError unless x is float32, float64, bfloat16 or float16."""
    require_tensor(name, x)
    if x.dtype not in FLOATS:
        raise DTypeError(f"{name} is {x.dtype}: expected float32, float64, bfloat16 or float16; convert it first")


def require_integer(name: str, x: Tensor) -> None:
    """Raise DTypeError unless x holds integers."""
    require_tensor(name, x)
    if x.dtype not in INTEGERS:
        raise DTypeError(f"{name} is {x.dtype}: expected an integer dtype such as int64; convert it first")


def require_weight(name: str, w: Tensor) -> None:
    """Raise DTypeError unless w is float, int8 codes or packed uint8."""
    require_tensor(name, w)
    if w.dtype not in (*FLOATS, torch.int8, torch.uint8):
        raise DTypeError(f"{name} is {w.dtype}: expected a float dtype, int8 codes or uint8 made by pack_ternary")


def require_shape(name: str, x: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ShapeError unless x has this shape; None allows any length; ``letters`` says it in shape letters."""
    if x.ndim != len(shape) or any(e is not None and e != n for n, e in zip(x.shape, shape, strict=True)):
        wanted = ["any" if e is None else str(e) for e in shape]
        raise ShapeError(f"{name} has shape {list(x.shape)}: expected {letters} = [{', '.join(wanted)}]; reshape it")


def require_features(name: str, x: Tensor, features: int, letters: str) -> None:
    """Raise ShapeError unless the last axis of x has this length."""
    if x.ndim == 0 or x.shape[-1] != features:
        raise ShapeError(f"{name} has shape {list(x.shape)}: expected [..., {features}], that is [..., {letters}]")


def require_optional(name: str, x: Tensor | None, shape: tuple[int, ...], letters: str) -> None:
    """Raise unless x is None or a float tensor of this shape."""
    if x is not None:
        require_float(name, x)
        require_shape(name, x, shape, letters)


def values_can_be_read(x: Tensor) -> bool:
    """Whether the host may look at elements of x now."""
    return not torch.compiler.is_compiling() and not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def require_range(name: str, x: Tensor, low: int, high: int, remedy: str) -> tuple[int, int] | None:
    """Raise RangeError unless every element lies in low .. high - 1.

    Returns:
        The least and the greatest element, read for this; None if x is empty or the host may not look.
    """
    if x.numel() == 0 or not values_can_be_read(x):
        return None
    least, most = (int(v) for v in torch.aminmax(x))
    if least < low or most >= high:
        wrong = least if least < low else most
        raise RangeError(f"{name} holds {wrong}: expected {low} .. {high - 1}; {remedy}")
    return least, most


def all_finite(x: Tensor) -> bool:
    """Whether no element of x is NaN or infinite; one that is makes every sum that it enters so."""
    return math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())


def require_ternary(name: str, q: Tensor) -> None:
    """Raise ParameterError unless every element is -1, 0 or +1."""
    if q.numel() == 0 or not values_can_be_read(q):
        return
    # The weights of one layer are read on one thread, a part at a time: to wake the others costs more than it saves.
    single = q.is_cpu and q.numel() <= 3 * ONE_THREAD and q.is_contiguous()
    parts = torch.split(q.view(-1), ONE_THREAD) if single else (q,)
    extremes = [int(v) for part in parts for v in torch.aminmax(part)]
    least, most = min(extremes), max(extremes)
    if least < -1 or most > 1:
        wrong = least if least < -1 else most
        raise ParameterError(f"{name} holds code {wrong}: expected -1, 0 or 1; make codes with `ternary`")


def accumulate_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of these is float64, float32 otherwise: the dtype in which sums are formed."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def rows(x: Tensor) -> int:
    """Number of rows of the last axis, also where an axis is empty."""
    return math.prod(x.shape[:-1])


def require_number(name: str, value: object, least: float, exclusive: bool = False) -> None:
    """Raise ParameterError unless value is a finite number from ``least`` (or above it) up."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < least or (exclusive and number == least):
        raise ParameterError(
            f"{name} is {value!r}: expected a finite number {'above' if exclusive else 'from'} {least}"
        )
