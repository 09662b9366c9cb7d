"""Hadamard transform and linear layer in strict arithmetic (SPEC.md, *hadamard* and *Strict arithmetic*).

    transform(x) = butterflies(x) * c_n,   strides 1, 2, 4, ..., (a + b, a - b),   c_n = f32(1 / sqrt(n))
    u = alpha * x;  v = transform of u across the n blocks;  a, r = quantise(v)        one r per token
    Y_g = ((f32(sum_h H[g, h] A_h codes_h^T) * r) * c_n) * beta_g

x [..., n*K], codes int8 [n, N, K], alpha [n, K], beta [n, N], y [..., n*N]. The second transform runs on integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from walsh.algebra import is_power_of_two
from walsh.errors import ShapeError
from walsh.kernels.torch._check import require_features, require_shape, require_ternary
from walsh.kernels.torch.integer import integer_bmm
from walsh.kernels.torch.strict._arithmetic import quantise, reciprocal_root
from walsh.kernels.torch.strict._check import require_dtype, require_float32, require_last_axis


def butterflies(x: Tensor) -> Tensor:
    """The unscaled transform along axis -2: x [..., n, K], float32 or int32, same shape."""
    n, shape = x.shape[-2], x.shape
    stride = 1
    while stride < n:
        a, b = x.reshape(*shape[:-2], n // (2 * stride), 2, stride, shape[-1]).unbind(-3)
        x = torch.stack([a + b, a - b], dim=-3).reshape(shape)
        stride *= 2
    return x


def require_transform_size(n: int) -> None:
    """Raise ShapeError unless n is a power of two."""
    if not is_power_of_two(n):
        raise ShapeError(f"transform size {n}: expected a power of two; pad the axis or choose another size")


def hadamard_transform(x: Tensor) -> Tensor:
    """The orthonormal transform along the last axis.

    Args:
        x: float32 [..., n], n a power of two.

    Returns:
        float32 [..., n].

    Raises:
        DTypeError: if x is not float32.
        ShapeError: if n is not a power of two.
    """
    require_float32(x=x)
    require_last_axis("x", x, "n")
    require_transform_size(x.shape[-1])
    return butterflies(x[..., None])[..., 0] * reciprocal_root(x.shape[-1])


def apply(x: Tensor, codes: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """:func:`hadamard_linear` of arguments that have been checked."""
    size, n, k = codes.shape
    tokens, c_n = math.prod(x.shape[:-1]), reciprocal_root(size)
    v = butterflies(alpha * x.reshape(tokens, size, k)) * c_n
    a, r = quantise("x, after alpha and the transform,", v.reshape(tokens, size * k))
    products = integer_bmm(a.reshape(tokens, size, k).transpose(0, 1), codes, largest=1)  # [n, tokens, N]
    sums = butterflies(products.transpose(0, 1))
    y = ((sums.to(torch.float32) * r[..., None]) * c_n) * beta
    return y.reshape(*x.shape[:-1], size * n)


def hadamard_linear(x: Tensor, codes: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
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
    require_float32(x=x, alpha=alpha, beta=beta)
    require_dtype("codes", codes, torch.int8)
    require_shape("codes", codes, (None, None, None), "[n, N, K]")
    size, n, k = codes.shape
    require_transform_size(size)
    require_features("x", x, size * k, "n*K")
    require_shape("alpha", alpha, (size, k), "[n, K]")
    require_shape("beta", beta, (size, n), "[n, N]")
    require_ternary("codes", codes)
    return apply(x, codes, alpha, beta)
