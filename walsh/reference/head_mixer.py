"""Hyper-complex mixing of attention heads (SPEC.md, section *head_mixer*).

    y_i = beta * sum_j S[i, j] x_j W_{i xor j}               x [..., H, d] in groups of n heads, w [n, d, d], beta [d]
    y   = beta * H z,  z_g = (H x)_g W_g                     algebra "hadamard", H orthonormal across the group

The linear layers of the same algebras with heads as components, except that W is applied as x @ W, not transposed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from walsh.algebra import DIMENSIONS, is_power_of_two
from walsh.errors import ParameterError, ShapeError
from walsh.reference._check import Float, as_float, as_optional, as_upstream, ieee, require_axes, require_shape, rows
from walsh.reference.cayley_dickson import product, product_backward
from walsh.reference.hadamard import across

ALGEBRAS = ("complex", "quaternion", "octonion", "sedenion", "hadamard")


def _check(x: ArrayLike, w: ArrayLike, beta: ArrayLike | None, algebra: str) -> tuple[Float, Float, Float]:
    """Validate; x as groups [m, n, d], w, and beta with 1 for an absent one."""
    if algebra not in ALGEBRAS:
        raise ParameterError(f"algebra {algebra!r}: expected one of {', '.join(ALGEBRAS)}")
    x, w = as_float("x", x), as_float("w", w)
    require_axes("x", x, 2, "[..., H, d]")
    heads, d = x.shape[-2:]
    require_shape("w", w, (DIMENSIONS.get(algebra), d, d), f"[n, d, d] for algebra {algebra!r} and the d of x")
    n = w.shape[0]
    if not is_power_of_two(n):
        raise ShapeError(f"w has shape {list(w.shape)}: expected [n, d, d] with n a power of two")
    if heads % n:
        raise ShapeError(f"x has {heads} heads, shape {list(x.shape)}: expected a multiple of n = {n}, the blocks of w")
    beta = as_optional("beta", beta, (d,), "[d]")
    return x.reshape(rows(x.shape[:-2]) * (heads // n), n, d), w, np.ones(d) if beta is None else beta


def _mix(x: Float, w: Float, algebra: str) -> Float:
    """The mixer on groups [m, n, d], before beta."""
    if algebra == "hadamard":
        return across(np.einsum("mgi,gio->mgo", across(x), w))
    return product(x, w.transpose(0, 2, 1))


@ieee
def head_mixer(x: ArrayLike, w: ArrayLike, beta: ArrayLike | None = None, algebra: str = "octonion") -> Float:
    """Mix the heads of each group by one hyper-complex product.

    Args:
        x: float [..., H, d]; group g is heads g*n to g*n + n - 1.
        w: float [n, d, d], n the dimension of the algebra, any power of two for ``hadamard``.
        beta: float [d] or None.
        algebra: ``complex``, ``quaternion``, ``octonion``, ``sedenion`` or ``hadamard``.

    Returns:
        y float64 [..., H, d].

    Raises:
        ParameterError: another algebra. ShapeError: shapes that do not fit, H not a multiple of n.
        DTypeError: not float.
    """
    groups, weights, scale = _check(x, w, beta, algebra)
    return (scale * _mix(groups, weights, algebra)).reshape(np.shape(x))


@ieee
def head_mixer_backward(
    x: ArrayLike, w: ArrayLike, beta: ArrayLike | None, dy: ArrayLike, algebra: str = "octonion"
) -> tuple[Float, Float, Float | None]:
    """Gradients (dx [..., H, d], dw [n, d, d], dbeta [d]) from dy float [..., H, d]; dbeta is None for absent beta.

    Raises:
        As :func:`head_mixer`; ShapeError: dy has not the shape of x.
    """
    groups, weights, scale = _check(x, w, beta, algebra)
    upstream = as_upstream("dy", dy, np.shape(x)).reshape(groups.shape)
    if algebra == "hadamard":
        dz = across(scale * upstream)
        dx = across(np.einsum("mgo,gio->mgi", dz, weights))
        dw = np.einsum("mgi,mgo->gio", across(groups), dz)
    else:
        dx, transposed = product_backward(groups, weights.transpose(0, 2, 1), scale * upstream)
        dw = transposed.transpose(0, 2, 1)
    dbeta = None if beta is None else (upstream * _mix(groups, weights, algebra)).sum(axis=(0, 1))
    return dx.reshape(np.shape(x)), dw, dbeta
