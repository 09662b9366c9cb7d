"""Gated linear unit in strict arithmetic (SPEC.md, *swiglu* and *Strict arithmetic*).

h = (gate / (1 + exp(-gate))) * up
"""

from __future__ import annotations

import numpy as np

from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import ONE, Float32, exp
from walsh.reference.strict._check import Array


@np.errstate(over="ignore", invalid="ignore")
def swiglu(gate: Array, up: Array) -> Float32:
    """silu(gate) * up.

    Args:
        gate, up: float32 [...], of one shape.

    Returns:
        float32 [...].

    Raises:
        DTypeError: if one is not float32.
        ShapeError: if the shapes differ.
    """
    gate, up = _check.typed("gate", gate, "float32"), _check.typed("up", up, "float32")
    _check.shaped("up", up, gate.shape, "the shape of gate")
    return np.asarray((gate / (ONE + exp(-gate))) * up)
