"""Cayley-Dickson linear layer in strict arithmetic (SPEC.md, *cayley_dickson* and *Strict arithmetic*).

    a, r = quantise(x)                                            one r per token over all D*K features
    Y_i  = (f32(sum_j S[i, j] A_j codes_{i xor j}^T) * r) * beta

x [..., D*K], codes int8 [D, N, K], beta [N], y [..., D*N]. All D^2 block products are one integer GEMM of the D rows of
every token against the D*N rows of the codes, as they lie in memory: nothing is expanded. Signs come in afterwards.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from walsh.algebra import DIMENSIONS, cayley_dickson_signs
from walsh.errors import ShapeError
from walsh.kernels.torch._check import require_features, require_shape, require_ternary
from walsh.kernels.torch.integer import integer_mm
from walsh.kernels.torch.strict._arithmetic import quantise
from walsh.kernels.torch.strict._check import require_dtype, require_float32

_TILE = 1 << 24
"""Most int32 block products held at once: 64 MiB."""


@cache
def _table(dimension: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """For each j: the components i xor j over i, and the signs S[i, j] as int32 [D, 1]."""
    signs = torch.tensor(cayley_dickson_signs(dimension), dtype=torch.int32, device=device)
    components = torch.arange(dimension, device=device)
    return [components ^ j for j in range(dimension)], [signs[:, j, None] for j in range(dimension)]


def signed_product(a: Tensor, w: Tensor, largest: int = 128) -> Tensor:
    """The exact product of components: a int8 [M, D, K], w int8 [D, N, K] up to largest, result int32 [M, D, N]."""
    tokens, dimension, k = a.shape
    n = w.shape[1]
    partners, signs = _table(dimension, a.device)
    rows = w.reshape(dimension * n, k)
    step = max(_TILE // (dimension * dimension * max(n, 1)), 1)
    tiles = []
    for start in range(0, max(tokens, 1), step):
        tile = a[start : start + step]
        blocks = integer_mm(tile.reshape(-1, k), rows, largest).reshape(tile.shape[0], dimension, dimension, n)
        total = blocks[:, 0, partners[0]] * signs[0]
        for j in range(1, dimension):
            total = total + blocks[:, j, partners[j]] * signs[j]
        tiles.append(total)
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def apply(x: Tensor, codes: Tensor, beta: Tensor) -> Tensor:
    """:func:`cayley_dickson_linear` of arguments that have been checked."""
    dimension, n, k = codes.shape
    a, r = quantise("x", x)
    sums = signed_product(a.reshape(math.prod(x.shape[:-1]), dimension, k), codes, largest=1)
    y = (sums.to(torch.float32) * r.reshape(-1, 1, 1)) * beta
    return y.reshape(*x.shape[:-1], dimension * n)


def cayley_dickson_linear(x: Tensor, codes: Tensor, beta: Tensor) -> Tensor:
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
    require_float32(x=x, beta=beta)
    require_dtype("codes", codes, torch.int8)
    require_shape("codes", codes, (None, None, None), "[D, N, K]")
    dimension, n, k = codes.shape
    if dimension not in DIMENSIONS.values():
        raise ShapeError(f"codes have {dimension} components: expected one of {sorted(DIMENSIONS.values())}")
    require_features("x", x, dimension * k, "D*K")
    require_shape("beta", beta, (n,), "[N]")
    require_ternary("codes", codes)
    return apply(x, codes, beta)
