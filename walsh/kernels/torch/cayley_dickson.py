# ruff: noqa: ARG001
# A fake implementation, and a gradient's setup, take every argument of their operation.
"""The hyper-complex linear layer, D = 1, 2, 4, 8, 16 (SPEC.md, section *cayley_dickson*).

    Y_i = beta * sum_j S[i, j] X_j W_{i xor j}^T                     x [..., D*K], w [D, N, K], beta [N], y [..., D*N]

Forward and both gradients are signed xor convolutions ``z_a = sum_b A[a, b] p_b q_{a xor b}`` of matrix blocks, each
with its own sign table A (``walsh.algebra``). They are formed by one of four methods, see ``convolution.py``.

The gradient of beta needs no saved output: with G_k = sum_i S[i, i xor k] dY_i^T X_{i xor k}, which dW_k = beta * G_k
needs anyway, ``dbeta_n = sum_k G_k[n] . W_k[n]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from walsh.algebra import DIMENSIONS
from walsh.errors import DTypeError, ParameterError, ShapeError
from walsh.kernels._operation import Operation
from walsh.kernels.torch._check import (
    accumulate_dtype,
    require_float,
    require_optional,
    require_shape,
    require_tensor,
    require_weight,
    rows,
)
from walsh.kernels.torch.activations import dequantize, quantize_activations
from walsh.kernels.torch.convolution import METHODS, gradients, integer_product, product
from walsh.kernels.torch.ternary import as_codes, check_ternary, clip_gradient, ternary, weight_shape


def _check(x: Tensor, w: Tensor, beta: Tensor | None, method: str) -> int:
    """Validate and return K."""
    if method not in METHODS:
        raise ParameterError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    require_tensor("x", x)
    require_weight("w", w)
    if w.ndim != 3 or w.shape[0] not in DIMENSIONS.values():
        raise ShapeError(f"w has shape {list(w.shape)}: expected [D, N, K] with D one of 1, 2, 4, 8, 16")
    d = w.shape[0]
    if x.ndim == 0 or x.shape[-1] % d:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., D*K] with D = {d}, from w {list(w.shape)}")
    k = x.shape[-1] // d
    require_shape(
        "w", w, weight_shape(w, k), f"[D, N, K] with D*K = {x.shape[-1]}, the features of x, K four to a byte"
    )
    require_optional("beta", beta, (w.shape[1],), "[N]")
    return k


def _compute(
    x: Tensor, w: Tensor, beta: Tensor | None, bits: int | None, rule: str | None, ste_clip: float | None, method: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layer with or without rounding of weights and activations: y, then what the backward takes from here.

    That is the codes of x [M, D*K], their scales [M, 1] and the codes of w [D, N, K], each empty where nothing was
    rounded. To ``torch.compile`` and ``torch.export`` the layer is one node; ``_fake`` tells them its shapes.
    """
    work = accumulate_dtype(x, w, beta)
    d, m = w.shape[0], rows(x)
    codes, scale, q = _nothing(x, rule is None, w)
    if rule is not None:
        q = ternary(w, rule)[0]
    weight = w if rule is None else q
    if bits is None:
        y = product(x.reshape(m, d, w.shape[2]).to(work), weight.to(work), method)
    else:
        codes, scale = quantize_activations(x.reshape(m, x.shape[-1]))
        y = integer_product(codes, weight).to(scale.dtype).div_(scale.unsqueeze(-1))
    if beta is not None:
        y = y.mul_(beta.to(y.dtype))
    return y.reshape(*x.shape[:-1], d * w.shape[1]).to(x.dtype), codes, scale, q


