"""Activations as int8 codes, one scale per token (SPEC.md, section *activations*).

    scale = 127 / max(max(abs(x)), 1e-5),   a = clip(rint(x * scale), -128, 127)      x [..., C], a int8, scale [..., 1]

The value represented is a / scale. Source: Ma et al., *The Era of 1-bit LLMs* (arXiv 2402.17764).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from walsh.errors import ParameterError, ShapeError
from walsh.reference._check import Float, as_float, as_upstream, ieee


@ieee
def quantize_activations(x: ArrayLike) -> tuple[NDArray[np.int8], Float]:
    """int8 codes and their scale, per row of the last axis.

    Args:
        x: float [..., C], C at least 1.

    Returns:
        a int8 [..., C] and scale float64 [..., 1]. A row with NaN or infinity has scale NaN and codes 0.

    Raises:
        DTypeError: x is not float. ShapeError: x has no axis, or C is 0.
    """
    x = as_float("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., C] with C at least 1, to take a maximum over")
    largest = np.abs(x).max(axis=-1, keepdims=True)
    finite = np.isfinite(largest)
    scale = np.where(finite, 127 / np.maximum(largest, 1e-5), np.nan)
    a = np.where(finite, np.clip(np.rint(x * scale), -128, 127), 0)
    return a.astype(np.int8), scale


@ieee
def fake_quantize_activations(x: ArrayLike) -> Float:
    """The values that the codes stand for: a / scale, float64 [..., C].

    Raises:
        As :func:`quantize_activations`.
    """
    a, scale = quantize_activations(x)
    return a / scale


def fake_quantize_activations_backward(x: ArrayLike, dv: ArrayLike) -> tuple[Float]:
    """Straight-through gradient: dv float [..., C] becomes (dx [..., C],).

    Raises:
        As :func:`quantize_activations`; ShapeError: dv has not the shape of x.
    """
    return (as_upstream("dv", dv, fake_quantize_activations(x).shape).copy(),)


def round_activations(x: Float, activation_bits: object) -> Float:
    """What a bit_linear multiplies: x itself for None, :func:`fake_quantize_activations` for 8.

    Raises:
        ParameterError: other bits. ShapeError: nothing to take a maximum over.
    """
    if activation_bits is None:
        return x
    if isinstance(activation_bits, bool) or activation_bits != 8:
        raise ParameterError(f"activation_bits is {activation_bits!r}: expected 8 or None")
    return fake_quantize_activations(x)
