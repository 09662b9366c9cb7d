# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Products of matrices and of Cayley-Dickson blocks as launches of :mod:`walsh.kernels.triton._gemm`.

    out_a[r, c] (+)= f_r g_c sum_b sum_t A[a, b] (s_t p_b[r, t]) (q_{a xor b}[c, t] / u_t)       a, b = 0 .. D-1

An :class:`Operand` says by its strides which way a matrix is read, so that transposes cost nothing. The factors f, g, s
and u (:class:`Scales`) are fused, each of them optional; of several programs that share a sum over t each leaves a
part, and :func:`reduce_parts` adds them up.
"""

from dataclasses import dataclass

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from walsh.algebra import FastProduct, fast_forward
from walsh.kernels.triton._check import row_tile, rows
from walsh.kernels.triton._gemm import reduce_kernel, signed_xor_kernel
from walsh.kernels.triton._launch import cdiv, interpreting, launch
from walsh.kernels.triton.gemm_tiles import Blocks, choose_blocks

_TRITON_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.int8: tl.int8,
    torch.int32: tl.int32,
}


def sign_bits(table: NDArray[np.int8]) -> int:
    """Bit i of the result: whether element i (row-major) of an array of signs is negative."""
    return sum(1 << i for i, sign in enumerate(table.reshape(-1).tolist()) if sign < 0)


@dataclass(frozen=True)
class Operand:
    """A stack of matrices in memory: the tensor and its strides along component, row or column, and t."""

    tensor: Tensor
    comp: int
    major: int
    red: int
    pack: int = 0


def weight_operand(w: Tensor, across: bool = False) -> Operand:
    """Weights [D, N, K], float, int8 or packed, as q with t along K; ``across``: with t along N."""
    comp, n, k = w.stride()
    packed = w.dtype == torch.uint8
    return Operand(w, comp, k, n, 2 if packed else 0) if across else Operand(w, comp, n, k, 1 if packed else 0)


def rowwise(x: Tensor) -> Operand:
    """A contiguous matrix [rows, cols]."""
    flat = x.reshape(rows(x), x.shape[-1]).contiguous()
    return Operand(flat, 0, flat.shape[1], 1)


@dataclass(frozen=True)
class Scales:
    """Factors that are fused.

    Per row (mode 1 divides, 2 multiplies), per column ([cols], or several in turn), and along t on p (times) and q
    (divides).
    """

    row: Tensor | None = None
    row_mode: int = 0
    col: Tensor | None = None
    p: Tensor | None = None
    q: Tensor | None = None


def dot_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the operands: int8 for codes only, a 16-bit float if all floats are, float64 if any, or float32."""
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if not floats:
        return torch.int8
    if torch.float64 in floats:
        return torch.float64
    return floats.pop() if len(floats) == 1 else torch.float32


def accumulator(dot: torch.dtype) -> torch.dtype:
    """int32 for int8 operands, float64 for float64, else float32."""
    return {torch.int8: torch.int32, torch.float64: torch.float64}.get(dot, torch.float32)


