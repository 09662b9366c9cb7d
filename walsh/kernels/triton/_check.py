"""Validation of arguments before anything is launched; the shape and dtype helpers are those of the PyTorch kernels.

Checks of *values* (ids, codes) read one scalar back from the device. They are left out where that is impossible: in a
traced graph, in a CUDA graph capture, on ``meta`` tensors (see :func:`walsh.kernels.triton._launch.synchronous`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from walsh.errors import NonFiniteError, ParameterError, RangeError, ShapeError
from walsh.kernels.torch._check import (
    FLOATS,
    INTEGERS,
    accumulate_dtype,
    require_features,
    require_float,
    require_integer,
    require_optional,
    require_shape,
    require_weight,
    rows,
)
from walsh.kernels.triton._launch import cdiv, interpreting, next_power_of_two, synchronous

RULES = ("absmean", "round")


def require_range(name: str, x: Tensor, low: int, high: int, remedy: str) -> None:
    """Raise RangeError unless every element lies in low .. high - 1."""
    if x.numel() == 0 or not synchronous(x):
        return
    least, most = (int(v) for v in torch.aminmax(x))
    if least < low or most >= high:
        wrong = least if least < low else most
        raise RangeError(f"{name} holds {wrong}: expected {low} .. {high - 1}; {remedy}")


def require_ternary(name: str, q: Tensor) -> None:
    """Raise ParameterError unless every element is -1, 0 or +1."""
    if q.numel() == 0 or not synchronous(q):
        return
    least, most = (int(v) for v in torch.aminmax(q))
    if least < -1 or most > 1:
        wrong = least if least < -1 else most
        raise ParameterError(f"{name} holds code {wrong}: expected -1, 0 or 1; make codes with `ternary`")


def require_finite(name: str, x: Tensor) -> None:
    """Raise NonFiniteError if x holds NaN or infinity."""
    if x.numel() and synchronous(x) and not bool(torch.isfinite(x).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity: expected finite values; look for a diverged update")


def require_rule(rule: str) -> None:
    """Raise ParameterError unless the rule is known."""
    if rule not in RULES:
        raise ParameterError(f"rule {rule!r}: expected one of {', '.join(RULES)}")


def require_bits(activation_bits: int | None) -> None:
    """Raise ParameterError unless activations are int8 or left alone."""
    if activation_bits not in (8, None):
        raise ParameterError(f"activation_bits is {activation_bits!r}: expected 8 or None")


def require_nonempty_row(name: str, x: Tensor) -> None:
    """Raise ShapeError unless the last axis exists and is not empty."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{name} has shape {list(x.shape)}: expected [..., C], C at least 1, to take a maximum over")


def packed_width(w: Tensor, k: int) -> int:
    """How long the last axis of w must be to hold k weights: k, or ceil(k / 4) if packed."""
    return cdiv(k, 4) if w.dtype == torch.uint8 else k


def row_tile(count: int, columns: int, limit: int = 4096) -> tuple[int, int]:
    """Rows and columns of the tile that one program of a row-wise kernel holds, both powers of two."""
    block = min(next_power_of_two(columns), 4 * limit)
    room = (1 << 16) if interpreting() else limit
    return max(1, min(next_power_of_two(count), room // block)), block


def dim_product(shape: tuple[int, ...]) -> int:
    """Number of elements of this shape."""
    return math.prod(shape)


__all__ = [
    "FLOATS",
    "INTEGERS",
    "RULES",
    "accumulate_dtype",
    "dim_product",
    "packed_width",
    "require_bits",
    "require_features",
    "require_finite",
    "require_float",
    "require_integer",
    "require_nonempty_row",
    "require_optional",
    "require_range",
    "require_rule",
    "require_shape",
    "require_ternary",
    "require_weight",
    "row_tile",
    "rows",
]
