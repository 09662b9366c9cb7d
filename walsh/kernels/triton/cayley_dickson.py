# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""The hyper-complex linear layer, D = 1, 2, 4, 8, 16 (SPEC.md, section *cayley_dickson*).

    Y_i = beta * sum_j S[i, j] X_j W_{i xor j}^T                     x [..., D*K], w [D, N, K], beta [N], y [..., D*N]

Launches per call: forward 1 (with rounding of weights and activations 4); backward at most 3, dX, the split sum
G_k = sum_i S[i, i xor k] dY_i^T X_{i xor k}, and its second stage, which also gives dW_k = beta * G_k and
dbeta_n = sum_k G_k[n] . W_k[n]. No output has to be kept for the backward.
"""

from dataclasses import replace

import torch
from torch import Tensor

from walsh.algebra import DIMENSIONS, fast_backward_w, fast_backward_x, fast_forward
from walsh.errors import DTypeError, ParameterError, ShapeError
from walsh.kernels.triton._check import (
    packed_width,
    require_bits,
    require_float,
    require_nonempty_row,
    require_optional,
    require_shape,
    require_weight,
    rows,
)
from walsh.kernels.triton._launch import require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.activations import quantize
from walsh.kernels.triton.gemm import (
    Operand,
    Scales,
    accumulator,
    dot_dtype,
    reduce_parts,
    signed_xor_product,
    weight_operand,
)
from walsh.kernels.triton.gemm_tiles import choose_blocks, choose_splits
from walsh.kernels.triton.ternary import check_ternary, ternary_codes
from walsh.kernels.triton.ternary_packing import require_codes

METHODS = ("auto", "direct", "fast")


def _matrix(x: Tensor, features: int) -> Tensor:
    """X as [rows, features] with unit stride along features."""
    flat = x.reshape(rows(x), features)
    return flat if features < 2 or flat.stride(1) == 1 else flat.contiguous()


def _use_fast(method: str, count: int, k: int, d: int, dot: torch.dtype) -> bool:
    """Whether to factorise: asked for, or where the product is bound by plain multiply-adds (30 for 64) and large."""
    if method == "auto":
        return d in (4, 8) and dot == torch.float32 and count >= 1024 and k >= 64
    return method == "fast" and 2 <= d <= 8


def _fake_linear(x, w, beta, codes_x, scale, codes_w, ste_clip, method):
    return x.new_empty((*x.shape[:-1], w.shape[0] * w.shape[1]))


@operation("cayley_dickson_linear", _fake_linear)
def _linear(
    x: Tensor,
    w: Tensor,
    beta: Tensor | None,
    codes_x: Tensor | None,
    scale: Tensor | None,
    codes_w: Tensor | None,
    ste_clip: float | None,
    method: str,
) -> Tensor:
    """The layer at (codes_x / scale, codes_w), or at x and w themselves where these are absent."""
    require_device(x, w, beta, codes_x, scale, codes_w)
    source, weight = x if codes_x is None else codes_x, w if codes_w is None else codes_w
    d, n = w.shape[:2]
    flat = _matrix(source, x.shape[-1])
    k = x.shape[-1] // d
    y = _fake_linear(x, w, beta, codes_x, scale, codes_w, ste_clip, method)
    signed_xor_product(
        Operand(flat, k, flat.stride(0), 1),
        weight_operand(weight),
        (flat.shape[0], n, k),
        fast_forward(d),
        Operand(y, n, d * n, 1),
        Scales(row=scale, row_mode=0 if scale is None else 1, col=beta),
        fast=_use_fast(method, flat.shape[0], k, d, dot_dtype(flat, weight)),
    )
    return y


def _fake_backward(dy, x, w, beta, codes_x, scale, codes_w, ste_clip, method, need_x, need_w, need_beta):
    absent = x.new_empty((0,))
    dx = x.new_empty(x.shape) if need_x else absent
    dw = w.new_empty(w.shape) if need_w else absent.clone()
    return dx, dw, w.new_empty((0,)) if beta is None or not need_beta else beta.new_empty(beta.shape)


@operation("cayley_dickson_linear_backward", _fake_backward)
def _backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    beta: Tensor | None,
    codes_x: Tensor | None,
    scale: Tensor | None,
    codes_w: Tensor | None,
    ste_clip: float | None,
    method: str,
    need_x: bool,
    need_w: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and beta; an empty tensor for one that is not needed."""
    dx, dw, dbeta = _fake_backward(dy, x, w, beta, codes_x, scale, codes_w, ste_clip, method, need_x, need_w, need_beta)
    weight = w if codes_w is None else codes_w
    beta = None if beta is None else beta.contiguous()
    d, n = w.shape[:2]
    k = x.shape[-1] // d
    dflat = _matrix(dy, d * n)
    if need_x:
        signed_xor_product(
            Operand(dflat, n, dflat.stride(0), 1),
            weight_operand(weight, across=True),
            (dflat.shape[0], k, n),
            fast_backward_x(d),
            Operand(dx, k, d * k, 1),
            Scales(p=beta),
            fast=_use_fast(method, dflat.shape[0], n, d, dot_dtype(dflat, weight)),
        )
    if need_w or (need_beta and beta is not None):
        _weight_gradients(dflat, x if codes_x is None else codes_x, scale, w, weight, beta, ste_clip, method, dw, dbeta)
    return dx, dw, dbeta


