"""RMS normalisation in strict arithmetic (SPEC.md, *rms_norm* and *Strict arithmetic*).

y = (x * (1 / sqrt(hsum(x * x) / f32(C) + 1e-6))) * weight        x [..., C], weight [C]
"""

from __future__ import annotations

import numpy as np

from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import ONE, Float32, hsum
from walsh.reference.strict._check import Array


@np.errstate(over="ignore", invalid="ignore")
def rms_norm(x: Array, weight: Array) -> Float32:
    """Normalise every token.

    Args:
        x: float32 [..., C].
        weight: float32 [C].

    Returns:
        float32 [..., C].

    Raises:
        DTypeError: if one is not float32.
        ShapeError: if C is 0 or differs.
    """
    x = _check.featured("x", _check.typed("x", x, "float32"), None, "C")
    weight = _check.shaped("weight", _check.typed("weight", weight, "float32"), (x.shape[-1],), "[C]")
    mean = hsum(x * x) / np.float32(x.shape[-1])
    inverse = ONE / np.sqrt(mean + np.float32(1e-6))
    y: Float32 = (x * inverse[..., None]) * weight
    return y
