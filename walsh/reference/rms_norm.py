"""Root-mean-square normalisation (SPEC.md, section *rms_norm*).

    rms = sqrt(mean(x^2) + eps);   xhat = x / rms;   y = xhat * weight                       x [..., C], weight [C]
    g = dy * weight;   dx = (g - xhat * mean(g * xhat)) / rms;   dweight = sum over tokens of dy * xhat

Source: Zhang and Sennrich, *Root Mean Square Layer Normalization* (arXiv 1910.07467).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from walsh.reference._check import (
    Float,
    as_float,
    as_upstream,
    ieee,
    require_axes,
    require_number,
    require_shape,
    rows,
)


def _check(x: ArrayLike, weight: ArrayLike, eps: float) -> tuple[Float, Float, Float]:
    """Validate; x, weight and rms [..., 1]."""
    eps = require_number("eps", eps, 0.0)
    x, weight = as_float("x", x), as_float("weight", weight)
    require_axes("x", x, 1, "[..., C]")
    require_shape("weight", weight, (x.shape[-1],), "[C]")
    # Not np.mean, which warns where C is 0.
    return x, weight, np.sqrt((x * x).sum(axis=-1, keepdims=True) / max(x.shape[-1], 1) + eps)


@ieee
def rms_norm(x: ArrayLike, weight: ArrayLike, eps: float = 1e-6) -> Float:
    """Divide each token by its root mean square, then scale each feature.

    Args:
        x: float [..., C].
        weight: float [C].
        eps: added to the mean square, at least 0.

    Returns:
        y float64 [..., C].

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: eps is negative or not finite.
    """
    x, weight, rms = _check(x, weight, eps)
    return x / rms * weight


@ieee
def rms_norm_backward(x: ArrayLike, weight: ArrayLike, dy: ArrayLike, eps: float = 1e-6) -> tuple[Float, Float]:
    """Gradients (dx [..., C], dweight [C]) from dy float [..., C].

    Raises:
        As :func:`rms_norm`; ShapeError: dy has not the shape of x.
    """
    x, weight, rms = _check(x, weight, eps)
    dy = as_upstream("dy", dy, x.shape)
    xhat, g = x / rms, dy * weight
    mean = (g * xhat).sum(axis=-1, keepdims=True) / max(x.shape[-1], 1)
    return (g - xhat * mean) / rms, (dy * xhat).reshape(rows(x.shape[:-1]), x.shape[-1]).sum(axis=0)