def _weight_gradients(
    dflat: Tensor,
    source: Tensor,
    scale: Tensor | None,
    w: Tensor,
    weight: Tensor,
    beta: Tensor | None,
    ste_clip: float | None,
    method: str,
    dw: Tensor,
    dbeta: Tensor,
) -> None:
    """Fill dw and dbeta, each if it has room: the split sum over tokens and its second stage."""
    d, n = w.shape[:2]
    flat = _matrix(source, source.shape[-1])
    count, k = flat.shape[0], flat.shape[1] // d
    dot = dot_dtype(dflat, flat)
    fast = _use_fast(method, n, count, d, dot)
    blocks = choose_blocks(n, k, count, d, dot, w.device, fast)
    splits = choose_splits(n, k, count, blocks, w.device)
    direct = splits == 1 and beta is None and ste_clip is None
    part = dw[None] if direct else w.new_empty((splits, d, n, k), dtype=accumulator(dot))
    signed_xor_product(
        Operand(dflat, n, 1, dflat.stride(0)),
        Operand(flat, k, 1, flat.stride(0)),
        (n, k, count),
        fast_backward_w(d),
        Operand(part, n * k, k, 1),
        Scales(q=scale),
        fast=fast,
        splits=splits,
        blocks=blocks,
    )
    if not direct:
        wants_beta = beta is not None and dbeta.numel() > 0
        reduce_parts(
            part,
            dw if dw.numel() else None,
            beta,
            dots=dbeta if wants_beta else None,
            other=replace(weight_operand(weight), pack=2 if weight.dtype == torch.uint8 else 0) if wants_beta else None,
            limit=None if ste_clip is None else w.contiguous(),
            clip=ste_clip,
        )


def _setup(ctx, inputs, output):
    x, w, beta, codes_x, scale, codes_w, ctx.ste_clip, ctx.method = inputs
    # Only the shape and dtype of x matter when its codes are kept: a quarter of the bytes.
    ctx.save_for_backward(x, w, beta, codes_x, scale, codes_w)


def _differentiate(ctx, dy):
    needs = ctx.needs_input_grad[:3]
    gradients = _backward(dy, *ctx.saved_tensors, ctx.ste_clip, ctx.method, *needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None, None, None)


_linear.differentiate(_differentiate, _setup)


def _fake_integer(x, w, beta, x_scale, reciprocal, full_range):
    dtype = torch.int32 if x_scale is None and beta is None else torch.float32
    return x.new_empty((*x.shape[:-1], w.shape[0] * w.shape[1]), dtype=dtype)


