"""The linear layers, mixers, norm, gate and rotation of strict arithmetic (SPEC.md, section *strict arithmetic*).

    cayley_dickson_linear   ((f32(sum) * r)) * beta
    hadamard_transform      butterflies * c_n
    hadamard_linear         ((f32(sum) * r) * c_n) * beta,  sum after integer butterflies
    head_mixer              ((f32(sum) * r) [* c_n]) * scale, then * beta
    rms_norm, swiglu, rope  as the ordinary ones, every step pinned

These are the ordinary kernels with fused multiply-add off and pinned sums: one source for both arithmetics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from walsh.algebra import DIMENSIONS
from walsh.errors import ParameterError, ShapeError
from walsh.kernels.triton._check import require_features, require_range, require_shape
from walsh.kernels.triton._launch import require_device, synchronous
from walsh.kernels.triton.activations import quantize
from walsh.kernels.triton.cayley_dickson import integer_linear as cayley_dickson_integer
from walsh.kernels.triton.hadamard import hadamard_quantize, transform
from walsh.kernels.triton.hadamard import integer_linear as hadamard_integer
from walsh.kernels.triton.rms_norm import WIDEST_ROW, normalize
from walsh.kernels.triton.rope import rope_table, rotate
from walsh.kernels.triton.strict._arithmetic import LARGEST_ANGLE, require_angles
from walsh.kernels.triton.strict._check import (
    as_integers,
    require_dtype,
    require_finite_rows,
    require_float32,
    require_last_axis,
)
from walsh.kernels.triton.swiglu import gated
from walsh.kernels.triton.ternary_packing import require_codes
from walsh.reference.strict.head_mixer import require_group


def quantise(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and r of checked x; NonFiniteError, with the name, for NaN or infinity."""
    a, r = quantize(x, False, True)
    require_finite_rows(name, r)
    return a, r


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round every token to int8.

    Args:
        x: float32 [..., C].

    Returns:
        a int8 [..., C] and r float32 [..., 1]; the value represented is a * r.

    Raises:
        DTypeError: x is not float32. ShapeError: C is 0. NonFiniteError: NaN or infinity. BackendError: no machine.
    """
    require_float32(x=x)
    require_last_axis("x", x, "C")
    return quantise("x", x)


def apply_cayley_dickson(x: Tensor, codes: Tensor, beta: Tensor) -> Tensor:
    """:func:`cayley_dickson_linear` of checked arguments: two launches."""
    result: Tensor = cayley_dickson_integer(*_first(quantise("x", x), codes, beta))
    return result


def _first(
    quantised: tuple[Tensor, Tensor], codes: Tensor, factors: Tensor, full_range: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool, bool]:
    """Arguments of the integer product: codes, weights, factors, r, times r rather than divided by a scale."""
    a, r = quantised
    return a, codes, factors, r, True, full_range


def cayley_dickson_linear(x: Tensor, codes: Tensor, beta: Tensor) -> Tensor:
    """The linear layer on int8 activations and ternary codes.

    Args:
        x: float32 [..., D*K], component-major.
        codes: int8 [D, N, K] in {-1, 0, 1}.
        beta: float32 [N].

    Returns:
        float32 [..., D*N].

    Raises:
        DTypeError, ShapeError, ParameterError (a code outside {-1, 0, 1}), NonFiniteError (x), BackendError.
    """
    require_float32(x=x, beta=beta)
    require_dtype("codes", codes, torch.int8)
    require_shape("codes", codes, (None, None, None), "[D, N, K]")
    dimension, n, k = codes.shape
    if dimension not in DIMENSIONS.values():
        raise ShapeError(f"codes have {dimension} components: expected one of {sorted(DIMENSIONS.values())}")
    require_features("x", x, dimension * k, "D*K")
    require_last_axis("x", x, "D*K")
    require_shape("beta", beta, (n,), "[N]")
    require_codes(codes, k)
    return apply_cayley_dickson(x, codes, beta)


def hadamard_transform(x: Tensor) -> Tensor:
    """The orthonormal transform along the last axis.

    Args:
        x: float32 [..., n], n a power of two.

    Returns:
        float32 [..., n].

    Raises:
        DTypeError: x is not float32. ShapeError: n is not a power of two. BackendError: no machine for Triton.
    """
    require_float32(x=x)
    require_last_axis("x", x, "n")
    _require_power_of_two(x.shape[-1])
    result: Tensor = transform(x, True, True)
    return result


def _require_power_of_two(n: int) -> None:
    if n < 1 or n & (n - 1):
        raise ShapeError(f"transform size {n}: expected a power of two; pad the axis or choose another size")


def apply_hadamard(x: Tensor, codes: Tensor, alpha: Tensor | None, factors: Tensor, name: str) -> Tensor:
    """:func:`hadamard_linear` of checked arguments, with factors [F, n, N] in turn: two launches."""
    a, r = hadamard_quantize(x, alpha, codes.shape[0], True)
    require_finite_rows(name, r)
    result: Tensor = hadamard_integer(a, r, codes, factors)
    return result


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
        DTypeError, ShapeError, ParameterError (a code outside {-1, 0, 1}), NonFiniteError (x, or v by overflow),
        BackendError.
    """
    require_float32(x=x, alpha=alpha, beta=beta)
    require_dtype("codes", codes, torch.int8)
    require_shape("codes", codes, (None, None, None), "[n, N, K]")
    size, n, k = codes.shape
    _require_power_of_two(size)
    require_features("x", x, size * k, "n*K")
    require_last_axis("x", x, "n*K")
    require_shape("alpha", alpha, (size, k), "[n, K]")
    require_shape("beta", beta, (size, n), "[n, N]")
    require_codes(codes, k)
    return apply_hadamard(x, codes, alpha, beta, "x, after alpha and the transform,")


