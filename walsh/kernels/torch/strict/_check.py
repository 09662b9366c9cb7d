"""Validation for strict arithmetic, beyond that of the ordinary kernels: nothing is converted silently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from walsh.errors import DTypeError, ShapeError
from walsh.kernels.torch._check import INTEGERS


def require_dtype(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Raise DTypeError unless x is a tensor of exactly this dtype."""
    if not isinstance(x, Tensor):
        raise DTypeError(f"{name} is a {type(x).__name__}: expected a torch.Tensor of {dtype}")
    if x.dtype != dtype:
        raise DTypeError(f"{name} has dtype {x.dtype}: strict arithmetic takes {dtype}; convert it first")


def require_float32(**tensors: Tensor) -> None:
    """Raise DTypeError unless each of these is a float32 tensor."""
    for name, x in tensors.items():
        require_dtype(name, x, torch.float32)


def as_integers(name: str, x: Any, device: torch.device | None = None) -> Tensor:
    """An int64 tensor of x, which may be a tensor, an array or a list, on ``device`` if one is named.

    Raises:
        DTypeError: unless x holds integers, or nothing.
    """
    tensor = torch.as_tensor(x)
    if tensor.dtype not in INTEGERS and tensor.numel():
        raise DTypeError(f"{name} is {tensor.dtype}: expected integers, such as an int64 tensor; convert it first")
    return tensor.to(device=device, dtype=torch.int64)


def require_last_axis(name: str, x: Tensor, letters: str) -> None:
    """Raise ShapeError unless x has a last axis that is not empty."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{name} has shape {list(x.shape)}: expected a last axis {letters} of at least 1")
