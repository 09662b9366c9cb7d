"""RMS normalisation in strict arithmetic (SPEC.md, *rms_norm* and *Strict arithmetic*).

y = (x * (1 / sqrt(hsum(x * x) / f32(C) + 1e-6))) * weight        x [..., C], weight [C]
"""

from __future__ import annotations

import torch
from torch import Tensor

from walsh.kernels.torch._check import require_shape
from walsh.kernels.torch.strict._arithmetic import divide, hsum, root
from walsh.kernels.torch.strict._check import require_float32, require_last_axis


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
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
    require_float32(x=x, weight=weight)
    require_last_axis("x", x, "C")
    require_shape("weight", weight, (x.shape[-1],), "[C]")
    total = hsum(x * x)
    mean = divide(total, torch.full_like(total, x.shape[-1]))
    inverse = divide(1.0, root(mean + 1e-6))
    return (x * inverse[..., None]) * weight
