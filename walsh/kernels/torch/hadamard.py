# ruff: noqa: ARG001
# A fake implementation, and a gradient's setup, take every argument of their operation.
"""Walsh-Hadamard transform and the Hadamard linear layer (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                                            x [..., n]
    u = alpha * x;  v = H u;  z_g = v_g w_g^T;  Y = beta * H z             x [..., n*K], w [n, N, K], Y [..., n*N]

The transform is a product with the Sylvester matrix of at most 64 rows, whose entries are 1 and -1; a longer one is a
product along the low bits of the index and the transform along the high bits, H_ab = H_a (x) H_b. That does more
additions than radix-2 butterflies, but passes over the data once instead of log2 n times, and data passes are what a
CPU waits for. Then one product with 1 / sqrt(n). Integers, and float64 in the order of the definition, are transformed
by butterflies (Fino and Algazi, *Unified matrix treatment of the fast Walsh-Hadamard transform*, 1976); the layer's
integer sums are in float32 wherever it holds them exactly. In the layer the transform runs across the n blocks, whole
blocks at a time, and the n small products are one batched GEMM.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from walsh.algebra import is_power_of_two, sylvester
from walsh.errors import ParameterError, ShapeError
from walsh.kernels._operation import Operation
from walsh.kernels.torch._check import (
    INTEGERS,
    accumulate_dtype,
    require_float,
    require_optional,
    require_shape,
    require_weight,
    rows,
)
from walsh.kernels.torch.activations import dequantize, quantize_activations
from walsh.kernels.torch.integer import exact_bmm
from walsh.kernels.torch.ternary import as_codes, check_ternary, clip_gradient, ternary, weight_shape

RADIX = 64
"""Longest transform that is one product; measured: at 32 four to ten times faster than butterflies on two cores."""

_MATRICES: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def _matrix(n: int, like: Tensor) -> Tensor:
    """H [n, n] in the dtype and on the device of ``like``; made once."""
    key = (n, like.dtype, like.device)
    if key not in _MATRICES:
        _MATRICES[key] = torch.tensor(sylvester(n).tolist(), dtype=like.dtype, device=like.device)
    return _MATRICES[key]


def transform(x: Tensor, dim: int) -> Tensor:
    """Unnormalised transform across one axis.

    Args:
        x: float32, float64 or int32; contiguous; its length n along ``dim`` is a power of two.
        dim: the axis, counted from the front.

    Returns:
        The transform in new memory; x itself if n is 1.
    """
    n, before, behind = x.shape[dim], math.prod(x.shape[:dim]), math.prod(x.shape[dim + 1 :])
    if n == 1:
        return x
    if x.dtype != torch.float32:
        return _butterflies(x.reshape(before, n, behind)).view(x.shape)
    low = min(n, RADIX)
    h, parts = _matrix(low, x), before * (n // low)
    y = x.reshape(parts, low) @ h if behind == 1 else torch.matmul(h, x.reshape(parts, low, behind))
    return y.view(x.shape) if low == n else transform(y.view(before, n // low, low * behind), 1).view(x.shape)


def _butterflies(x: Tensor) -> Tensor:
    """[before, n, behind], n > 1: stages of strides 1, 2, 4, ..., (a + b, a - b); two buffers take turns."""
    before, n, behind = x.shape
    source, target, spare = x, torch.empty_like(x), None
    for stage in range(n.bit_length() - 1):
        shape = (before, n >> stage + 1, 2, 1 << stage, behind)
        pairs, out = source.view(shape), target.view(shape)
        torch.add(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 0])
        torch.sub(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 1])
        spare = torch.empty_like(x) if spare is None else spare
        source, target, spare = target, spare, target
    return source


def orthonormal(x: Tensor, dim: int) -> Tensor:
    """The transform across one axis of a float tensor, then one product with 1 / sqrt(n); x itself if n is 1."""
    n = x.shape[dim]
    return x if n == 1 else transform(x, dim).mul_(1 / math.sqrt(n))


class _Transform(torch.autograd.Function):
    """The orthonormal or plain transform along the last axis: its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, normalize: bool) -> Tensor:
        ctx.normalize = normalize
        wide = x.to(accumulate_dtype(x))
        y = orthonormal(wide, x.ndim - 1) if normalize else transform(wide, x.ndim - 1)
        return y.to(x.dtype) if y is not x else x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Transform.apply(dy, ctx.normalize), None


def hadamard_transform(x: Tensor, normalize: bool = True) -> Tensor:
    """Walsh-Hadamard transform along the last axis, Sylvester order.

    Args:
        x: float [..., n], or integer with ``normalize=False``; n a power of two.
        normalize: divide by sqrt(n).

    Returns:
        y [..., n] in the dtype of x; int32 for integer x.

    Raises:
        ShapeError: n is not a power of two. ParameterError: integer x with ``normalize=True``.
        DTypeError: neither float nor integer.
    """
    if x.ndim == 0 or not is_power_of_two(x.shape[-1]):
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n] with n a power of two; pad it")
    if x.dtype in INTEGERS:
        if normalize:
            raise ParameterError(f"x is {x.dtype} and normalize is True: integers stay exact only with normalize=False")
        wide = x.to(torch.int32)
        y = transform(wide, x.ndim - 1)
        return y.clone() if y is x else y
    require_float("x", x)
    result: Tensor = _Transform.apply(x, normalize)
    return result


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
        total = exact_bmm(v.transpose(0, 1), q.transpose(1, 2), n)
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