def head_mixer(x: Tensor, codes: Tensor, scale: Tensor, beta: Tensor, algebra: str = "octonion") -> Tensor:
    """Mix the heads of each group.

    Args:
        x: float32 [..., H, d].
        codes: int8 [n, d, d], applied as x @ codes.
        scale: float32 [d], worth of one code in each output column.
        beta: float32 [d].
        algebra: ``complex``, ``quaternion``, ``octonion``, ``sedenion`` or ``hadamard``.

    Returns:
        float32 [..., H, d].

    Raises:
        DTypeError, ShapeError, ParameterError, NonFiniteError (x), BackendError.
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
    grouped, columns = x.reshape(*x.shape[:-2], heads // n, n * d), codes.transpose(1, 2)
    factors = torch.stack([scale, beta])
    if algebra == "hadamard":
        wide = factors[:, None, :].expand(2, n, d)
        mixed = apply_hadamard(grouped, columns, None, wide, "x, after the transform,")
    else:
        mixed = cayley_dickson_integer(*_first(quantise("x", grouped), columns, factors, True))
    return mixed.reshape(x.shape)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """(x * (1 / sqrt(hsum(x * x) / f32(C) + 1e-6))) * weight.

    Args:
        x: float32 [..., C], C from 1 to 65,536.
        weight: float32 [C].

    Returns:
        float32 [..., C].

    Raises:
        DTypeError, ShapeError, ParameterError (too many features), BackendError.
    """
    require_float32(x=x, weight=weight)
    require_last_axis("x", x, "C")
    require_shape("weight", weight, (x.shape[-1],), "[C]")
    if x.shape[-1] > WIDEST_ROW:
        raise ParameterError(f"x has {x.shape[-1]} features: expected at most {WIDEST_ROW}; use the backend 'torch'")
    result: Tensor = normalize(x, weight, 1e-6, True)
    return result


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """(gate / (1 + exp(-gate))) * up.

    Args:
        gate, up: float32 [...] of one shape.

    Returns:
        float32 [...].

    Raises:
        DTypeError, ShapeError, BackendError.
    """
    require_float32(gate=gate, up=up)
    require_shape("up", up, tuple(gate.shape), "the shape of gate")
    result: Tensor = gated(gate, up, True)
    return result


def rope(x: Tensor, inv_freq: Tensor, positions: Tensor) -> Tensor:
    """Rotate every pair of features by its angle.

    Args:
        x: float32 [..., T, H, d], d even.
        inv_freq: float64 [d/2].
        positions: integers [T] or [..., T], not negative.

    Returns:
        float32 [..., T, H, d].

    Raises:
        DTypeError, ShapeError; RangeError: a negative position, or an angle above 1e5. BackendError.
    """
    require_float32(x=x)
    require_dtype("inv_freq", inv_freq, torch.float64)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., T, H, d] with d even")
    require_shape("inv_freq", inv_freq, (x.shape[-1] // 2,), "[d/2]")
    positions = as_integers("positions", positions, x.device)
    if positions.shape not in ((x.shape[-3],), x.shape[:-2]):
        raise ShapeError(f"positions have shape {list(positions.shape)}: expected [T] or [..., T] of x {list(x.shape)}")
    require_device(x, inv_freq, positions)
    require_range("positions", positions, 0, 1 << 62, "use max(position, 0) for padding")
    if positions.numel() and inv_freq.numel() and synchronous(positions):
        # Products of the extremes bound all others, whatever their signs.
        ends = torch.stack(torch.aminmax(positions)).to(torch.float64)
        require_angles(ends[:, None] * torch.stack(torch.aminmax(inv_freq))[None])
    cos, sin = rope_table(positions, inv_freq, torch.float32, True)
    result: Tensor = rotate(x, cos, sin, False, True)
    return result


__all__ = [
    "LARGEST_ANGLE",
    "apply_cayley_dickson",
    "apply_hadamard",
    "cayley_dickson_linear",
    "hadamard_linear",
    "hadamard_transform",
    "head_mixer",
    "quantise",
    "quantize_activations",
    "rms_norm",
    "rope",
    "swiglu",
]
