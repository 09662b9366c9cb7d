"""Activations as int8 codes with one scale per token (SPEC.md, section *activations*).

    scale = 127 / max(max(abs(x)), 1e-5),   a = clip(rint(x * scale), -128, 127),   x [..., C], a int8, scale [..., 1]

after Ma et al., *The Era of 1-bit LLMs* (arXiv 2402.17764). The value represented is a / scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.torch._check import accumulate_dtype, all_finite, require_float, values_can_be_read


def _check(x: Tensor) -> None:
    require_float("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., C] with C at least 1, to take a maximum over")


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and their scale, per row of the last axis.

    Args:
        x: float [..., C], C >= 1.

    Returns:
        a int8 [..., C] and scale [..., 1], float64 for float64 x and float32 otherwise. A row that holds NaN or
        infinity has scale NaN and codes 0.

    Raises:
        DTypeError: x is not float. ShapeError: C is 0.
    """
    _check(x)
    x = x.detach()
    x = x.to(accumulate_dtype(x))
    largest = x.abs().amax(dim=-1, keepdim=True)
    # Tensor over tensor: PyTorch computes number over tensor as a reciprocal and a product, which rounds twice.
    scale = torch.full_like(largest, 127.0) / largest.clamp(min=1e-5)
    # A host that may look leaves the masks out; on other devices it would have to wait.
    wrong = None if x.is_cpu and values_can_be_read(x) and all_finite(largest) else ~torch.isfinite(largest)
    if wrong is not None:
        scale = scale.masked_fill(wrong, torch.nan)
    # abs(x) * scale is at most 127 (1 + 2^-22), so rint needs no clip.
    a = x.mul(scale).round_().to(torch.int8)
    return a if wrong is None else a.masked_fill_(wrong, 0), scale


class _FakeQuantize(torch.autograd.Function):
    """a / scale in the dtype of x; straight-through."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        a, scale = quantize_activations(x)
        return dequantize(a, scale).to(x.dtype)

    @staticmethod
    def backward(_ctx: Any, dv: Tensor) -> Tensor:
        return dv


def dequantize(a: Tensor, scale: Tensor) -> Tensor:
    """A / scale in the dtype of scale; a is converted first because mixed division is ten times slower on CPU."""
    return a.to(scale.dtype).div_(scale)


def fake_quantize_activations(x: Tensor) -> Tensor:
    """The values that the int8 codes stand for, with the straight-through gradient dx = dv.

    Args:
        x: float [..., C], C >= 1.

    Returns:
        a / scale [..., C] in the dtype of x.

    Raises:
        As :func:`quantize_activations`.
    """
    _check(x)
    result: Tensor = _FakeQuantize.apply(x)
    return result
