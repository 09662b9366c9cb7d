# ruff: noqa: ARG001
# A fake implementation, and a gradient's setup, take every argument of their operation.
"""The Hadamard linear layer (SPEC.md, section *hadamard*).

    u = alpha * x;  v = H u;  z_g = v_g w_g^T;  Y = beta * H z             x [..., n*K], w [n, N, K], Y [..., n*N]

The transform runs across the n blocks, whole blocks at a time, and the n small products are one batched GEMM. The
layer's integer sums are in float32 wherever it holds them exactly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from walsh.algebra import is_power_of_two
from walsh.errors import ParameterError, ShapeError
from walsh.kernels._operation import Operation
from walsh.kernels.torch._check import (
    accumulate_dtype,
    require_float,
    require_optional,
    require_shape,
    require_weight,
    rows,
)
from walsh.kernels.torch.activations import dequantize, quantize_activations
from walsh.kernels.torch.hadamard_transform import orthonormal, transform
from walsh.kernels.torch.integer import whole_bmm
from walsh.kernels.torch.ternary import as_codes, check_ternary, clip_gradient, ternary, weight_shape


def _check(x: Tensor, w: Tensor, alpha: Tensor | None, beta: Tensor | None) -> None:
    require_float("x", x)
    require_weight("w", w)
    if w.ndim != 3 or not is_power_of_two(w.shape[0]):
        raise ShapeError(f"w has shape {list(w.shape)}: expected [n, N, K] with n a power of two")
    n = w.shape[0]
    if x.ndim == 0 or x.shape[-1] % n:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n*K] with n = {n}, from w {list(w.shape)}")
    k = x.shape[-1] // n
    require_shape(
        "w", w, weight_shape(w, k), f"[n, N, K] with n*K = {x.shape[-1]}, the features of x, K four to a byte"
    )
    require_optional("alpha", alpha, (n, k), "[n, K]")
    require_optional("beta", beta, (n, w.shape[1]), "[n, N]")


def _compute(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    bits: int | None,
    rule: str | None,
    ste_clip: float | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The layer with or without rounding of weights and activations: y, then what the backward takes from here.

    That is v [M, n, K] or its codes, the scales of these [M, 1], the codes of w [n, N, K], and with ``keep`` the result
    before beta [M, n, N], for beta's gradient; each is empty where there is none. To ``torch.compile`` and
    ``torch.export`` the layer is one node; ``_fake`` tells them its shapes.
    """
    work = accumulate_dtype(x, w, alpha, beta)
    n, width = w.shape[0], w.shape[1]
    m, k = rows(x), x.shape[-1] // n
    u = x.reshape(m, n, k).to(work)
    v = orthonormal(u if alpha is None else u * alpha.to(work), 1)
    q = w if rule is None else ternary(w, rule)[0]
    scale = x.new_empty(0, dtype=accumulate_dtype(x))
    if bits is None:
        z = v.new_empty(n, m, width)
        torch.bmm(v.transpose(0, 1), q.to(work).transpose(1, 2), out=z)
        h = orthonormal(z, 0).transpose(0, 1)
        v = v.clone() if n == 1 else v  # an operation never returns the memory of an argument
    else:
        v, scale = quantize_activations(v.view(m, n * k))
        v = v.view(m, n, k)
        # Integer products and their integer transform: exact, whatever the order of summation. Where a float product
        # has made them and holds their sums too, they stay in it.
        total = whole_bmm(v.transpose(0, 1), q, largest=1, terms=n)
        h = transform(total, 0).transpose(0, 1).to(scale.dtype).div_(scale[:, :, None]).mul_(1 / math.sqrt(n))
    y = (h if beta is None else h * beta.to(work)).reshape(*x.shape[:-1], n * width).to(x.dtype, copy=keep)
    codes = w.new_empty(0, dtype=torch.int8) if rule is None else q
    return y, v.contiguous(), scale, codes, h.contiguous() if keep else h.new_empty(0)


