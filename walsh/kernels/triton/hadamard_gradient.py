# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Gradients of the Hadamard linear layer: three launches, whatever is wanted of them.

1. dx, the forward kernel with alpha and beta exchanged and w transposed, and with it dalpha's sums over a tile of rows;
2. dw, and with it dbeta's sums over a tile of rows and of K;
3. the second stage of all sums, in a fixed order: the same bits in every run.

The tiles of the second launch hold v, dz, z and the accumulators of dw at once, each [n, 16, 16]; where n is too large
for that, dbeta is a launch of its own that forms z again.
"""

import math

import torch
from torch import Tensor

from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._hadamard_gradient import hadamard_sums_kernel, hadamard_weight_kernel
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, processors
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.gemm import _TRITON_TYPES, accumulator, dot_dtype
from walsh.kernels.triton.gemm_tiles import Blocks
from walsh.kernels.triton.hadamard_layer import linear, matrix, product, require_blocks, tile_rule

LARGEST_TOGETHER = 128
"""Most bytes of an element's n sums for which a program holds v, dz, z and the sums of dw: n = 32 in float32."""


def _fake_backward(dy, x, w, alpha, beta, codes_x, scale, codes_w, ste_clip, need_x, need_w, need_alpha, need_beta):
    dx = x.new_empty(x.shape if need_x else (0,))
    dw = w.new_empty(w.shape if need_w else (0,))
    dalpha = x.new_empty((0,)) if alpha is None or not need_alpha else alpha.new_empty(alpha.shape)
    dbeta = x.new_empty((0,)) if beta is None or not need_beta else beta.new_empty(beta.shape)
    return dx, dw, dalpha, dbeta


