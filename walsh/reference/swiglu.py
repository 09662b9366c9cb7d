"""Gated activation of the feed-forward (SPEC.md, section *swiglu*).

    h = silu(gate) * up,   silu(x) = x / (1 + exp(-x))                                       gate, up, h of one shape
    dgate = dh * up * (sigma + silu * (1 - sigma)),   dup = dh * silu,   sigma = 1 / (1 + exp(-gate))

Source: Shazeer, *GLU Variants Improve Transformer* (arXiv 2002.05202).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from walsh.reference._check import Float, as_float, as_upstream, ieee, require_integer, require_shape


def _sigmoid(x: Float) -> Float:
    """1 / (1 + exp(-x)) from exp(-abs(x)), which cannot overflow: exact to rounding at both ends."""
    e: Float = np.exp(-np.abs(x))
    result: Float = np.where(x >= 0, 1.0, e) / (1 + e)
    return result


def _silu(x: Float) -> Float:
    """``x * sigmoid(x)``; at -infinity its limit, which is -0 as it is for any very negative x."""
    return np.where(np.isneginf(x), -0.0, x * _sigmoid(x))


def _check(gate: ArrayLike, up: ArrayLike) -> tuple[Float, Float]:
    gate, up = as_float("gate", gate), as_float("up", up)
    require_shape("up", up, gate.shape, "the shape of gate")
    return gate, up


@ieee
def swiglu(gate: ArrayLike, up: ArrayLike) -> Float:
    """``silu(gate) * up``.

    Args:
        gate, up: float, of one shape.

    Returns:
        h float64 of that shape.

    Raises:
        ShapeError: the shapes differ. DTypeError: not float.
    """
    gate, up = _check(gate, up)
    return np.asarray(_silu(gate) * up)


@ieee
def swiglu_backward(gate: ArrayLike, up: ArrayLike, dh: ArrayLike) -> tuple[Float, Float]:
    """Gradients (dgate, dup) from dh float of the same shape.

    Raises:
        As :func:`swiglu`; ShapeError: dh has another shape.
    """
    gate, up = _check(gate, up)
    dh = as_upstream("dh", dh, gate.shape)
    # The limits 1 and 0 at infinity: the second falls out of _silu, the first would be infinity * 0.
    slope = np.where(np.isposinf(gate), 1.0, _sigmoid(gate) + _silu(gate) * _sigmoid(-gate))
    return np.asarray(dh * up * slope), np.asarray(dh * _silu(gate))


def swiglu_hidden(c: int, multiple: int) -> int:
    """Width of the feed-forward: int(8 c / 3) rounded up to a multiple.

    Args:
        c: features, at least 1.
        multiple: the algebra's dimension, at least 1.

    Raises:
        ParameterError: not an integer of at least 1.
    """
    c, multiple = require_integer("c", c, 1), require_integer("multiple", multiple, 1)
    return -(-(8 * c // 3) // multiple) * multiple
