# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""The Hadamard linear layer as PyTorch operations: quantizer, forward, and its strict form, one launch each.

    u = alpha * x;  v = H u;  z_g = v_g w_g^T;  Y = beta * H z             x [..., n*K], w [n, N, K], Y [..., n*N]

A program owns one tile [n, BM, BN] of all n blocks, since the second transform needs them all. For n = 32 the tile of
16 x 16 is 8,192 accumulators, 32 registers in each of 256 threads; for 64 it is 16 x 8, and past
:data:`LARGEST_BLOCKS` no tile fits a program.
"""

import math

import torch
from torch import Tensor

from walsh.errors import ParameterError
from walsh.kernels.triton._check import rows
from walsh.kernels.triton._config import Rows, configured, shape_of
from walsh.kernels.triton._hadamard import hadamard_linear_kernel, hadamard_quantize_kernel
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.activations import scale_dtype
from walsh.kernels.triton.gemm import _TRITON_TYPES, accumulator, dot_dtype
from walsh.kernels.triton.gemm_tiles import Blocks
from walsh.kernels.triton.hadamard_transforms import working_type

LARGEST_BLOCKS = 64
"""Most blocks of a layer on a GPU, half as many in float64: a product takes at least 16 x 8 of each in a tile."""


def require_blocks(n: int, dot: torch.dtype) -> None:
    """Raise ParameterError if a tile of n blocks is too large for a program on a GPU."""
    most = LARGEST_BLOCKS // 2 if dot == torch.float64 else LARGEST_BLOCKS
    if n > most and not interpreting():
        raise ParameterError(
            f"w has n = {n} blocks: expected at most {most} on a GPU, in {dot}; use fewer, larger ones"
        )


def tile_rule(rows: int, cols: int, n: int, dot: torch.dtype) -> tuple[int, int]:
    """Rows and columns of a tile [n, BM, BN] of accumulators beside as many numbers of x while it is transformed.

    8,192 numbers of 32 bits take 32 registers in each of 256 threads; a product takes at least 16 rows and 8 columns.
    """
    area = (4096 if dot == torch.float64 else 8192) // n
    bm = max(16, min(64, 1 << (area.bit_length() // 2), next_power_of_two(rows)))
    return bm, max(8, min(area // bm, 64, max(16, next_power_of_two(cols))))


def choose_blocks(count: int, cols: int, reds: int, n: int, dot: torch.dtype, device: torch.device) -> Blocks:
    """Tile sizes of the fused kernel: measured on this device if ``configs.json`` has them, else by rule."""
    if interpreting():
        bm, bn, bk = (max(1, min(64, next_power_of_two(size))) for size in (count, cols, cdiv(reds, 2)))
        return Blocks(bm, bn, bk, 4, 1)
    wide = dot in (torch.float32, torch.float64)
    bm, bn = tile_rule(count, cols, n, dot)
    # Operands of 64 columns are registers too where there are no tensor cores.
    bn = min(bn, 32) if wide else bn
    bk = 16 if wide or (n > 32 and dot != torch.int8) else 32
    small = n * bm * bn <= 2048
    # 64 blocks fill the registers of any number of threads: the more, the fewer each lacks.
    most = 16 if dot == torch.float32 or n > 32 else 8
    rule = Blocks(bm, bn, bk, 4 if small else most, 1)
    return configured(shape_of("hadamard_linear", (count, cols, reds), n, dot), device, rule)


def matrix(x: Tensor, features: int) -> Tensor:
    """X [..., features] as [rows, features] whose features lie side by side."""
    flat = x.reshape(rows(x), features)
    return flat if features < 2 or flat.stride(1) == 1 else flat.contiguous()


def product(
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
    """Launch the fused kernel for sizes (rows, n, columns, sum).

    Returns:
        With ``other`` the sums over each tile of rows of y / out_scale times other, [tiles, n, columns]; else None.
    """
    count, n, cols, reds = sizes
    dot = dot_dtype(x, w)
    require_blocks(n, dot)
    blocks = choose_blocks(count, cols, reds, n, dot, x.device)
    acc = accumulator(dot)
    part = None
    if other is not None:
        kind = torch.float64 if torch.float64 in (x.dtype, other.dtype) else torch.float32
        part = x.new_empty((cdiv(count, blocks.bm), n, cols), dtype=kind)
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


def _fake_quantize(x, alpha, n, reciprocal):
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=scale_dtype(x))


@operation("hadamard_quantize", _fake_quantize)
def hadamard_quantize(x: Tensor, alpha: Tensor | None, n: int, reciprocal: bool) -> tuple[Tensor, Tensor]:
    """int8 codes of v = H(alpha * x) across n blocks, and scale (or 1 / scale) per token."""
    require_device(x, alpha)
    codes, scale = _fake_quantize(x, alpha, n, reciprocal)
    flat = matrix(x, x.shape[-1])
    count, cols = flat.shape[0], flat.shape[1] // n
    if interpreting():
        tile = Rows(min(next_power_of_two(count), 64), next_power_of_two(cols))
    else:
        rule = Rows(1, max(1, min(next_power_of_two(cols), 4096 // n)))
        tile = configured(shape_of("hadamard_quantize", (count, cols, 1), n, x.dtype), x.device, rule)
    launch(
        hadamard_quantize_kernel,
        (cdiv(count, tile.rows),),
        flat,
        codes,
        scale,
        None if alpha is None else alpha.contiguous(),
        count,
        cols,
        flat.stride(0),
        warps=tile.warps,
        fusion=False,
        N=n,
        NORM=1 / math.sqrt(n),
        IN_SCALE=alpha is not None,
        RECIPROCAL=reciprocal,
        ACC=working_type(x),
        BM=tile.rows,
        BK=tile.block,
    )
    return codes, scale


def _fake_linear(x, w, alpha, beta, codes_x, scale, codes_w, ste_clip):
    return x.new_empty((*x.shape[:-1], w.shape[0] * w.shape[1]))


@operation("hadamard_linear", _fake_linear)
def linear(
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
    weight, flat = w if codes_w is None else codes_w, matrix(x if codes_x is None else codes_x, x.shape[-1])
    n = weight.shape[0]
    product(
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
    )
    return y


def _fake_integer(codes_x, r, w, factors):
    return r.new_empty((*codes_x.shape[:-1], w.shape[0] * w.shape[1]))


@operation("hadamard_integer_linear", _fake_integer)
def integer_linear(codes_x: Tensor, r: Tensor, w: Tensor, factors: Tensor) -> Tensor:
    """Strict, from the codes of v on: (f32(butterflies of sums) * r) * c_n, times factors [F, n, N] in turn."""
    require_device(codes_x, r, w, factors)
    y = _fake_integer(codes_x, r, w, factors)
    flat = matrix(codes_x, codes_x.shape[-1])
    n = w.shape[0]
    product(
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
