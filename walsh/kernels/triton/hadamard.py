"""Walsh-Hadamard transform and the Hadamard linear layer (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                                            x [..., n]
    u = alpha * x;  v = H u;  z_g = v_g w_g^T;  Y = beta * H z             x [..., n*K], w [n, N, K], Y [..., n*N]

The layer is one launch forward, its activations in int8 one more before it, and three backward. Here its arguments are
checked; what is launched for them stands in ``hadamard_transforms``, ``hadamard_layer`` and ``hadamard_gradient``.
"""

from torch import Tensor

from walsh.algebra import is_power_of_two
from walsh.errors import ShapeError
from walsh.kernels.triton._check import (
    packed_width,
    require_bits,
    require_float,
    require_nonempty_row,
    require_optional,
    require_shape,
    require_weight,
)
from walsh.kernels.triton.hadamard_gradient import backward
from walsh.kernels.triton.hadamard_layer import hadamard_quantize, integer_linear, linear
from walsh.kernels.triton.hadamard_transforms import hadamard_transform, hadamard_transform_, transform
from walsh.kernels.triton.ternary import check_ternary, ternary_codes
from walsh.kernels.triton.ternary_packing import require_codes

__all__ = [
    "backward",
    "check_linear",
    "hadamard_bit_linear",
    "hadamard_linear",
    "hadamard_quantize",
    "hadamard_transform",
    "hadamard_transform_",
    "integer_linear",
    "linear",
    "transform",
]


def check_linear(x: Tensor, w: Tensor, alpha: Tensor | None, beta: Tensor | None) -> int:
    """Validate shapes and dtypes and return K."""
    require_float("x", x)
    require_weight("w", w)
    if w.ndim != 3 or not is_power_of_two(w.shape[0]):
        raise ShapeError(f"w has shape {list(w.shape)}: expected [n, N, K] with n a power of two")
    n = w.shape[0]
    if x.ndim == 0 or x.shape[-1] % n:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n*K] with n = {n}, from w {list(w.shape)}")
    k = x.shape[-1] // n
    letters = f"[n, N, K] with n*K = {x.shape[-1]}, the features of x, K four to a byte if packed"
    require_shape("w", w, (n, None, packed_width(w, k)), letters)
    require_optional("alpha", alpha, (n, k), "[n, K]")
    require_optional("beta", beta, (n, w.shape[1]), "[n, N]")
    return k


def hadamard_linear(x: Tensor, w: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """Transform across the n blocks, one small product per block, transform back.

    Args:
        x: float [..., n*K].
        w: float [n, N, K], int8 codes, or packed uint8 [n, N, ceil(K / 4)].
        alpha: float [n, K] or None.
        beta: float [n, N] or None.

    Returns:
        y [..., n*N] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: codes outside {-1, 0, 1}, more blocks than a
        GPU program can hold. FormatError: damaged packed weights. BackendError: no machine for Triton.
    """
    require_codes(w, check_linear(x, w, alpha, beta))
    result: Tensor = linear(x, w, alpha, beta, None, None, None, None)
    return result


def hadamard_bit_linear(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
) -> Tensor:
    """The Hadamard layer that trains: ternary w, and v (after alpha and the first transform) in int8.

    Args:
        x: float [..., n*K].
        w: float [n, N, K], rounded here; int8 codes or packed uint8 are used as they are.
        alpha: float [n, K] or None.
        beta: float [n, N] or None.
        activation_bits: 8, or None to leave activations alone.
        rule: as in ``ternary``.
        ste_clip: as in ``ternary_ste``.

    Returns:
        y [..., n*N] in the dtype of x. Backward is straight-through; dw is taken at the rounded activations.

    Raises:
        As :func:`hadamard_linear`; NonFiniteError: NaN or infinity in w; ParameterError: other bits, another rule.
    """
    k = check_linear(x, w, alpha, beta)
    require_bits(activation_bits)
    if activation_bits == 8:
        require_nonempty_row("x", x)
    codes_w = None
    if w.is_floating_point():
        check_ternary(w, rule)
        codes_w = ternary_codes(w, rule)[0]
    else:
        require_codes(w, k)
        ste_clip = None
    codes_x, scale = None, None
    if activation_bits is not None:
        codes_x, scale = hadamard_quantize(x.detach(), None if alpha is None else alpha.detach(), w.shape[0], False)
    result: Tensor = linear(x, w, alpha, beta, codes_x, scale, codes_w, ste_clip)
    return result
