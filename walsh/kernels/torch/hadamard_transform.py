"""Walsh-Hadamard transform in Sylvester order (SPEC.md, section *hadamard*).

    y_g = sum_h (-1)^popcount(g & h) x_h / sqrt(n)                                            x [..., n]

The transform is a product with the Sylvester matrix of at most 64 rows, whose entries are 1 and -1; a longer one is a
product along the low bits of the index and the transform along the high bits, H_ab = H_a (x) H_b, piece by piece so
that what lies between stays in the cache. That does more additions than radix-2 butterflies, but passes over the data
two or three times instead of log2 n times, and data passes are what a CPU waits for. Then one product with 1 / sqrt(n).
bfloat16 is widened piece by piece, or not at all where a product of this CPU is found to add in float32 and round once.
Integers, and float64 in the order of the definition, are transformed by butterflies (Fino and Algazi, *Unified matrix
treatment of the fast Walsh-Hadamard transform*, 1976).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from walsh.algebra import is_power_of_two, sylvester
from walsh.errors import ParameterError, ShapeError
from walsh.kernels.torch._check import INTEGERS, accumulate_dtype, require_float, require_tensor

RADIX = 64
"""Longest transform that is one product; measured: at 32 four to ten times faster than butterflies on two cores."""

PIECE = 1 << 18
"""Elements that are transformed at a time where one product is not enough: 1 MiB, within a core's own cache."""

PROBE_ROWS = 4096
"""Rows of the product by which :func:`_rounds_once` judges, and of the smallest one that it allows."""

_MATRICES: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def _matrix(n: int, like: Tensor) -> Tensor:
    """H [n, n] in the dtype and on the device of ``like``; made once."""
    key = (n, like.dtype, like.device)
    if key not in _MATRICES:
        _MATRICES[key] = torch.tensor(sylvester(n).tolist(), dtype=like.dtype, device=like.device)
    return _MATRICES[key]


def _low_factor(n: int) -> int:
    """Size of the first product: n, or the first of two or more factors of at most 32 that differ by at most 2."""
    if n <= RADIX:
        return n
    bits = n.bit_length() - 1
    return 1 << -(-bits // -(-bits // 5))


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
    low = _low_factor(n)
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


def _one_product(x: Tensor, factor: float) -> Tensor:
    """``factor * (x H)`` for bfloat16 x [rows, n]. Not for float32, whose product takes the factor before it adds."""
    return torch.addmm(x.new_empty(()), x, _matrix(x.shape[1], x), beta=0, alpha=factor)


@cache
def _rounds_once(n: int) -> bool:
    """Whether a large bfloat16 product on this CPU adds in float32 and rounds after the factor, not before it too.

    The sums are whole numbers below 2^24, so that their order does not matter.
    """
    x = (torch.arange(PROBE_ROWS * n) * 97 % 251 - 125).view(PROBE_ROWS, n)
    factor = 1 / math.sqrt(n)
    expected = (x.float() @ _matrix(n, x.float())).mul_(factor).bfloat16()
    return torch.equal(_one_product(x.bfloat16(), factor), expected)


def _along_rows(x: Tensor, factor: float) -> Tensor:
    """``factor`` times the transform of each row of contiguous x [rows, n], n > 1; new memory in the dtype of x."""
    rows, n = x.shape
    short, eager = n <= RADIX, x.is_cpu and not torch.compiler.is_compiling()
    # Fewer elements than the probe's may take another path through PyTorch than the one that was tried.
    if short and eager and x.dtype == torch.bfloat16 and rows >= PROBE_ROWS and n >= 16 and _rounds_once(n):
        return _one_product(x, factor)
    narrow = x.dtype in (torch.bfloat16, torch.float16)
    if x.dtype == torch.float64 or not eager or rows * n <= PIECE or (short and not narrow):
        return transform(x.to(accumulate_dtype(x)), 1).mul_(factor).to(x.dtype)
    y, step = torch.empty_like(x), max(PIECE // n, 1)
    for start in range(0, rows, step):
        piece = x[start : start + step].to(accumulate_dtype(x))
        y[start : start + step] = transform(piece, 1).mul_(factor)
    return y


class _Transform(torch.autograd.Function):
    """The orthonormal or plain transform along the last axis: its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, normalize: bool) -> Tensor:
        ctx.normalize = normalize
        n = x.shape[-1]
        if n == 1 or x.numel() == 0:
            return x.clone()
        factor = 1 / math.sqrt(n) if normalize else 1.0
        return _along_rows(x.reshape(-1, n).contiguous(), factor).view(x.shape)

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
    require_tensor("x", x)
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
