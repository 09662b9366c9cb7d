"""Gated linear unit in strict arithmetic (SPEC.md, *swiglu* and *Strict arithmetic*).

h = (gate / (1 + exp(-gate))) * up
"""

from __future__ import annotations

from torch import Tensor

from walsh.kernels.torch._check import require_shape
from walsh.kernels.torch.strict._arithmetic import divide, exp
from walsh.kernels.torch.strict._check import require_float32


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate, up: float32 [...], of one shape.

    Returns:
        float32 [...].

    Raises:
        DTypeError: if one is not float32.
        ShapeError: if the shapes differ.
    """
    require_float32(gate=gate, up=up)
    require_shape("up", up, tuple(gate.shape), "the shape of gate")
    return divide(gate, exp(-gate) + 1.0) * up
