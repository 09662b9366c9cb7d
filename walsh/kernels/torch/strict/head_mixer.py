"""Head mixer in strict arithmetic (SPEC.md, *head_mixer* and *Strict arithmetic*).

Heads are mixed in groups of n by int8 weights with one scale per output column; each token and group has one r:

    Cayley-Dickson   y_i = ((f32(sum_j S[i, j] A_j codes_{i xor j}) * r) * scale) * beta
    Hadamard         y_g = (((f32(sum_h H[g, h] A_h codes_h) * r) * c_n) * scale) * beta,   A from transform(x) * c_n

x [..., H, d], codes int8 [n, d, d] applied as x @ codes, scale [d], beta [d], y like x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.torch._check import require_shape
from walsh.kernels.torch.integer import integer_bmm
from walsh.kernels.torch.strict._arithmetic import quantise, reciprocal_root
from walsh.kernels.torch.strict._check import require_dtype, require_float32, require_last_axis
from walsh.kernels.torch.strict.cayley_dickson import signed_product
from walsh.kernels.torch.strict.hadamard import butterflies
from walsh.reference.strict.head_mixer import require_group


def head_mixer(x: Tensor, codes: Tensor, scale: Tensor, beta: Tensor, algebra: str = "octonion") -> Tensor:
    """Mix the heads of each group.

    Args:
        x: float32 [..., H, d].
        codes: int8 [n, d, d].
        scale: float32 [d], worth of one code in each output column.
        beta: float32 [d].
        algebra: "complex", "quaternion", "octonion", "sedenion" or "hadamard".

    Returns:
        float32 [..., H, d].

    Raises:
        DTypeError, ShapeError, ParameterError, NonFiniteError (x).
    """
    require_float32(x=x, scale=scale, beta=beta)
    require_dtype("codes", codes, torch.int8)
    require_last_axis("x", x, "d")
    if x.ndim < 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., H, d]")
    heads, d = x.shape[-2:]
    require_shape("codes", codes, (None, d, d), "[n, d, d]")
    require_shape("scale", scale, (d,), "[d]")
    require_shape("beta", beta, (d,), "[d]")
    n = codes.shape[0]
    require_group(algebra, n, heads)
    groups = math.prod(x.shape[:-2]) * (heads // n)
    grouped, columns = x.reshape(groups, n, d), codes.transpose(1, 2)
    c_n = reciprocal_root(n)
    if algebra == "hadamard":
        a, r = quantise("x, after the transform,", (butterflies(grouped) * c_n).reshape(groups, n * d))
        products = integer_bmm(a.reshape(groups, n, d).transpose(0, 1), columns)  # [n, groups, d]
        worth = (butterflies(products.transpose(0, 1)).to(torch.float32) * r[..., None]) * c_n
    else:
        a, r = quantise("x", grouped.reshape(groups, n * d))
        worth = signed_product(a.reshape(groups, n, d), columns).to(torch.float32) * r[..., None]
    return ((worth * scale) * beta).reshape(x.shape)
