# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Walsh-Hadamard transform and the Hadamard linear layer (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                                            x [..., n]
    u = alpha * x;  v = H u;  z_g = v_g w_g^T;  Y = beta * H z             x [..., n*K], w [n, N, K], Y [..., n*N]

The transform is the radix-2 butterfly, strides 1, 2, 4, ..., (a + b, a - b), then one product with 1 / sqrt(n). Rows
of up to 4,096 stay in registers; longer ones take a second pass along a strided axis, in the same order of additions.
The layer is one launch forward; backward it is dX (with the partial sums of dalpha), the forward again for dbeta, dW,
and their second stages.
"""

import math

import torch
import triton.language as tl
from torch import Tensor

from walsh.algebra import is_power_of_two
from walsh.errors import DTypeError, ParameterError, ShapeError
from walsh.kernels.triton._check import (
    INTEGERS,
    packed_width,
    require_bits,
    require_float,
    require_nonempty_row,
    require_optional,
    require_shape,
    require_weight,
    rows,
)
from walsh.kernels.triton._gemm import _TRITON_TYPES, Blocks, accumulator, dot_dtype, reduce_parts
from walsh.kernels.triton._hadamard import (
    hadamard_linear_kernel,
    hadamard_quantize_kernel,
    hadamard_weight_kernel,
    transform_last_kernel,
    transform_strided_kernel,
)
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, processors, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.activations import scale_dtype
from walsh.kernels.triton.ternary import check_ternary, require_codes, ternary_codes

LONGEST_ROW = 4096
"""Longest row that one program transforms in registers; longer rows take a second, strided pass."""

LARGEST_BLOCKS = 128
"""Most blocks of a layer on a GPU: n accumulator tiles of 16 x 16 fill the registers of a program."""


def _working_type(x: Tensor) -> tl.dtype:
    """What the transform computes in: int32 for integers, float64 for float64, else float32."""
    if not x.is_floating_point():
        return tl.int32
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _strided(x: Tensor, y: Tensor, n: int, inner: int, norm: float, fusion: bool) -> None:
    count = x.numel() // n
    block = min(next_power_of_two(count), 1 << 14) if interpreting() else 128
    launch(
        transform_strided_kernel,
        (cdiv(count, block),),
        x,
        y,
        count,
        inner,
        fusion=fusion,
        N=n,
        NORM=norm,
        BLOCK=block,
        ACC=_working_type(x),
    )


def transform_into(x: Tensor, y: Tensor, normalize: bool, fusion: bool = True) -> None:
    """Transform contiguous x along its last axis into contiguous y, which may be x."""
    n, count = x.shape[-1], rows(x)
    norm = 1 / math.sqrt(n) if normalize else 1.0
    short = min(n, LONGEST_ROW)
    tile = max(1, (1 << 16 if interpreting() else 2048) // short)
    tile = min(tile, next_power_of_two(count * (n // short)))
    # Between two passes nothing is rounded: 16-bit floats go through a float32 buffer.
    wide = x.is_floating_point() and x.element_size() == 2
    middle = y if short == n or not wide else torch.empty_like(x, dtype=torch.float32)
    launch(
        transform_last_kernel,
        (cdiv(count * (n // short), tile),),
        x,
        middle,
        count * (n // short),
        warps=8 if short >= 4096 else 4,
        fusion=fusion,
        N=short,
        NORM=norm if short == n else 1.0,
        ROWS=tile,
        ACC=_working_type(x),
    )
    if short < n:
        long = n // short
        first = min(long, 32)
        _strided(middle, middle if first < long else y, first, short, norm if first == long else 1.0, fusion)
        if first < long:
            _strided(middle, y, long // first, short * first, norm, fusion)


def _fake_transform(x, normalize, strict):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operation("hadamard_transform", _fake_transform)
def transform(x: Tensor, normalize: bool, strict: bool) -> Tensor:
    """The transform of checked x in new memory."""
    require_device(x)
    y = _fake_transform(x, normalize, strict)
    if x.shape[-1] == 1 or not x.numel():
        return y.copy_(x)
    transform_into(x.contiguous(), y, normalize, not strict)
    return y


def _setup_transform(ctx, inputs, output):
    _, ctx.normalize, ctx.strict = inputs


def _differentiate_transform(ctx, dy):
    return transform(dy, ctx.normalize, ctx.strict), None, None


transform.differentiate(_differentiate_transform, _setup_transform)


def _check_transform(x: Tensor, normalize: bool) -> None:
    if x.ndim == 0 or not is_power_of_two(x.shape[-1]):
        raise ShapeError(f"x has shape {list(x.shape)}: expected [..., n] with n a power of two; pad with zeros")
    if x.dtype in INTEGERS:
        if normalize:
            raise ParameterError(
                f"normalize is True and x is {x.dtype}: integers are transformed with normalize=False only"
            )
    else:
        require_float("x", x)


def hadamard_transform(x: Tensor, normalize: bool = True) -> Tensor:
    """Walsh-Hadamard transform along the last axis, Sylvester order.

    Args:
        x: float [..., n], n a power of two; integers with ``normalize=False``.
        normalize: divide by sqrt(n), which makes the transform orthonormal and its own inverse.

    Returns:
        y [..., n] in the dtype of x; int32 for integers.

    Raises:
        ShapeError: n is not a power of two. DTypeError: integers with ``normalize``. BackendError: no machine for
        Triton.
    """
    _check_transform(x, normalize)
    result: Tensor = transform(x if x.is_floating_point() else x.to(torch.int32), normalize, False)
    return result


def hadamard_transform_(x: Tensor, normalize: bool = True) -> Tensor:
    """As :func:`hadamard_transform`, in place; x is float or int32, contiguous, and takes no part in a gradient.

    Raises:
        As :func:`hadamard_transform`; ShapeError: x is not contiguous. DTypeError: other integers.
    """
    _check_transform(x, normalize)
    require_device(x)
    if not x.is_contiguous():
        raise ShapeError(f"x has strides {x.stride()}: expected a contiguous tensor to transform in place; use a copy")
    if not x.is_floating_point() and x.dtype != torch.int32:
        raise DTypeError(f"x is {x.dtype}: expected float or int32 to transform in place; convert it first")
    if x.shape[-1] > 1:
        transform_into(x, x, normalize)
    return x


def choose_blocks(count: int, cols: int, reds: int, n: int, dot: torch.dtype, device: torch.device) -> Blocks:
    """Tile sizes [n, BM, BN]: n accumulator tiles, and as many of x while they are transformed, live in registers."""
    if interpreting():
        bm, bn, bk = (max(1, min(64, next_power_of_two(size))) for size in (count, cols, reds))
        return Blocks(bm, bn, bk, 4, 1)
    wide = dot in (torch.float32, torch.float64)
    area = max(256, 8192 // n)
    bm = min(64, 1 << (area.bit_length() // 2))
    bm = max(16, min(bm, next_power_of_two(count)))
    bn = max(16, min(area // bm, 64, next_power_of_two(cols)))
    return Blocks(bm, bn, 16 if wide else 32, 4 if n * bm * bn <= 4096 else 16 if wide else 8, 1)


def _matrix(x: Tensor, features: int) -> Tensor:
    flat = x.reshape(rows(x), features)
    return flat if features < 2 or flat.stride(1) == 1 else flat.contiguous()


def _product(
    x: Tensor,
    w: Tensor,
    sizes: tuple[int, int, int, int],
    w_strides: tuple[int, int, int],
    pack: int,
    y: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    *,
    transform_input: bool = True,
    row_scale: Tensor | None = None,
    row_mode: int = 0,
    other: Tensor | None = None,
    fusion: bool = True,
) -> Tensor | None:
    """Launch the fused kernel for sizes (rows, n, columns, sum); the partial sums against ``other``, if given."""
    count, n, cols, reds = sizes
    dot = dot_dtype(x, w)
    if n > LARGEST_BLOCKS and not interpreting():
        raise ParameterError(
            f"w has n = {n} blocks: expected at most {LARGEST_BLOCKS} on a GPU; use fewer, larger blocks"
        )
    blocks = choose_blocks(count, cols, reds, n, dot, x.device)
    acc = accumulator(dot)
    part = None
    if other is not None:
        kind = torch.float64 if torch.float64 in (x.dtype, other.dtype) else torch.float32
        part = x.new_empty((cdiv(count, blocks.bm), n, 1, cols), dtype=kind)
    launch(
        hadamard_linear_kernel,
        (cdiv(count, blocks.bm) * cdiv(cols, blocks.bn),),
        x,
        w,
        y,
        in_scale,
        out_scale,
        row_scale,
        other,
        part,
        count,
        cols,
        reds,
        reds,
        x.stride(0),
        1,
        *w_strides,
        0 if other is None else other.stride(0),
        warps=blocks.warps,
        stages=blocks.stages,
        fusion=fusion,
        N=n,
        NORM=1 / math.sqrt(n),
        PACK=pack,
        TRANSFORM=transform_input,
        IN_SCALE=in_scale is not None,
        OUT_SCALE=0 if out_scale is None else out_scale.numel() // max(1, n * cols),
        ROW_SCALE=row_mode,
        STORE=y is not None,
        PART=part is not None,
        DOT=_TRITON_TYPES[dot],
        ACC=_TRITON_TYPES[acc],
        BM=blocks.bm,
        BN=blocks.bn,
        BK=blocks.bk,
    )
    return part


def _sum_tiles(part: Tensor, out: Tensor) -> Tensor:
    """Second stage of the gradient of a scale: part [tiles, n, 1, cols] added up over tiles into out [n, cols]."""
    reduce_parts(part.view(part.shape[0], 1, part.shape[1], part.shape[3]), out[None])
    return out


def _fake_quantize(x, alpha, n, reciprocal):
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=scale_dtype(x))


@operation("hadamard_quantize", _fake_quantize)
def hadamard_quantize(x: Tensor, alpha: Tensor | None, n: int, reciprocal: bool) -> tuple[Tensor, Tensor]:
    """int8 codes of v = H(alpha * x) across n blocks, and scale (or 1 / scale) per token."""
    require_device(x, alpha)
    codes, scale = _fake_quantize(x, alpha, n, reciprocal)
    flat = _matrix(x, x.shape[-1])
    count, cols = flat.shape[0], flat.shape[1] // n
    block = next_power_of_two(cols) if interpreting() else max(1, min(next_power_of_two(cols), 4096 // n))
    tile = min(next_power_of_two(count), 64) if interpreting() else 1
    launch(
        hadamard_quantize_kernel,
        (cdiv(count, tile),),
        flat,
        codes,
        scale,
        None if alpha is None else alpha.contiguous(),
        count,
        cols,
        flat.stride(0),
        fusion=False,
        N=n,
        NORM=1 / math.sqrt(n),
        IN_SCALE=alpha is not None,
        RECIPROCAL=reciprocal,
        ACC=_working_type(x),
        BM=tile,
        BK=block,
    )
    return codes, scale


def _fake_linear(x, w, alpha, beta, codes_x, scale, codes_w, ste_clip):
    return x.new_empty((*x.shape[:-1], w.shape[0] * w.shape[1]))


@operation("hadamard_linear", _fake_linear)
def _linear(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    codes_x: Tensor | None,
    scale: Tensor | None,
    codes_w: Tensor | None,
    ste_clip: float | None,
) -> Tensor:
    """The layer at x and w, or from the rounded v = codes_x / scale and at codes_w where these are given."""
    require_device(x, w, alpha, beta, codes_x, scale, codes_w)
    y = _fake_linear(x, w, alpha, beta, codes_x, scale, codes_w, ste_clip)
    _forward(x, w if codes_w is None else codes_w, alpha, beta, codes_x, scale, y, None)
    return y


def _forward(
    x: Tensor,
    weight: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    codes_x: Tensor | None,
    scale: Tensor | None,
    y: Tensor | None,
    other: Tensor | None,
) -> Tensor | None:
    """The forward into y, or only its partial sums against ``other``."""
    flat = _matrix(x if codes_x is None else codes_x, x.shape[-1])
    n = weight.shape[0]
    return _product(
        flat,
        weight,
        (flat.shape[0], n, weight.shape[1], flat.shape[1] // n),
        (weight.stride(0), weight.stride(1), weight.stride(2)),
        1 if weight.dtype == torch.uint8 else 0,
        y,
        None if alpha is None or codes_x is not None else alpha.contiguous(),
        None if beta is None else beta.contiguous(),
        transform_input=codes_x is None,
        row_scale=scale,
        row_mode=0 if scale is None else 1,
        other=other,
    )


def _fake_backward(dy, x, w, alpha, beta, codes_x, scale, codes_w, ste_clip, need_x, need_w, need_alpha, need_beta):
    dx = x.new_empty(x.shape if need_x else (0,))
    dw = w.new_empty(w.shape if need_w else (0,))
    dalpha = x.new_empty((0,)) if alpha is None or not need_alpha else alpha.new_empty(alpha.shape)
    dbeta = x.new_empty((0,)) if beta is None or not need_beta else beta.new_empty(beta.shape)
    return dx, dw, dalpha, dbeta


@operation("hadamard_linear_backward", _fake_backward)
def _backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    codes_x: Tensor | None,
    scale: Tensor | None,
    codes_w: Tensor | None,
    ste_clip: float | None,
    need_x: bool,
    need_w: bool,
    need_alpha: bool,
    need_beta: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w, alpha and beta; an empty tensor for one that is not needed."""
    weight = w if codes_w is None else codes_w
    dx, dw, dalpha, dbeta = _fake_backward(
        dy, x, w, alpha, beta, codes_x, scale, codes_w, ste_clip, need_x, need_w, need_alpha, need_beta
    )
    n, out = w.shape[:2]
    reds = x.shape[-1] // n
    dflat, flat = _matrix(dy, n * out), _matrix(x, x.shape[-1])
    outer = None if beta is None else beta.contiguous()
    inner = None if alpha is None else alpha.contiguous()
    wants_alpha = alpha is not None and need_alpha
    if need_x or wants_alpha:
        part = _product(
            dflat,
            weight,
            (flat.shape[0], n, reds, out),
            (weight.stride(0), weight.stride(2), weight.stride(1)),
            2 if weight.dtype == torch.uint8 else 0,
            dx if need_x else None,
            outer,
            inner,
            other=flat if wants_alpha else None,
        )
        if part is not None:
            _sum_tiles(part, dalpha)
    if beta is not None and need_beta:
        part = _forward(x, weight, alpha, None, codes_x, scale, None, dflat)
        if part is not None:
            _sum_tiles(part, dbeta)
    if need_w:
        source = flat if codes_x is None else _matrix(codes_x, x.shape[-1])
        _weight_gradient(dflat, source, scale, outer, inner if codes_x is None else None, w, ste_clip, dw)
    return dx, dw, dalpha, dbeta