def _nothing(x: Tensor, no_codes: bool, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and codes of w where nothing is rounded."""
    kind = torch.int8
    return (
        x.new_empty(0, dtype=kind),
        x.new_empty(0, dtype=accumulate_dtype(x)),
        w.new_empty(0 if no_codes else w.shape, dtype=kind),
    )


def _fake(
    x: Tensor, w: Tensor, beta: Tensor | None, bits: int | None, rule: str | None, ste_clip: float | None, method: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes, scale, q = _nothing(x, rule is None, w)
    if bits is not None:
        codes, scale = codes.new_empty(rows(x), x.shape[-1]), scale.new_empty(rows(x), 1)
    return x.new_empty(*x.shape[:-1], w.shape[0] * w.shape[1]), codes, scale, q


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save x or its codes and scales, a quarter of the bytes; w or its codes, both if gradients are clipped; beta."""
    x, w, beta, bits, rule, ctx.ste_clip, ctx.method = inputs
    _, codes, scale, q = output
    clipped = rule is not None and ctx.ste_clip is not None
    ctx.save_for_backward(
        x if bits is None else codes,
        None if bits is None else scale,
        w if rule is None else q,
        w if clipped else None,
        beta,
    )
    ctx.work, ctx.shape, ctx.dtypes = accumulate_dtype(x, w, beta), x.shape, (x.dtype, w.dtype)


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    kept, scale, q, w, beta = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    dx, dw, dbeta = _gradients(dy, kept, scale, q, beta, ctx.work, ctx.method, *needs)
    return (
        dx.reshape(ctx.shape).to(ctx.dtypes[0]) if needs[0] else None,
        clip_gradient(dw, w, ctx.ste_clip).to(ctx.dtypes[1]) if needs[1] else None,
        dbeta.to(beta.dtype) if needs[2] else None,
        None,
        None,
        None,
        None,
    )


def _compute_gradients(
    dy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    q: Tensor,
    beta: Tensor | None,
    work: torch.dtype,
    method: str,
    need_x: bool,
    need_w: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [M, D, K], [D, N, K] and [N] in ``work``, empty where they are not needed."""
    d, n, k = q.shape
    m = rows(dy)
    found = gradients(
        dy.reshape(m, d, n).to(work),
        (x if scale is None else dequantize(x, scale)).reshape(m, d, k).to(work),
        q.to(work),
        None if beta is None else beta.to(work),
        (need_x, need_w, need_beta),
        method,
    )
    dx, dw, dbeta = (dy.new_empty(0, dtype=work) if one is None else one.contiguous() for one in found)
    return dx, dw, dbeta


def _fake_gradients(
    dy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    q: Tensor,
    beta: Tensor | None,
    work: torch.dtype,
    method: str,
    need_x: bool,
    need_w: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    d, n, k = q.shape
    shapes = ((rows(dy), d, k) if need_x else (0,), (d, n, k) if need_w else (0,), (n,) if need_beta else (0,))
    dx, dw, dbeta = (dy.new_empty(shape, dtype=work) for shape in shapes)
    return dx, dw, dbeta


_linear = Operation("walsh_torch", "cayley_dickson", _compute, _fake)
_gradients = Operation("walsh_torch", "cayley_dickson_gradients", _compute_gradients, _fake_gradients)
_linear.differentiate(_differentiate, _keep)


def cayley_dickson_linear(
    x: Tensor,
    w: Tensor,
    beta: Tensor | None = None,
    x_scale: Tensor | None = None,
    *,
    method: str = "auto",
) -> Tensor:
    """Hyper-complex product of features with a matrix of weights on the right.

    Args:
        x: float [..., D*K], or int8 codes.
        w: float [D, N, K], int8 codes, or uint8 [D, N, ceil(K / 4)] as ``pack_ternary`` makes it; not float for int8 x.
        beta: float [N] or None.
        x_scale: float [..., 1] for int8 x: the scale of ``quantize_activations``.
        method: ``auto``, ``direct``, ``expanded`` or ``fast``: how a float product is formed (``convolution.py``).

    Returns:
        y [..., D*N] in the dtype of x. For int8 x the exact int32 sum, or ``(sum / x_scale) * beta`` in float32.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: codes outside {-1, 0, 1}, another method,
        x_scale with float x. FormatError: damaged packed weights.
    """
    k = _check(x, w, beta, method)
    if x.dtype == torch.int8:
        if w.is_floating_point():
            raise DTypeError(f"x is int8 and w is {w.dtype}: expected int8 or packed uint8 w; make it with `ternary`")
        return _integer_linear(x, as_codes(w, k), beta, x_scale)
    require_float("x", x)
    if x_scale is not None:
        raise ParameterError(f"x_scale is given and x is {x.dtype}: expected int8 codes with x_scale, or no x_scale")
    w = w if w.is_floating_point() else as_codes(w, k)
    result: Tensor = _linear(x, w, beta, None, None, None, method)[0]
    return result


def _integer_linear(x: Tensor, w: Tensor, beta: Tensor | None, x_scale: Tensor | None) -> Tensor:
    if x_scale is not None:
        require_float("x_scale", x_scale)
        require_shape("x_scale", x_scale, (*x.shape[:-1], 1), "[..., 1], one scale per row of x")
    total = integer_product(x.reshape(rows(x), x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[0] * w.shape[1])
    if x_scale is None and beta is None:
        return total
    y = total.to(torch.float32)
    if x_scale is not None:
        y = y / x_scale.to(torch.float32)
    if beta is not None:
        y = (y.view(*x.shape[:-1], *w.shape[:2]) * beta.to(torch.float32)).flatten(-2)
    return y


def cayley_dickson_bit_linear(
    x: Tensor,
    w: Tensor,
    beta: Tensor | None = None,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
    *,
    method: str = "auto",
) -> Tensor:
    """The hyper-complex layer that trains: ternary weights and int8 activations, straight-through gradients.

    Args:
        x: float [..., D*K].
        w: float [D, N, K], rounded here; int8 codes or packed uint8 are used as they are.
        beta: float [N] or None.
        activation_bits: 8, or None to leave activations alone.
        rule, ste_clip: as in ``ternary_ste``.
        method: as in :func:`cayley_dickson_linear`, for the float products; the integer one is always exact.

    Returns:
        y [..., D*N] in the dtype of x. A row of x with NaN or infinity gives a row of NaN with 8 bits.

    Raises:
        As :func:`cayley_dickson_linear`; NonFiniteError: NaN or infinity in w; ParameterError: other bits or rule.
    """
    require_float("x", x)
    k = _check(x, w, beta, method)
    if activation_bits not in (8, None):
        raise ParameterError(f"activation_bits is {activation_bits!r}: expected 8 or None")
    if activation_bits == 8 and x.shape[-1] == 0:
        raise ShapeError(f"x has shape {list(x.shape)}: expected D*K at least 1, to take a maximum over")
    floating = w.is_floating_point()
    if floating:
        check_ternary(w, rule, ste_clip)
    else:
        w = as_codes(w, k)
    rule_, clip = (rule, ste_clip) if floating else (None, None)
    result: Tensor = _linear(x, w, beta, activation_bits, rule_, clip, method)[0]
    return result