def signed_xor_product(
    p: Operand,
    q: Operand,
    sizes: tuple[int, int, int],
    factors: FastProduct,
    out: Operand,
    scales: Scales = Scales(),
    *,
    fast: bool = False,
    add: bool = False,
    full_range: bool = False,
    splits: int = 1,
    fusion: bool = True,
    blocks: Blocks | None = None,
) -> None:
    """Launch :func:`signed_xor_kernel` once.

    Args:
        p, q: operands; ``q.pack`` 1 or 2 if q holds two-bit codes along t or along its columns.
        sizes: rows, columns and length of the sum.
        factors: the sign table with its factorisation.
        out: result, strides along component, row (``major``) and column (``red``); with splits its first axis is the
        split. scales: fused factors.
        fast: use the factorisation.
        add: add to what ``out`` holds.
        full_range: q may hold the code -128.
        splits: programs that share one tile's sum.
        fusion: allow fused multiply-add; never in strict arithmetic.
        blocks: tile sizes, chosen by shape if absent.
    """
    rows, cols, reds = sizes
    d = factors.dimension
    dot = dot_dtype(p.tensor, q.tensor)
    if blocks is None:
        blocks = choose_blocks(rows, cols, reds, d, dot, p.tensor.device, fast)
    share = cdiv(cdiv(reds, splits), blocks.bk) * blocks.bk
    corrections = sum(1 << (a * d + b) for a, b in factors.corrections) if fast else (1 << (d * d)) - 1
    launch(
        signed_xor_kernel,
        (cdiv(rows, blocks.bm) * cdiv(cols, blocks.bn), splits),
        p.tensor,
        q.tensor,
        out.tensor,
        scales.row,
        None if scales.col is None else scales.col.contiguous(),
        scales.p,
        scales.q,
        rows,
        cols,
        reds,
        p.comp,
        p.major,
        p.red,
        q.comp,
        q.major,
        q.red,
        out.tensor.stride(0) if splits > 1 else 0,
        out.comp,
        out.major,
        out.red,
        share,
        warps=blocks.warps,
        stages=blocks.stages,
        fusion=fusion,
        SIGNS=sign_bits(factors.signs),
        FLIP_P=sign_bits(factors.flip_p),
        FLIP_Q=sign_bits(factors.flip_q),
        BASE=sign_bits(factors.base),
        CORRECTIONS=corrections,
        FAST=fast,
        UNROLL=blocks.unroll,
        D=d,
        PACK=q.pack,
        ROW_SCALE=scales.row_mode,
        COL_SCALE=0 if scales.col is None else scales.col.numel() // max(1, cols),
        P_SCALE=scales.p is not None,
        Q_SCALE=scales.q is not None,
        ADD=add,
        FULL_RANGE=full_range,
        DOT=_TRITON_TYPES[dot],
        ACC=_TRITON_TYPES[accumulator(dot)],
        BM=blocks.bm,
        BN=blocks.bn,
        BK=blocks.bk,
    )


def matrix_product(p: Operand, q: Operand, sizes: tuple[int, int, int], out: Tensor, *, add: bool = False) -> Tensor:
    """The D = 1 form of the product kernel: out [rows, cols] (+)= p q^T."""
    signed_xor_product(p, q, sizes, fast_forward(1), Operand(out, 0, out.stride(0), out.stride(1)), Scales(), add=add)
    return out


def reduce_parts(
    part: Tensor,
    out: Tensor | None,
    row_scale: Tensor | None = None,
    *,
    dots: Tensor | None = None,
    other: Operand | None = None,
    limit: Tensor | None = None,
    clip: float | None = None,
) -> None:
    """Launch :func:`reduce_kernel`: the second stage of a split sum.

    Args:
        part: float [splits, comps, rows, cols].
        out: [comps, rows, cols], or None where only ``dots`` is wanted.
        row_scale: [rows], multiplies ``out``.
        dots, other: dots [rows] becomes the sum over comps and cols of part (before row_scale) times other.
        limit, clip: out is 0 where abs(limit) > clip.
    """
    splits, comps, rows, cols = part.shape
    tile, block = row_tile(rows, cols, 1024)
    launch(
        reduce_kernel,
        (cdiv(rows, tile),),
        part,
        out,
        row_scale,
        None if other is None else other.tensor,
        dots,
        limit,
        rows,
        cols,
        splits,
        comps,
        part.stride(0),
        part.stride(1),
        0 if other is None else other.comp,
        0 if other is None else other.major,
        0 if other is None else other.red,
        ROW_SCALE=row_scale is not None,
        OUT=out is not None,
        DOTS=dots is not None,
        PACK=0 if other is None else other.pack,
        CLIP=clip is not None,
        CLIP_VALUE=float(clip or 0.0),
        ROWS=tile,
        BLOCK=min(block, 1024) if not interpreting() else block,
    )
