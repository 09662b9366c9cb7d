"""Hadamard transform and linear layer in strict arithmetic (SPEC.md, *hadamard* and *Strict arithmetic*).

    transform(x) = butterflies(x) * c_n,   strides 1, 2, 4, ..., (a + b, a - b),   c_n = f32(1 / sqrt(n))
    u = alpha * x;  v = transform of u across the n blocks;  a, r = quantise(v)        one r per token
    Y_g = ((f32(sum_h H[g, h] A_h codes_h^T) * r) * c_n) * beta_g

x [..., n*K], codes int8 [n, N, K], alpha [n, K], beta [n, N], y [..., n*N]. The second transform runs on integers.
"""

from __future__ import annotations

import numpy as np

from walsh.algebra import is_power_of_two
from walsh.errors import ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Float32, integer_product, quantise, reciprocal_root
from walsh.reference.strict._check import Array


def butterflies(x: Array) -> Array:
    """The unscaled transform along axis -2: x [..., n, K], any dtype, same shape."""
    n = x.shape[-2]
    stride = 1
    while stride < n:
        pairs = x.reshape(*x.shape[:-2], n // (2 * stride), 2, stride, x.shape[-1])
        a, b = pairs[..., 0, :, :], pairs[..., 1, :, :]
        x = np.stack([a + b, a - b], axis=-3).reshape(x.shape)
        stride *= 2
    return x


def require_transform_size(n: int) -> None:
    """Raise ShapeError unless n is a power of two."""
    if not is_power_of_two(n):
        raise ShapeError(f"transform size {n}: expected a power of two; pad the axis or choose another size")


@np.errstate(over="ignore", invalid="ignore")
def hadamard_transform(x: Array) -> Float32:
    """The orthonormal transform along the last axis.

    Args:
        x: float32 [..., n], n a power of two.

    Returns:
        float32 [..., n].

    Raises:
        DTypeError: if x is not float32.
        ShapeError: if n is not a power of two.
    """
    x = _check.featured("x", _check.typed("x", x, "float32"), None, "n")
    require_transform_size(x.shape[-1])
    y: Float32 = butterflies(x[..., None])[..., 0] * reciprocal_root(x.shape[-1])
    return y


@np.errstate(over="ignore", invalid="ignore")
def hadamard_linear(x: Array, codes: Array, alpha: Array, beta: Array) -> Float32:
    """The linear layer on int8 activations and ternary codes.

    Args:
        x: float32 [..., n*K], component-major.
        codes: int8 [n, N, K] in {-1, 0, 1}.
        alpha: float32 [n, K].
        beta: float32 [n, N].

    Returns:
        float32 [..., n*N].

    Raises:
        DTypeError, ShapeError, ParameterError (a code outside {-1, 0, 1}), NonFiniteError (x, or v by overflow).
    """
    x = _check.typed("x", x, "float32")
    alpha, beta = _check.typed("alpha", alpha, "float32"), _check.typed("beta", beta, "float32")
    codes = _check.shaped("codes", _check.typed("codes", codes, "int8"), (None, None, None), "[n, N, K]")
    size, n, k = codes.shape
    require_transform_size(size)
    _check.featured("x", x, size * k, "n*K")
    _check.shaped("alpha", alpha, (size, k), "[n, K]")
    _check.shaped("beta", beta, (size, n), "[n, N]")
    _check.ternary("codes", codes)
    lead, c_n = x.shape[:-1], reciprocal_root(size)
    v = butterflies(alpha * x.reshape(*lead, size, k)) * c_n
    a, r = quantise("x, after alpha and the transform,", v.reshape(*lead, size * k))
    products = integer_product(a.reshape(*lead, size, 1, k), codes.transpose(0, 2, 1))
    sums = butterflies(products[..., 0, :])
    y = ((sums.astype(np.float32) * r[..., None]) * c_n) * beta
    return y.reshape(*lead, size * n)
