"""The hyper-complex linear layer, D = 1, 2, 4, 8, 16 (SPEC.md, section *cayley_dickson*).

    Y_i  = beta * sum_j S[i, j] X_j W_{i xor j}^T                      x [..., D*K], w [D, N, K], beta [N], y [..., D*N]
    dX_j = sum_i S[i, j] (beta * dY_i) W_{i xor j}
    dW_k = sum_i S[i, i xor k] (beta * dY_i)^T X_{i xor k}

Source: the doubling (a, b)(c, d) = (a c - d* b, d a + b c*) of Cayley and Dickson, see ``walsh.algebra``; as a layer:
Gaudet and Maida, *Deep Quaternion Networks* (arXiv 1712.04604), with the weights on the right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from walsh.algebra import DIMENSIONS, cayley_dickson_signs
from walsh.errors import DTypeError, ParameterError, ShapeError
from walsh.reference._check import (
    Array,
    Float,
    as_array,
    as_float,
    as_optional,
    as_upstream,
    ieee,
    is_float,
    rows,
)
from walsh.reference.activations import round_activations
from walsh.reference.ternary import as_blocks, require_rule, straight_through, ternary_ste


def product(x: Array, w: Array) -> Array:
    """``z_i = sum_j S[i, j] x_j w_{i xor j}^T``: x [m, D, K], w [D, N, K] of one dtype, z [m, D, N]."""
    dimension, n, _ = w.shape
    signs = cayley_dickson_signs(dimension)
    z = np.zeros((x.shape[0], dimension, n), dtype=x.dtype)
    for i in range(dimension):
        for j in range(dimension):
            z[:, i] += signs[i, j] * (x[:, j] @ w[i ^ j].T)
    return z


def product_backward(x: Float, w: Float, dz: Float) -> tuple[Float, Float]:
    """Gradients of :func:`product`: dz [m, D, N] becomes dx [m, D, K] and dw [D, N, K]."""
    dimension = w.shape[0]
    signs = cayley_dickson_signs(dimension)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(dimension):
        for j in range(dimension):
            dx[:, j] += signs[i, j] * (dz[:, i] @ w[i ^ j])
            dw[i ^ j] += signs[i, j] * (dz[:, i].T @ x[:, j])
    return dx, dw


def _check(x: ArrayLike, w: ArrayLike, beta: ArrayLike | None) -> tuple[Array, Array, Float | None]:
    """Validate; x as [m, D, K] in float64 or int8, w as [D, N, K] in float64 or int8."""
    x, w = as_array("x", x), as_array("w", w)
    if x.dtype != np.int8:
        x = as_float("x", x)
    if w.ndim != 3 or w.shape[0] not in DIMENSIONS.values():
        raise ShapeError(f"w has shape {list(w.shape)}: expected [D, N, K] with D one of 1, 2, 4, 8, 16")
    dimension = w.shape[0]
    if x.ndim == 0 or x.shape[-1] % dimension:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., D*K] with D = {dimension}, the blocks of w")
    k = x.shape[-1] // dimension
    blocks = as_blocks(w, k, "[D, N, K], D*K being the features of x,")
    beta = as_optional("beta", beta, (w.shape[1],), "[N]")
    return x.reshape(rows(x.shape[:-1]), dimension, k), blocks, beta


@ieee
def cayley_dickson_linear(
    x: ArrayLike, w: ArrayLike, beta: ArrayLike | None = None, x_scale: ArrayLike | None = None
) -> Array:
    """Hyper-complex product of features with a matrix of weights on the right.

    Args:
        x: float [..., D*K], or int8 codes.
        w: float [D, N, K], int8 codes, or uint8 [D, N, ceil(K/4)] of ``pack_ternary``; not float for int8 x.
        beta: float [N] or None.
        x_scale: float [..., 1] for int8 x: the scale of ``quantize_activations``.

    Returns:
        y float64 [..., D*N]. For int8 x the exact int32 sum, or float32 ``(sum / x_scale) * beta`` if either is given.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: codes outside {-1, 0, 1}; x_scale with float
        x. FormatError: damaged packed weights.
    """
    blocks, weights, beta = _check(x, w, beta)
    dimension, n, _ = weights.shape
    leading = np.shape(x)[:-1]
    if blocks.dtype != np.int8:
        if x_scale is not None:
            raise ParameterError("x_scale is given with float x: expected int8 codes of x, or no x_scale")
        y = product(blocks, weights.astype(np.float64))
        return (y if beta is None else y * beta).reshape(*leading, dimension * n)
    if weights.dtype != np.int8:
        raise DTypeError("x is int8 and w is float: expected int8 or packed uint8 w; make it with `ternary`")
    scale = as_optional("x_scale", x_scale, (*leading, 1), "[..., 1], one scale per token of x,")
    total = product(blocks.astype(np.int64), weights.astype(np.int64)).astype(np.int32)
    if scale is None and beta is None:
        return total.reshape(*leading, dimension * n)
    result = total.astype(np.float32)
    if scale is not None:
        result = result / scale.astype(np.float32).reshape(len(blocks), 1, 1)
    if beta is not None:
        result = result * beta.astype(np.float32)
    return result.reshape(*leading, dimension * n)


@ieee
def cayley_dickson_linear_backward(
    x: ArrayLike, w: ArrayLike, beta: ArrayLike | None, x_scale: ArrayLike | None, dy: ArrayLike
) -> tuple[Float, Float | None, Float | None]:
    """Gradients (dx [..., D*K], dw [D, N, K], dbeta [N]) from dy float [..., D*N].

    dw is None for integer w, dbeta for absent beta; dbeta is summed over tokens and components.

    Raises:
        As :func:`cayley_dickson_linear`; DTypeError: x is int8, which has no gradient.
    """
    if x_scale is not None:
        raise ParameterError("x_scale is given: expected None, because gradients are those of float x")
    blocks, weights, beta = _check(x, w, beta)
    if blocks.dtype == np.int8:
        raise DTypeError("x is int8: expected a float dtype, because codes have no gradient")
    dimension, n, _ = weights.shape
    upstream = as_upstream("dy", dy, (*np.shape(x)[:-1], dimension * n)).reshape(len(blocks), dimension, n)
    values = weights.astype(np.float64)
    dz = upstream if beta is None else upstream * beta
    dx, dw = product_backward(blocks, values, dz)
    dbeta = None if beta is None else (upstream * product(blocks, values)).sum(axis=(0, 1))
    return dx.reshape(np.shape(x)), (None if weights.dtype == np.int8 else dw), dbeta


def _round(
    x: ArrayLike, w: ArrayLike, activation_bits: object, rule: str, ste_clip: float | None
) -> tuple[Float, Array]:
    """The v and q of the bit_linear: rounded activations, and codes in float64 if w is float."""
    require_rule(rule, ste_clip)
    w = as_array("w", w)
    return round_activations(as_float("x", x), activation_bits), ternary_ste(w, rule) if is_float(w) else w


def cayley_dickson_bit_linear(
    x: ArrayLike,
    w: ArrayLike,
    beta: ArrayLike | None = None,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
) -> Float:
    """The layer that trains: ``cayley_dickson_linear(v, q, beta)`` with v of x rounded per token and q = ternary(w).

    Args:
        x: float [..., D*K].
        w: float [D, N, K], rounded here; int8 codes or packed uint8 are used as they are.
        beta: float [N] or None.
        activation_bits: 8, or None to leave activations alone.
        rule, ste_clip: as in ``ternary_ste``.

    Returns:
        y float64 [..., D*N].

    Raises:
        As :func:`cayley_dickson_linear`; NonFiniteError: NaN or infinity in w; ParameterError: other bits or rule.
    """
    _check(as_float("x", x), w, beta)
    v, q = _round(x, w, activation_bits, rule, ste_clip)
    return cayley_dickson_linear(v, q, beta)


def cayley_dickson_bit_linear_backward(
    x: ArrayLike,
    w: ArrayLike,
    beta: ArrayLike | None,
    dy: ArrayLike,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
) -> tuple[Float, Float | None, Float | None]:
    """Straight-through gradients (dx, dw, dbeta): those of the plain layer at (v, q), dw where ``abs(w) <= ste_clip``.

    Raises:
        As :func:`cayley_dickson_bit_linear`; ShapeError: dy has not the shape of y.
    """
    _check(as_float("x", x), w, beta)
    v, q = _round(x, w, activation_bits, rule, ste_clip)
    dx, dq, dbeta = cayley_dickson_linear_backward(v, q, beta, None, dy)
    return dx, None if dq is None else straight_through(dq, as_float("w", w), ste_clip), dbeta
