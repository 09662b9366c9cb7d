"""Validation of strict calls: that of the PyTorch kernels, which launches nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from walsh.errors import NonFiniteError
from walsh.kernels.torch.strict._check import as_integers, require_dtype, require_float32, require_last_axis
from walsh.kernels.triton._launch import synchronous


def require_finite_rows(name: str, r: Tensor) -> None:
    """Raise NonFiniteError if a row that was quantised held NaN or infinity, which made its r NaN."""
    if r.numel() and synchronous(r) and not bool(torch.isfinite(r).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity: strict arithmetic needs finite numbers")


__all__ = ["as_integers", "require_dtype", "require_finite_rows", "require_float32", "require_last_axis"]
