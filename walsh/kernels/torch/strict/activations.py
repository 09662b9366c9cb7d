"""The int8 quantiser of strict arithmetic (SPEC.md, *Strict arithmetic*).

    m = max(absmax(x), 1e-5),   s = 127 / m,   a = clip(rint(x s), -128, 127),   r = 1 / s      per row of x [..., C]

The reciprocal r is what a dot product of codes is multiplied by; the ordinary quantiser returns s instead.
"""

from __future__ import annotations

from torch import Tensor

from walsh.kernels.torch.strict._arithmetic import quantise


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round every token to int8.

    Args:
        x: float32 [..., C].

    Returns:
        (a int8 [..., C], r float32 [..., 1]).

    Raises:
        DTypeError: if x is not float32.
        ShapeError: if C is 0.
        NonFiniteError: if x holds NaN or infinity.
    """
    return quantise("x", x)
