"""For every op of the configuration table: what its sizes mean, a call that asks for one entry, and what may be chosen.

| op | M, N, K, D | chosen |
|---|---|---|
| ``signed_xor``, ``signed_xor_fast`` | rows, columns, sum, components (1: a plain product) | Blocks |
| ``hadamard_linear`` (forward and dX), ``hadamard_weight`` | rows, columns, sum, blocks n | Blocks |
| ``hadamard_quantize``, ``hadamard_transform`` | rows, columns of a block, 1, n; rows, columns, 1, 1 | Rows |
| ``attention``, ``attention_dq``, ``attention_dkv`` | queries, keys, features of a head, 1 | Tile |
| ``log_sum``, ``logits_gradient`` | tokens, vocabulary, 1, 1 | Rows |
| ``rms_norm``, ``rms_norm_backward``, ``quantize_activations`` | rows, columns, 1, 1 | Rows |
| ``ternary``, ``ternary_packed`` | weights (packed: bytes), 1, 1, 1 | Rows |

A head mixer is its algebra's linear layer and a chunked loss is plain products and ``log_sum``: they have no entries of
their own. A call makes every launch that its entry decides, so that an entry is good for all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product as combinations
from typing import Any

import torch
from torch import Tensor

from walsh.algebra import fast_forward
from walsh.errors import ParameterError
from walsh.kernels.triton._config import Rows, Shape, Tile
from walsh.kernels.triton.gemm import Operand, Scales, signed_xor_product, weight_operand
from walsh.kernels.triton.gemm_tiles import Blocks

Call = Callable[[], object]

BATCH, HEADS = 4, 8
"""Sequences and heads that attention is measured with."""


def _module(name: str) -> Any:
    """A module of the package, also where a function of the package has its name."""
    return importlib.import_module(f"walsh.kernels.triton.{name}")


class _Make:
    """Tensors of a dtype on a device: random where there is a machine, without content on ``meta``."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.kind = torch.float64 if dtype == torch.float64 else torch.float32

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of this shape."""
        dtype = self.dtype if dtype is None else dtype
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        if dtype == torch.int8:
            return torch.randint(-1, 2, shape, dtype=dtype, device=self.device)
        return torch.randn(shape, device=self.device).to(dtype)

    def ids(self, count: int, below: int) -> Tensor:
        """int64 ids [count] in 0 .. below - 1."""
        return torch.arange(count, device=self.device) % below


def _products(s: Shape, make: _Make) -> Call:
    x, w = make(s.m, s.d * s.k), make(s.d, s.n, s.k)
    integer = s.dtype == torch.int8
    y = make(s.m, s.d * s.n, dtype=torch.float32 if integer else s.dtype)
    scales = Scales(row=make(s.m, dtype=torch.float32).abs() + 1, row_mode=1) if integer else Scales()
    operands = Operand(x, s.k, s.d * s.k, 1), weight_operand(w)
    out, factors = Operand(y, s.n, s.d * s.n, 1), fast_forward(s.d)
    fast = s.op == "signed_xor_fast"
    return lambda: signed_xor_product(*operands, (s.m, s.n, s.k), factors, out, scales, fast=fast)


def _hadamard_linear(s: Shape, make: _Make) -> Call:
    layer = _module("hadamard_layer")
    x, w = make(s.m, s.d * s.k), make(s.d, s.n, s.k)
    alpha, beta = make(s.d, s.k, dtype=make.kind), make(s.d, s.n, dtype=make.kind)
    sizes = (s.m, s.d, s.n, s.k)
    if s.dtype == torch.int8:
        y, scale = make(s.m, s.d * s.n, dtype=torch.bfloat16), make(s.m, 1, dtype=torch.float32).abs() + 1
        rounded: dict[str, Any] = {"transform_input": False, "row_scale": scale, "row_mode": 1}
        return lambda: layer.product(x, w, sizes, w.stride(), 0, y, None, beta, **rounded)
    y, partner = make(s.m, s.d * s.n), make(s.m, s.d * s.n)

    def both() -> None:
        layer.product(x, w, sizes, w.stride(), 0, y, alpha, beta)
        layer.product(x, w, sizes, w.stride(), 0, y, alpha, beta, other=partner)

    return both


def _hadamard_weight(s: Shape, make: _Make) -> Call:
    gradient = _module("hadamard_gradient")
    cols, reds, count = s.m, s.n, s.k
    dy, x, w = make(count, s.d * cols), make(count, s.d * reds), make(s.d, cols, reds)
    alpha, beta = make(s.d, reds, dtype=make.kind), make(s.d, cols, dtype=make.kind)
    codes, q = make(count, s.d * reds, dtype=torch.int8), make(s.d, cols, reds, dtype=torch.int8)
    scale = make(count, 1, dtype=make.kind).abs() + 1

    def both() -> None:
        gradient.sum_rows(dy, x, w, None, beta, alpha, True, True)
        gradient.sum_rows(dy, codes, q, scale, beta, None, True, True)

    return both


def _attention(s: Shape, make: _Make) -> Call:
    module = _module("attention")
    q, k = make(BATCH, s.m, HEADS, s.k), make(BATCH, s.n, HEADS, s.k)
    positions = torch.arange(s.n - s.m, s.n, device=make.device)
    if s.op == "attention":
        return lambda: module.attend(q, k, k, None, None, positions)
    lse = make(BATCH, HEADS, s.m, dtype=make.kind)
    return lambda: module._backward(q, q, k, k, positions, lse)


def _losses(s: Shape, make: _Make) -> Call:
    module = _module("cross_entropy")
    logits, targets = make(s.m, s.n), make.ids(s.m, s.n)
    if s.op == "log_sum":
        return lambda: module._row_losses(logits, targets)
    sums, one = make(s.m, dtype=make.kind), make(dtype=make.kind)
    return lambda: module._logits_gradient(logits, targets, sums, one, one, torch.empty_like(logits))


def _rowwise(s: Shape, make: _Make) -> Call:
    x, weight = make(s.m, s.n), make(s.n)
    if s.op == "quantize_activations":
        return lambda: _module("activations").quantize(x, False, False)
    if s.op == "hadamard_transform":
        return lambda: _module("hadamard_transforms").transform(x, True, False)
    norm = _module("rms_norm")
    if s.op == "rms_norm_backward":
        return lambda: norm._backward(x, x, weight, 1e-6)
    return lambda: (norm.normalize(x, weight, 1e-6, False), norm.normalize_quantize(x, weight, 1e-6, False))


def _hadamard_quantize(s: Shape, make: _Make) -> Call:
    layer = _module("hadamard_layer")
    x, alpha = make(s.m, s.d * s.n), make(s.d, s.n, dtype=make.kind)
    return lambda: layer.hadamard_quantize(x, alpha, s.d, False)


def _ternary(s: Shape, make: _Make) -> Call:
    module = _module("ternary")
    if s.op == "ternary":
        w = make(s.m)
        return lambda: module._ternary(w, "absmean")
    wide = make(s.m, 4)
    return lambda: module._packed(wide, "absmean")


_CALLS: dict[str, Callable[[Shape, _Make], Call]] = {
    "signed_xor": _products,
    "signed_xor_fast": _products,
    "hadamard_linear": _hadamard_linear,
    "hadamard_weight": _hadamard_weight,
    "hadamard_quantize": _hadamard_quantize,
    "hadamard_transform": _rowwise,
    "attention": _attention,
    "attention_dq": _attention,
    "attention_dkv": _attention,
    "log_sum": _losses,
    "logits_gradient": _losses,
    "rms_norm": _rowwise,
    "rms_norm_backward": _rowwise,
    "quantize_activations": _rowwise,
    "ternary": _ternary,
    "ternary_packed": _ternary,
}

OPS = tuple(_CALLS)
"""Every op that takes its configuration from the table."""


def workload(shape: Shape, device: torch.device) -> Call:
    """A call that asks for the entry of this shape, on tensors made here.

    Raises:
        ParameterError: no op has this name.
    """
    if shape.op not in _CALLS:
        raise ParameterError(f"configuration {shape.key}: expected an op of {', '.join(OPS)}; run the tuner again")
    return _CALLS[shape.op](shape, _Make(shape.dtype, device))


def _tall(side: int, size: int) -> bool:
    """Whether a tile's side is longer than twice the shape's, beyond the 16 that a product takes at least."""
    return side > max(16, 2 * size)


def _blocks(s: Shape, rule: Blocks) -> Iterator[Blocks]:
    """No tile larger than the shape; accumulators in at most 128 registers of a thread, for a plain product in 16."""
    wide = s.dtype in (torch.float32, torch.float64)
    steps = (16, 32) if wide or s.d > 2 else (32, 64, 128)
    for bm, bn, bk, warps in combinations((16, 32, 64, 128), (16, 32, 64, 128), steps, (4, 8)):
        room = 128 * 32 * warps // (2 if s.dtype == torch.float64 else 1)
        least = min(16 if s.d == 1 else 1, max(1, s.m * s.n // (32 * warps))) * 32 * warps
        fits = least <= s.d * bm * bn <= room and (s.dtype != torch.int8 or bk >= 32)
        if fits and not (_tall(bm, s.m) or _tall(bn, s.n) or _tall(bk, s.k)):
            for stages in (1, 2) if wide else (2, 3):
                yield replace(rule, bm=bm, bn=bn, bk=bk, warps=warps, stages=stages)


def _hadamard_blocks(s: Shape, rule: Blocks) -> Iterator[Blocks]:
    """Tiles of all n blocks: accumulators and a tile of x in at most 64 registers of a thread each."""
    steps = (16, 32) if s.op == "hadamard_linear" else (16,)
    for bm, bn, bk, warps in combinations((16, 32, 64), (8, 16, 32, 64), steps, (4, 8, 16)):
        if s.op == "hadamard_weight":
            bm, bn = bn, bm  # here the columns of a tile, which a product sums over, are at least 16
        room = 64 * 32 * warps // (2 if s.dtype == torch.float64 else 1)
        sizes = s.d * bm * bn, s.d * bm * bk, s.d * bn * bk
        fits = max(sizes) <= room and sizes[0] >= 8 * 32 * warps and (s.dtype != torch.int8 or bk >= 32)
        if fits and not (_tall(bm, s.m) or _tall(bn, s.n) or _tall(bk, s.k)):
            for stages in (1, 2):
                yield replace(rule, bm=bm, bn=bn, bk=bk, warps=warps, stages=stages)


FIXED_BLOCK = ("rms_norm", "rms_norm_backward", "hadamard_transform")
"""Ops whose program holds whole rows: the block is the row."""

FIXED_ROWS = ("logits_gradient", "ternary", "ternary_packed")
"""Ops whose program has one row, or no rows."""


def _rows(s: Shape, rule: Rows) -> Iterator[Rows]:
    """Four to 32 elements per thread, fewer only if that is all there is; no tile larger than the shape."""
    long = s.m if s.op in ("ternary", "ternary_packed") else s.n
    blocks = (rule.block,) if s.op in FIXED_BLOCK else tuple(1 << power for power in range(4, 14))
    heights = (1,) if s.op in FIXED_ROWS else (1, 2, 4, 8, 16, 32)
    for rows, block, warps in combinations(heights, blocks, (1, 2, 4, 8, 16)):
        each = rows * block * s.d / (32 * warps)
        enough = each >= 4 or (each >= 1 and rows >= s.m and block >= long)
        if enough and each <= 32 and rows <= s.m and (block == rule.block or block <= long):
            yield Rows(rows, block, warps)


def _tiles(s: Shape, rule: Tile) -> Iterator[Tile]:
    """Scores and the tiles of features that live beside them in at most 160 registers of a thread."""
    wide = s.dtype in (torch.float32, torch.float64)
    beside = 2 if s.op == "attention" else 4
    for queries, keys, warps in combinations((16, 32, 64, 128), (16, 32, 64, 128), (4, 8)):
        tall = queries > max(16, s.m) or keys > max(16, s.n)
        held = 2 * queries * keys + beside * max(queries, keys) * max(16, s.k)
        if not tall and held <= (80 if wide else 160) * 32 * warps:
            for stages in (1, 2, 3):
                yield replace(rule, queries=queries, keys=keys, warps=warps, stages=stages)


def candidates(shape: Shape, rule: Any) -> list[Any]:
    """What is worth timing for a shape, the rule's own choice first: pruned to what can fit the registers."""
    if isinstance(rule, Tile):
        found: Iterator[Any] = _tiles(shape, rule)
    elif isinstance(rule, Rows):
        found = _rows(shape, rule)
    elif shape.op in ("hadamard_linear", "hadamard_weight"):
        found = _hadamard_blocks(shape, rule)
    else:
        found = _blocks(shape, rule)
    return [rule, *(choice for choice in found if choice != rule)]