def _weight_gradient(
    dflat: Tensor,
    source: Tensor,
    scale: Tensor | None,
    outer: Tensor | None,
    inner: Tensor | None,
    w: Tensor,
    ste_clip: float | None,
    dw: Tensor,
) -> None:
    n, cols = w.shape[:2]
    count, reds = source.shape[0], source.shape[1] // n
    dot = dot_dtype(dflat, source)
    blocks = choose_blocks(cols, reds, count, n, dot, w.device)
    step = min(blocks.bk, 16) if not interpreting() else blocks.bk
    if interpreting():
        splits = 2 if count >= 48 else 1
    else:
        splits = max(
            1, min(cdiv(2 * processors(w.device), cdiv(cols, blocks.bm) * cdiv(reds, blocks.bn)), count // step)
        )
    share = cdiv(cdiv(count, splits), step) * step
    part = w.new_empty((splits, n, cols, reds), dtype=accumulator(dot))
    launch(
        hadamard_weight_kernel,
        (cdiv(cols, blocks.bm) * cdiv(reds, blocks.bn), splits),
        dflat,
        source,
        part,
        outer,
        inner,
        scale,
        count,
        cols,
        reds,
        dflat.stride(0),
        source.stride(0),
        share,
        warps=8,
        stages=blocks.stages,
        N=n,
        NORM=1 / math.sqrt(n),
        OUT_SCALE=outer is not None,
        IN_SCALE=inner is not None,
        CODES=scale is not None,
        DOT=_TRITON_TYPES[dot],
        ACC=_TRITON_TYPES[accumulator(dot)],
        BM=step,
        BN=blocks.bm,
        BK=blocks.bn,
    )
    reduce_parts(part, dw, limit=None if ste_clip is None else w.contiguous(), clip=ste_clip)


def _setup(ctx, inputs, output):
    *tensors, ctx.ste_clip = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    needs = ctx.needs_input_grad[:4]
    gradients = _backward(dy, *ctx.saved_tensors, ctx.ste_clip, *needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None, None)


_linear.differentiate(_differentiate, _setup)


def _fake_integer(codes_x, r, w, factors):
    return r.new_empty((*codes_x.shape[:-1], w.shape[0] * w.shape[1]))


@operation("hadamard_integer_linear", _fake_integer)
def integer_linear(codes_x: Tensor, r: Tensor, w: Tensor, factors: Tensor) -> Tensor:
    """Strict, from the codes of v on: (f32(butterflies of sums) * r) * c_n, times factors [F, n, N] in turn."""
    require_device(codes_x, r, w, factors)
    y = _fake_integer(codes_x, r, w, factors)
    flat = _matrix(codes_x, codes_x.shape[-1])
    n = w.shape[0]
    _product(
        flat,
        w,
        (flat.shape[0], n, w.shape[1], flat.shape[1] // n),
        (w.stride(0), w.stride(1), w.stride(2)),
        0,
        y,
        None,
        factors.contiguous(),
        transform_input=False,
        row_scale=r,
        row_mode=2,
        fusion=False,
    )
    return y


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
    result: Tensor = _linear(x, w, alpha, beta, None, None, None, None)
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
    result: Tensor = _linear(x, w, alpha, beta, codes_x, scale, codes_w, ste_clip)
    return result
