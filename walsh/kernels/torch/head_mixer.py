"""Mixing of attention heads by a hyper-complex product (SPEC.md, section *head_mixer*).

    y_i = beta * sum_j S[i, j] x_j W_{i xor j}          "complex", "quaternion", "octonion", "sedenion"
    y   = beta * H z,  z_g = (H x)_g W_g                "hadamard"                 x [..., H, d], w [n, d, d], beta [d]

Heads are mixed in groups of n. A group of n heads of d features is a row of n*d component-major features, so a mixer is
the linear layer of the same algebra on [..., H/n, n*d], its blocks transposed since W stands to the right of rows here.
"""

from __future__ import annotations

from torch import Tensor

from walsh.algebra import DIMENSIONS, is_power_of_two
from walsh.errors import ParameterError, ShapeError
from walsh.kernels.torch._check import require_float, require_optional, require_shape
from walsh.kernels.torch.cayley_dickson import cayley_dickson_linear
from walsh.kernels.torch.hadamard import hadamard_linear

ALGEBRAS = ("complex", "quaternion", "octonion", "sedenion", "hadamard")


def _check(x: Tensor, w: Tensor, beta: Tensor | None, algebra: str) -> None:
    if algebra not in ALGEBRAS:
        raise ParameterError(f"algebra {algebra!r}: expected one of {', '.join(ALGEBRAS)}")
    require_float("x", x)
    require_float("w", w)
    if x.ndim < 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., H, d]")
    heads, d = x.shape[-2:]
    require_shape("w", w, (None, d, d), "[n, d, d] with d the last axis of x")
    n = w.shape[0]
    if algebra == "hadamard":
        if not is_power_of_two(n):
            raise ShapeError(f"w has {n} blocks: expected a power of two for algebra 'hadamard'")
    elif n != DIMENSIONS[algebra]:
        raise ShapeError(f"w has {n} blocks: expected {DIMENSIONS[algebra]}, the dimension of algebra {algebra!r}")
    if heads % n:
        raise ShapeError(
            f"x has {heads} heads: expected a multiple of {n}, the blocks of w; heads mix in groups of {n}"
        )
    require_optional("beta", beta, (d,), "[d]")


def head_mixer(x: Tensor, w: Tensor, beta: Tensor | None = None, algebra: str = "octonion") -> Tensor:
    """Mix heads in groups of n with one full-precision mixer for all groups.

    Args:
        x: float [..., H, d].
        w: float [n, d, d], applied as x @ W.
        beta: float [d] or None.
        algebra: ``complex``, ``quaternion``, ``octonion``, ``sedenion`` or ``hadamard``.

    Returns:
        y [..., H, d] in the dtype of x.

    Raises:
        ShapeError: H is no multiple of n, or n is not the dimension. ParameterError: another algebra.
        DTypeError: an argument is not float.
    """
    _check(x, w, beta, algebra)
    heads, d = x.shape[-2:]
    n = w.shape[0]
    groups = x.reshape(*x.shape[:-2], heads // n, n * d)
    if algebra == "hadamard":
        y = hadamard_linear(groups, w.transpose(1, 2), None, None if beta is None else beta.expand(n, d))
    else:
        y = cayley_dickson_linear(groups, w.transpose(1, 2), beta)
    return y.reshape(x.shape)