@operation("hadamard_linear_backward", _fake_backward)
def backward(
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
    need_alpha, need_beta = need_alpha and alpha is not None, need_beta and beta is not None
    n, out = w.shape[:2]
    dflat, flat = matrix(dy, n * out), matrix(x, x.shape[-1])
    outer = None if beta is None else beta.contiguous()
    inner = None if alpha is None else alpha.contiguous()
    alpha_part = None
    if need_x or need_alpha:
        alpha_part = product(
            dflat,
            weight,
            (flat.shape[0], n, flat.shape[1] // n, out),
            (weight.stride(0), weight.stride(2), weight.stride(1)),
            2 if weight.dtype == torch.uint8 else 0,
            dx if need_x else None,
            outer,
            inner,
            other=flat if need_alpha else None,
        )
    source = flat if codes_x is None else matrix(codes_x, x.shape[-1])
    inner = None if codes_x is not None else inner
    w_part, beta_part = sum_rows(dflat, source, weight, scale, outer, inner, need_w, need_beta)
    limit = None if ste_clip is None or not need_w else w.contiguous()
    _add_parts((w_part, dw), (alpha_part, dalpha), (beta_part, dbeta), limit, ste_clip)
    return dx, dw, dalpha, dbeta


def choose_blocks(cols: int, reds: int, count: int, n: int, dot: torch.dtype, device: torch.device) -> Blocks:
    """Tile sizes of the second launch, BM x BN of dw and BK rows a step: measured on this device, else by rule."""
    if interpreting():
        bm, bn, bk = (max(1, min(64, next_power_of_two(size))) for size in (cols, reds, cdiv(count, 2)))
        return Blocks(bm, bn, bk, 4, 1)
    wide = dot in (torch.float32, torch.float64)
    # Without tensor cores operands are registers too; n = 32 has no smaller tile that AMD takes without a spill.
    bn, bm = tile_rule(reds, cols, 2 * n if wide and n < 32 else n, dot)
    rule = Blocks(bm, bn, 16, 8, 1)
    return configured(shape_of("hadamard_weight", (cols, reds, count), n, dot), device, rule)


def sum_rows(
    dflat: Tensor,
    source: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    outer: Tensor | None,
    inner: Tensor | None,
    need_w: bool,
    need_beta: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The second launch: parts of dw [splits, n, N, K] and of dbeta [splits * tiles of K, n, N], if needed.

    Args:
        dflat: [rows, n*N], the incoming gradient.
        source: [rows, n*K], x, or the codes of v with ``scale`` [rows, 1].
        weight: [n, N, K] float or codes, or packed.
        scale: as above, or None.
        outer, inner: beta, and alpha where source is x.
        need_w, need_beta: what is wanted.
    """
    operands = (dflat, source, weight, scale, outer, inner)
    n = weight.shape[0]
    together = interpreting() or n * accumulator(dot_dtype(dflat, source)).itemsize <= LARGEST_TOGETHER
    if together or not need_w or not need_beta:
        return _launch_sums(*operands, need_w, need_beta) if need_w or need_beta else (None, None)
    return _launch_sums(*operands, True, False)[0], _launch_sums(*operands, False, True)[1]


def _launch_sums(
    dflat: Tensor,
    source: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    outer: Tensor | None,
    inner: Tensor | None,
    need_w: bool,
    need_beta: bool,
) -> tuple[Tensor | None, Tensor | None]:
    n, cols = weight.shape[:2]
    count, reds = source.shape[0], source.shape[1] // n
    dot = dot_dtype(dflat, source)
    require_blocks(n, dot)
    # Codes are exact in every float of the tensor cores, and so are their products in its float32 sums.
    z_dot = dot if source.dtype == torch.int8 else dot_dtype(source, weight)
    blocks = choose_blocks(cols, reds, count, n, dot, weight.device)
    tiles, red_tiles = cdiv(cols, blocks.bm) * cdiv(reds, blocks.bn), cdiv(reds, blocks.bn)
    if interpreting():
        splits = 2 if count >= 48 else 1
    else:
        splits = max(1, min(cdiv(2 * processors(weight.device), tiles), count // blocks.bk))
    share = cdiv(cdiv(count, splits), blocks.bk) * blocks.bk
    w_part = weight.new_empty((splits, n, cols, reds), dtype=accumulator(dot)) if need_w else None
    beta_part = weight.new_empty((splits * red_tiles, n, cols), dtype=accumulator(z_dot)) if need_beta else None
    launch(
        hadamard_weight_kernel,
        (tiles, splits),
        dflat,
        source,
        weight if need_beta else None,
        w_part,
        beta_part,
        outer,
        inner,
        scale,
        count,
        cols,
        reds,
        dflat.stride(0),
        source.stride(0),
        *weight.stride(),
        share,
        warps=blocks.warps,
        stages=blocks.stages,
        N=n,
        NORM=1 / math.sqrt(n),
        PACK=1 if weight.dtype == torch.uint8 else 0,
        WEIGHT=need_w,
        DOTS=need_beta,
        OUT_SCALE=outer is not None,
        IN_SCALE=inner is not None,
        CODES=scale is not None,
        DOT=_TRITON_TYPES[dot],
        ACC=_TRITON_TYPES[accumulator(dot)],
        DOTS_DOT=_TRITON_TYPES[z_dot],
        DOTS_ACC=_TRITON_TYPES[accumulator(z_dot)],
        BM=blocks.bk,
        BN=blocks.bm,
        BK=blocks.bn,
    )
    return w_part, beta_part


def _sum_tile(parts: int, size: int) -> Rows:
    """Parts that are added at a time, and elements of a program: many parts are read side by side, not one by one."""
    height = min(next_power_of_two(parts), 256)
    room = (1 << 16 if interpreting() else 4096) // height
    return Rows(height, max(32, min(room, next_power_of_two(size), 1024 if not interpreting() else room)))


def _add_parts(
    w: tuple[Tensor | None, Tensor],
    alpha: tuple[Tensor | None, Tensor],
    beta: tuple[Tensor | None, Tensor],
    limit: Tensor | None,
    clip: float | None,
) -> None:
    """The third launch: each pair's parts, if any, added up into its gradient."""
    sizes, counts, blocks, tiles, tensors = [], [], [], [], []
    for part, out in (w, alpha, beta):
        tensors += [part, out if part is not None else None]
        sizes.append(out.numel())
        counts.append(0 if part is None else part.shape[0])
        blocks.append(_sum_tile(counts[-1], sizes[-1]))
        tiles.append(0 if part is None else cdiv(sizes[-1], blocks[-1].block))
    launch(
        hadamard_sums_kernel,
        (sum(tiles),),
        *tensors[:2],
        limit,
        *tensors[2:],
        sizes[0],
        counts[0],
        tiles[0],
        sizes[1],
        counts[1],
        tiles[1],
        sizes[2],
        counts[2],
        WEIGHT=w[0] is not None,
        ALPHA=alpha[0] is not None,
        BETA=beta[0] is not None,
        CLIP=limit is not None,
        CLIP_VALUE=float(clip or 0.0) if limit is not None else 0.0,
        W_PARTS=blocks[0].rows,
        W_BLOCK=blocks[0].block,
        ALPHA_PARTS=blocks[1].rows,
        ALPHA_BLOCK=blocks[1].block,
        BETA_PARTS=blocks[2].rows,
        BETA_BLOCK=blocks[2].block,
    )


def _setup(ctx, inputs, output):
    *tensors, ctx.ste_clip = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy):
    needs = ctx.needs_input_grad[:4]
    gradients = backward(dy, *ctx.saved_tensors, ctx.ste_clip, *needs)
    return (*(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None, None)


linear.differentiate(_differentiate, _setup)
