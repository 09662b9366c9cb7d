"""Mixing of attention heads by an algebra (SPEC.md, section *head_mixer*).

    y_i = beta * sum_j S[i, j] x_j W_{i xor j}                 Cayley-Dickson, groups of n = D heads of d features
    y   = beta * H z,  z_g = (H x)_g W_g                       Hadamard, groups of n heads

A group of n heads of d features is a feature axis of n*d in component-major order, and x @ W is a product with W^T: a
head mixer *is* the linear layer of its algebra on [..., H/n, n*d], so it runs in that layer's one launch, beta
included.
"""

from torch import Tensor

from walsh.algebra import DIMENSIONS, is_power_of_two
from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import require_float, require_optional, require_shape
from walsh.kernels.triton.cayley_dickson import cayley_dickson_linear
from walsh.kernels.triton.hadamard import hadamard_linear


def check_mixer(x: Tensor, w: Tensor, beta: Tensor | None, algebra: str) -> tuple[int, int]:
    """Validate shapes and dtypes of x and beta and the shape of w; return n and d."""
    names = [*(name for name in DIMENSIONS if name != "dense"), "hadamard"]
    if algebra not in names:
        raise ParameterError(f"algebra {algebra!r}: expected one of {', '.join(names)}")
    require_float("x", x)
    if x.ndim < 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., H, d]")
    heads, d = x.shape[-2:]
    if w.ndim != 3:
        raise ShapeError(f"w has shape {list(w.shape)}: expected [n, d, d]")
    n = w.shape[0]
    if algebra == "hadamard":
        if not is_power_of_two(n):
            raise ShapeError(f"w has shape {list(w.shape)}: expected [n, d, d] with n a power of two")
    elif n != DIMENSIONS[algebra]:
        raise ShapeError(
            f"w has shape {list(w.shape)}: expected n = {DIMENSIONS[algebra]}, the dimension of {algebra!r}"
        )
    require_shape("w", w, (n, d, d), "[n, d, d]")
    if heads % n:
        raise ShapeError(f"x has {heads} heads: expected a multiple of n = {n}, the size of a group")
    require_optional("beta", beta, (d,), "[d]")
    return n, d


def head_mixer(x: Tensor, w: Tensor, beta: Tensor | None = None, algebra: str = "octonion") -> Tensor:
    """Mix each group of n heads.

    Args:
        x: float [..., H, d], H a multiple of n.
        w: float [n, d, d], applied as x @ w.
        beta: float [d] or None.
        algebra: ``complex``, ``quaternion``, ``octonion``, ``sedenion`` or ``hadamard``.

    Returns:
        y [..., H, d] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: another algebra. BackendError: no machine.
    """
    n, d = check_mixer(x, w, beta, algebra)
    require_float("w", w)
    groups = x.reshape(*x.shape[:-2], x.shape[-2] // n, n * d)
    if algebra == "hadamard":
        wide = None if beta is None else beta.expand(n, d)
        mixed = hadamard_linear(groups, w.transpose(1, 2), None, wide)
    else:
        mixed = cayley_dickson_linear(groups, w.transpose(1, 2), beta)
    return mixed.reshape(x.shape)


__all__ = ["check_mixer", "head_mixer"]
