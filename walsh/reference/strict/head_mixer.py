"""Head mixer in strict arithmetic (SPEC.md, *head_mixer* and *Strict arithmetic*).

Heads are mixed in groups of n by int8 weights with one scale per output column; each token and group has one r:

    Cayley-Dickson   y_i = ((f32(sum_j S[i, j] A_j codes_{i xor j}) * r) * scale) * beta
    Hadamard         y_g = (((f32(sum_h H[g, h] A_h codes_h) * r) * c_n) * scale) * beta,   A from transform(x) * c_n

x [..., H, d], codes int8 [n, d, d] applied as x @ codes, scale [d], beta [d], y like x.
"""

from __future__ import annotations

import numpy as np

from walsh.algebra import DIMENSIONS
from walsh.errors import ParameterError, ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Float32, integer_product, quantise, reciprocal_root
from walsh.reference.strict._check import Array
from walsh.reference.strict.cayley_dickson import signed_product
from walsh.reference.strict.hadamard import butterflies, require_transform_size

MIXING_ALGEBRAS = ("complex", "quaternion", "octonion", "sedenion", "hadamard")


def require_group(algebra: str, n: int, heads: int) -> None:
    """Raise unless the algebra can mix ``heads`` heads in groups of n.

    Raises:
        ParameterError: for an unknown algebra.
        ShapeError: if n is not its dimension (Hadamard: a power of two), or heads is no multiple of n.
    """
    if algebra not in MIXING_ALGEBRAS:
        raise ParameterError(f"algebra {algebra!r}: expected one of {', '.join(MIXING_ALGEBRAS)}")
    if algebra == "hadamard":
        require_transform_size(n)
    elif n != DIMENSIONS[algebra]:
        raise ShapeError(f"codes have {n} components: {algebra} has {DIMENSIONS[algebra]}")
    if heads % n:
        raise ShapeError(f"{heads} heads: expected a multiple of the group size {n}")


@np.errstate(over="ignore", invalid="ignore")
def head_mixer(x: Array, codes: Array, scale: Array, beta: Array, algebra: str = "octonion") -> Float32:
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
    x = _check.featured("x", _check.typed("x", x, "float32"), None, "d")
    scale, beta = _check.typed("scale", scale, "float32"), _check.typed("beta", beta, "float32")
    if x.ndim < 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., H, d]")
    heads, d = x.shape[-2:]
    codes = _check.shaped("codes", _check.typed("codes", codes, "int8"), (None, d, d), "[n, d, d]")
    _check.shaped("scale", scale, (d,), "[d]")
    _check.shaped("beta", beta, (d,), "[d]")
    n = codes.shape[0]
    require_group(algebra, n, heads)
    grouped = (*x.shape[:-2], heads // n, n, d)
    rows = (*grouped[:-2], n * d)
    c_n = reciprocal_root(n)
    if algebra == "hadamard":
        a, r = quantise("x, after the transform,", (butterflies(x.reshape(grouped)) * c_n).reshape(rows))
        products = integer_product(a.reshape(*grouped[:-1], 1, d), codes)
        worth = (butterflies(products[..., 0, :]).astype(np.float32) * r[..., None]) * c_n
    else:
        a, r = quantise("x", x.reshape(rows))
        worth = signed_product(a.reshape(grouped), codes).astype(np.float32) * r[..., None]
    y: Float32 = ((worth * scale) * beta).reshape(x.shape)
    return y