def _fake(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    bits: int | None,
    rule: str | None,
    ste_clip: float | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    work, scale_work = accumulate_dtype(x, w, alpha, beta), accumulate_dtype(x)
    n, width = w.shape[0], w.shape[1]
    m, k = rows(x), x.shape[-1] // n
    return (
        x.new_empty(*x.shape[:-1], n * width),
        x.new_empty(m, n, k, dtype=work if bits is None else torch.int8),
        x.new_empty(0 if bits is None else (m, 1), dtype=scale_work),
        w.new_empty(0 if rule is None else w.shape, dtype=torch.int8),
        x.new_empty((m, n, width) if keep else 0, dtype=work),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save v, not u, x being there anyway."""
    x, w, alpha, beta, bits, rule, ctx.ste_clip, keep = inputs
    _, v, scale, codes, h = output
    ctx.save_for_backward(
        x,
        w if ctx.ste_clip is not None else None,
        alpha,
        beta,
        v,
        None if bits is None else scale,
        w if rule is None else codes,
        h if keep else None,
    )
    ctx.weight_dtype = w.dtype


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, w, alpha, beta, v, scale, q, h = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    dx, dw, dalpha, dbeta = _gradients(dy, x, alpha, beta, v, scale, q, h, *needs)
    return (
        dx if needs[0] else None,
        clip_gradient(dw, w, ctx.ste_clip).to(ctx.weight_dtype) if needs[1] else None,
        dalpha if needs[2] else None,
        dbeta if needs[3] else None,
        None,
        None,
        None,
        None,
    )


def _compute_gradients(
    dy: Tensor,
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    v: Tensor,
    scale: Tensor | None,
    q: Tensor,
    h: Tensor | None,
    need_x: bool,
    need_w: bool,
    need_alpha: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the shapes of x, w, alpha and beta, empty where they are not needed."""
    work = accumulate_dtype(x, q, alpha, beta)
    n, width = q.shape[0], q.shape[1]
    m, k = rows(x), x.shape[-1] // n
    dx, dw, dalpha, dbeta = _fake_gradients(dy, x, alpha, beta, v, scale, q, h, need_x, need_w, need_alpha, need_beta)
    dh = dy.reshape(m, n, width).to(work)
    if need_beta and beta is not None and h is not None:
        dbeta = (dh * h).sum(dim=0).to(beta.dtype)
    if beta is not None:
        dh = dh * beta.to(work)
    dz = orthonormal(dh, 1).transpose(0, 1)
    if need_w:
        value = v if scale is None else dequantize(v, scale[:, :, None])
        dw = torch.bmm(dz.transpose(1, 2), value.transpose(0, 1))
    if need_x or need_alpha:
        du = orthonormal(torch.bmm(dz, q.to(work)), 0).transpose(0, 1)
        if need_alpha and alpha is not None:
            dalpha = (du * x.reshape(m, n, k)).sum(dim=0).to(alpha.dtype)
        if need_x:
            dx = (du if alpha is None else du * alpha.to(work)).reshape(x.shape).to(x.dtype)
    return dx, dw, dalpha, dbeta


def _fake_gradients(
    dy: Tensor,
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    v: Tensor,
    scale: Tensor | None,
    q: Tensor,
    h: Tensor | None,
    need_x: bool,
    need_w: bool,
    need_alpha: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    work = accumulate_dtype(x, q, alpha, beta)
    nothing = x.new_empty(0)
    return (
        x.new_empty(x.shape) if need_x else nothing,
        q.new_empty(q.shape if need_w else 0, dtype=work),
        nothing.clone() if alpha is None or not need_alpha else alpha.new_empty(alpha.shape),
        nothing.clone() if beta is None or not need_beta else beta.new_empty(beta.shape),
    )


_linear = Operation("walsh_torch", "hadamard", _compute, _fake)
_gradients = Operation("walsh_torch", "hadamard_gradients", _compute_gradients, _fake_gradients)
_linear.differentiate(_differentiate, _keep)


def _apply(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    bits: int | None,
    rule: str | None,
    ste_clip: float | None,
) -> Tensor:
    keep = beta is not None and beta.requires_grad and torch.is_grad_enabled()
    y: Tensor = _linear(x, w, alpha, beta, bits, rule, ste_clip, keep)[0]
    return y


def hadamard_linear(x: Tensor, w: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """Block-diagonal product between two orthonormal transforms across n blocks.

    Args:
        x: float [..., n*K].
        w: float [n, N, K], int8 codes, or uint8 [n, N, ceil(K / 4)] as ``pack_ternary`` makes it.
        alpha: float [n, K] on the input, or None.
        beta: float [n, N] on the output, or None.

    Returns:
        y [..., n*N] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: codes outside {-1, 0, 1}.
        FormatError: damaged packed weights.
    """
    _check(x, w, alpha, beta)
    if not w.is_floating_point():
        w = as_codes(w, x.shape[-1] // w.shape[0])
    return _apply(x, w, alpha, beta, None, None, None)


def hadamard_bit_linear(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    activation_bits: int | None = 8,
    rule: str = "absmean",
    ste_clip: float | None = None,
) -> Tensor:
    """The Hadamard layer that trains: ternary weights, and int8 activations after the first transform.

    Args:
        x, w, alpha, beta: as in :func:`hadamard_linear`; integer w is used as it is.
        activation_bits: 8, or None to leave activations alone.
        rule, ste_clip: as in ``ternary_ste``.

    Returns:
        y [..., n*N] in the dtype of x. Backward is straight-through; dw is taken at the rounded activations.

    Raises:
        As :func:`hadamard_linear`; NonFiniteError: NaN or infinity in w; ParameterError: other bits, another rule.
    """
    _check(x, w, alpha, beta)
    if activation_bits not in (8, None):
        raise ParameterError(f"activation_bits is {activation_bits!r}: expected 8 or None")
    if w.is_floating_point():
        check_ternary(w, rule, ste_clip)
    else:
        w, rule, ste_clip = as_codes(w, x.shape[-1] // w.shape[0]), "", None
    return _apply(x, w, alpha, beta, activation_bits, rule or None, ste_clip)
