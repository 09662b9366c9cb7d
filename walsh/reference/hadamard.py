"""Walsh-Hadamard transform and the Hadamard linear layer (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                                          x [..., n], y [..., n]
    u = alpha * x;  v = H u;  z_g = v_g w_g^T;  Y = beta * H z     x [..., n*K], w [n, N, K], alpha [n, K], beta [n, N]

H is symmetric and orthonormal, so it is its own transpose and inverse: dz = H (beta * dY), dw_g = dz_g^T v_g,
dv_g = dz_g w_g, du = H dv, dalpha = du * x, dx = alpha * du, dbeta = dY * (H z), the last two sums over tokens.

Source: Sylvester (1867) for the order; Fino and Algazi, *Unified matrix treatment of the fast Walsh-Hadamard transform*
(1976), for the butterflies.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from walsh.algebra import is_power_of_two
from walsh.errors import ParameterError, ShapeError
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


def butterflies(x: Array) -> Array:
    """Unnormalised transform along the last axis, strides 1, 2, 4, ...; a new array of the dtype of x."""
    n, y, stride = x.shape[-1], x.copy(), 1
    while stride < n:
        pairs = y.reshape(*x.shape[:-1], n // (2 * stride), 2, stride)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        stride *= 2
    return y


def across(x: Float) -> Float:
    """Orthonormal transform across the blocks (axis -2) of x [..., n, K]."""
    return np.swapaxes(butterflies(np.swapaxes(x, -2, -1)) * (1 / math.sqrt(x.shape[-2])), -2, -1)


@ieee
def hadamard_transform(x: ArrayLike, normalize: bool = True) -> Array:
    """Walsh-Hadamard transform along the last axis, Sylvester order.

    Args:
        x: float [..., n], or integer with ``normalize=False``; n a power of two.
        normalize: divide by sqrt(n).

    Returns:
        y [..., n], float64; int32 for integer x.

    Raises:
        ShapeError: n is not a power of two. ParameterError: integer x with ``normalize=True``.
        DTypeError: neither float nor integer.
    """
    x = as_array("x", x)
    integer = x.dtype.kind in "iu"
    x = x.astype(np.int32) if integer else as_float("x", x)
    if x.ndim == 0 or not is_power_of_two(x.shape[-1]):
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n] with n a power of two; pad it")
    if integer and normalize:
        raise ParameterError("normalize is True for integer x: expected False, because only that stays exact")
    return butterflies(x) * (1 / math.sqrt(x.shape[-1])) if normalize else butterflies(x)


def hadamard_transform_backward(x: ArrayLike, dy: ArrayLike, normalize: bool = True) -> tuple[Float]:
    """The transform is its own transpose: dy float [..., n] becomes (dx [..., n],).

    Raises:
        As :func:`hadamard_transform`; ShapeError: dy has not the shape of x. DTypeError: x is integer.
    """
    shape = hadamard_transform(as_float("x", x), normalize).shape
    return (hadamard_transform(as_upstream("dy", dy, shape), normalize),)


def _check(
    x: ArrayLike, w: ArrayLike, alpha: ArrayLike | None, beta: ArrayLike | None
) -> tuple[Float, Array, Float, Float]:
    """Validate; x as [m, n, K], w as [n, N, K], alpha and beta with 1 for absent ones."""
    x, w = as_float("x", x), as_array("w", w)
    if w.ndim != 3 or not is_power_of_two(w.shape[0]):
        raise ShapeError(f"w has shape {list(w.shape)}: expected [n, N, K] with n a power of two")
    n = w.shape[0]
    if x.ndim == 0 or x.shape[-1] % n:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n*K] with n = {n}, the blocks of w")
    k = x.shape[-1] // n
    blocks = as_blocks(w, k, "[n, N, K], n*K being the features of x,")
    alpha = as_optional("alpha", alpha, (n, k), "[n, K]")
    beta = as_optional("beta", beta, (n, w.shape[1]), "[n, N]")
    ones = np.ones((1, 1))
    return (
        x.reshape(rows(x.shape[:-1]), n, k),
        blocks,
        ones if alpha is None else alpha,
        ones if beta is None else beta,
    )


def _second_half(v: Float, w: Array) -> Float:
    """``H z`` with ``z_g = v_g w_g^T``: v [m, n, K], w [n, N, K], result [m, n, N]."""
    return across(np.einsum("mgk,gnk->mgn", v, w.astype(np.float64)))


def _gradients(x: Float, v: Float, w: Array, alpha: Float, beta: Float, dy: Float) -> tuple[Float, Float, Float, Float]:
    """(dx, dw, dalpha, dbeta) in blocks; v is what w multiplied, rounded or not."""
    w = w.astype(np.float64)
    dz = across(beta * dy)
    du = across(np.einsum("mgn,gnk->mgk", dz, w))
    dw = np.einsum("mgn,mgk->gnk", dz, v)
    return alpha * du, dw, (du * x).sum(axis=0), (dy * _second_half(v, w)).sum(axis=0)


@ieee
def hadamard_linear(x: ArrayLike, w: ArrayLike, alpha: ArrayLike | None = None, beta: ArrayLike | None = None) -> Float:
    """Block-diagonal product between two orthonormal transforms across n blocks.

    Args:
        x: float [..., n*K].
        w: float [n, N, K], int8 codes, or uint8 [n, N, ceil(K/4)] of ``pack_ternary``.
        alpha: float [n, K] on the input, or None.
        beta: float [n, N] on the output, or None.

    Returns:
        y float64 [..., n*N].

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: codes outside {-1, 0, 1}.
        FormatError: damaged packed weights.
    """
    blocks, weights, alpha, beta = _check(x, w, alpha, beta)
    y = beta * _second_half(across(alpha * blocks), weights)
    return y.reshape(*np.shape(x)[:-1], weights.shape[0] * weights.shape[1])


def hadamard_linear_backward(
    x: ArrayLike, w: ArrayLike, alpha: ArrayLike | None, beta: ArrayLike | None, dy: ArrayLike
) -> tuple[Float, Float | None, Float | None, Float | None]:
    """Gradients (dx [..., n*K], dw [n, N, K], dalpha [n, K], dbeta [n, N]) from dy float [..., n*N].

    None for integer w and for what is absent.

    Raises:
        As :func:`hadamard_linear`; ShapeError: dy has not the shape of y.
    """
    return _backward(x, w, alpha, beta, dy, None, None, None)


@ieee
def _backward(
    x: ArrayLike,
    w: ArrayLike,
    alpha: ArrayLike | None,
    beta: ArrayLike | None,
    dy: ArrayLike,
    activation_bits: int | None,
    rule: str | None,
    ste_clip: float | None,
) -> tuple[Float, Float | None, Float | None, Float | None]:
    """Both backward functions; the plain layer is the one that rounds neither activations nor (rule None) weights."""
    blocks, weights, scale_in, scale_out = _check(x, w, alpha, beta)
    n, width, _ = weights.shape
    upstream = as_upstream("dy", dy, (*np.shape(x)[:-1], n * width)).reshape(len(blocks), n, width)
    v = _round(across(scale_in * blocks), activation_bits)
    floating = is_float(weights)
    q = ternary_ste(weights, rule) if floating and rule is not None else weights
    dx, dw, dalpha, dbeta = _gradients(blocks, v, q, scale_in, scale_out, upstream)
    return (
        dx.reshape(np.shape(x)),
        straight_through(dw, weights, ste_clip) if floating else None,
        None if alpha is None else dalpha,
        None if beta is None else dbeta,
    )


def _round(v: Float, activation_bits: int | None) -> Float:
    """Rounded v [m, n, K], one scale per token over all n*K features."""
    flat = v.reshape(v.shape[0], v.shape[1] * v.shape[2])
    return round_activations(flat, activation_bits).reshape(v.shape)


@ieee
def hadamard_bit_linear(
    x: ArrayLike,
    w: ArrayLike,
    alpha: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
) -> Float:
    """The Hadamard layer that trains: w through ``ternary``, v through ``quantize_activations``.

    Args:
        x, w, alpha, beta: as in :func:`hadamard_linear`; integer w is used as it is.
        activation_bits: 8, or None to leave activations alone.
        rule, ste_clip: as in ``ternary_ste``.

    Returns:
        y float64 [..., n*N].

    Raises:
        As :func:`hadamard_linear`; NonFiniteError: NaN or infinity in w; ParameterError: other bits or rule.
    """
    require_rule(rule, ste_clip)
    blocks, weights, alpha, beta = _check(x, w, alpha, beta)
    q = ternary_ste(weights, rule) if is_float(weights) else weights
    y = beta * _second_half(_round(across(alpha * blocks), activation_bits), q)
    return y.reshape(*np.shape(x)[:-1], q.shape[0] * q.shape[1])


def hadamard_bit_linear_backward(
    x: ArrayLike,
    w: ArrayLike,
    alpha: ArrayLike | None,
    beta: ArrayLike | None,
    dy: ArrayLike,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
) -> tuple[Float, Float | None, Float | None, Float | None]:
    """Straight-through gradients (dx, dw, dalpha, dbeta): those of the plain layer at the rounded v and w.

    Raises:
        As :func:`hadamard_bit_linear`; ShapeError: dy has not the shape of y.
    """
    require_rule(rule, ste_clip)
    return _backward(x, w, alpha, beta, dy, activation_bits, rule, ste_clip)