@operation("cayley_dickson_integer_linear", _fake_integer)
def integer_linear(
    x: Tensor, w: Tensor, beta: Tensor | None, x_scale: Tensor | None, reciprocal: bool, full_range: bool
) -> Tensor:
    """int8 x, integer w: the exact int32 sum, or (sum / x_scale) * beta (times x_scale if ``reciprocal``) in float32.

    beta may be [F, N]: factors that are multiplied in turn. ``full_range``: w may hold -128, not only {-1, 0, 1}.
    """
    require_device(x, w, beta, x_scale)
    d, n = w.shape[:2]
    flat = _matrix(x, x.shape[-1])
    k = flat.shape[1] // d
    y = _fake_integer(x, w, beta, x_scale, reciprocal, full_range)
    mode = 0 if x_scale is None else 2 if reciprocal else 1
    signed_xor_product(
        Operand(flat, k, flat.stride(0), 1),
        weight_operand(w),
        (flat.shape[0], n, k),
        fast_forward(d),
        Operand(y, n, d * n, 1),
        Scales(row=None if x_scale is None else x_scale.float().contiguous(), row_mode=mode, col=beta),
        fusion=False,
        full_range=full_range,
    )
    return y


def check_linear(x: Tensor, w: Tensor, beta: Tensor | None, method: str = "auto") -> int:
    """Validate shapes and dtypes and return K."""
    if method not in METHODS:
        raise ParameterError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    require_weight("w", w)
    if w.ndim != 3 or w.shape[0] not in DIMENSIONS.values():
        raise ShapeError(f"w has shape {list(w.shape)}: expected [D, N, K] with D one of 1, 2, 4, 8, 16")
    d = w.shape[0]
    if x.ndim == 0 or x.shape[-1] % d:
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., D*K] with D = {d}, from w {list(w.shape)}")
    k = x.shape[-1] // d
    letters = f"[D, N, K] with D*K = {x.shape[-1]}, the features of x, K four to a byte if packed"
    require_shape("w", w, (d, None, packed_width(w, k)), letters)
    require_optional("beta", beta, (w.shape[1],), "[N]")
    return k


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
        method: ``auto``, ``direct`` or ``fast``: how a float product is formed; ``fast`` takes 30 block products for
        64.

    Returns:
        y [..., D*N] in the dtype of x. For int8 x the exact int32 sum, or ``(sum / x_scale) * beta`` in float32.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: codes outside {-1, 0, 1}, another method,
        x_scale with float x. FormatError: damaged packed weights. BackendError: no machine for Triton.
    """
    k = check_linear(x, w, beta, method)
    if x.dtype == torch.int8:
        if w.is_floating_point():
            raise DTypeError(f"x is int8 and w is {w.dtype}: expected int8 or packed uint8 w; make it with `ternary`")
        if x_scale is not None:
            require_float("x_scale", x_scale)
            require_shape("x_scale", x_scale, (*x.shape[:-1], 1), "[..., 1], one scale per row of x")
        require_codes(w, k)
        result: Tensor = integer_linear(x, w, beta, x_scale, False, False)
        return result
    require_float("x", x)
    if x_scale is not None:
        raise ParameterError(f"x_scale is given and x is {x.dtype}: expected int8 codes with x_scale, or no x_scale")
    require_codes(w, k)
    result = _linear(x, w, beta, None, None, None, None, method)
    return result


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
        rule: as in ``ternary``.
        ste_clip: as in ``ternary_ste``.
        method: as in :func:`cayley_dickson_linear`, for the float products; the integer one is always exact.

    Returns:
        y [..., D*N] in the dtype of x. A row of x with NaN or infinity gives a row of NaN with 8 bits.

    Raises:
        As :func:`cayley_dickson_linear`; NonFiniteError: NaN or infinity in w; ParameterError: other bits or rule.
    """
    require_float("x", x)
    k = check_linear(x, w, beta, method)
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
    codes_x, scale = (None, None) if activation_bits is None else quantize(x.detach(), False, False)
    result: Tensor = _linear(x, w, beta, codes_x, scale, codes_w, ste_clip, method)
    return result
