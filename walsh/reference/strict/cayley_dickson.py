"""Cayley-Dickson linear layer in strict arithmetic (SPEC.md, *cayley_dickson* and *Strict arithmetic*).

    a, r = quantise(x)                                            one r per token over all D*K features
    Y_i  = (f32(sum_j S[i, j] A_j codes_{i xor j}^T) * r) * beta

x [..., D*K], codes int8 [D, N, K], beta [N], y [..., D*N]. The sum is an integer, hence the same in any order.
"""

from __future__ import annotations

import numpy as np

from walsh.algebra import DIMENSIONS, cayley_dickson_signs
from walsh.errors import ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import Float32, integer_product, quantise
from walsh.reference.strict._check import Array


def signed_product(a: Array, w: Array) -> Array:
    """The exact product of components: a [..., D, K], w [D, K, N], result float64 integers [..., D, N]."""
    dimension = w.shape[0]
    signs = cayley_dickson_signs(dimension)
    rows = []
    for i in range(dimension):
        terms = [float(signs[i, j]) * integer_product(a[..., [j], :], w[i ^ j]) for j in range(dimension)]
        rows.append(sum(terms))
    return np.concatenate(rows, axis=-2)


@np.errstate(over="ignore", invalid="ignore")
def cayley_dickson_linear(x: Array, codes: Array, beta: Array) -> Float32:
    """The linear layer on int8 activations and ternary codes.

    Args:
        x: float32 [..., D*K], component-major.
        codes: int8 [D, N, K] in {-1, 0, 1}.
        beta: float32 [N].

    Returns:
        float32 [..., D*N].

    Raises:
        DTypeError, ShapeError, ParameterError (a code outside {-1, 0, 1}), NonFiniteError (x).
    """
    x, beta = _check.typed("x", x, "float32"), _check.typed("beta", beta, "float32")
    codes = _check.shaped("codes", _check.typed("codes", codes, "int8"), (None, None, None), "[D, N, K]")
    dimension, n, k = codes.shape
    if dimension not in DIMENSIONS.values():
        raise ShapeError(f"codes have {dimension} components: expected one of {sorted(DIMENSIONS.values())}")
    _check.featured("x", x, dimension * k, "D*K")
    _check.shaped("beta", beta, (n,), "[N]")
    _check.ternary("codes", codes)
    a, r = quantise("x", x)
    lead = x.shape[:-1]
    sums = signed_product(a.reshape(*lead, dimension, k), codes.transpose(0, 2, 1))
    y = (sums.astype(np.float32) * r[..., None]) * beta
    return y.reshape(*lead, dimension * n)
