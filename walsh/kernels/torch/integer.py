"""Exact products of int8 matrices: what every layer with int8 activations sums (SPEC.md, *Strict arithmetic*).

    integer_mm(a, b)  = a b^T,  a int8 [M, K], b int8 [N, K], result int32 [M, N]
    integer_bmm(a, b) the same over leading axes

Integers leave the order of summation free, so the fastest exact kernel serves; who calls says how large abs(b) may be,
since that decides which are exact. There are two:

``torch._int_mm`` multiplies int8 into int32 with the dot-product instructions of the machine. On CUDA it wants M > 16
and K, N multiples of 8: zeros fill them up. On x86 without the VNNI instructions it adds pairs of products in 16 bits,
saturating, of activations moved to 0 .. 255: exact for b in -64 .. 64. A larger b = 2 (b >> 1) + (b & 1), of which both
parts are in that range, there takes two products.

float32 is exact while ``128 largest K <= 2^24``: every partial sum is an integer that it holds. That is K = 1024 for
any int8 and 2^17 for codes in {-1, 0, 1}; a deeper sum is taken in pieces. The TF32 and bfloat16 units that may stand
in for float32 hold every int8 and accumulate in float32 (PTX ISA, *mma*), so they are exact as well. It serves where
``_int_mm`` is missing, and for batches of blocks too small to repay an integer product each.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

_REPAID = 1 << 28
"""Multiply-adds from which a matrix repays a launch of its own on a GPU: some 10 us in float32."""


def exact_features(largest: int) -> int:
    """Most products of an int8 and an integer up to ``largest`` whose sum float32 always holds exactly."""
    return (1 << 24) // (128 * largest)


def _float_mm(a: Tensor, b: Tensor) -> Tensor:
    """Batches [n, M, K] and [n, N, K] to whole numbers in float32 [n, M, N]; exact up to :func:`exact_features`."""
    return torch.bmm(a.to(torch.float32), b.to(torch.float32).mT)


def _pieced_mm(a: Tensor, b: Tensor, step: int) -> Tensor:
    """:func:`integer_mm` by :func:`_float_mm`, ``step`` features at a time."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], step):
        part = slice(start, start + step)
        total += _float_mm(a[None, :, part], b[None, :, part])[0].to(torch.int32)
    return total


def _padded_mm(a: Tensor, b: Tensor) -> Tensor:
    """``torch._int_mm`` within the limits of cuBLAS."""
    (m, k), n = a.shape, b.shape[0]
    if m <= 16 or k % 8:
        a = torch.nn.functional.pad(a, (0, -k % 8, 0, max(32 - m, 0)))
    if n % 8 or k % 8:
        b = torch.nn.functional.pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def _native_mm(a: Tensor, b: Tensor) -> Tensor:
    # Operands with strides of their own go through float32 in PyTorch 2.15: past 2^24 a unit is lost.
    a, b = a.contiguous(), b.contiguous()
    return torch._int_mm(a, b.t()) if a.device.type == "cpu" else _padded_mm(a, b)


@cache
def native_limit(device: torch.device) -> int:
    """The largest abs(b) for which ``torch._int_mm`` is exact on this device.

    Returns:
        128: any int8. 64: pairs of products saturate. 0: it is missing, or wrong even there.
    """
    for largest in (128, 64):
        a = torch.tensor([127, -128], dtype=torch.int8).repeat(16)[:, None].expand(32, 256)
        b = torch.tensor([min(largest, 127), -largest], dtype=torch.int8).repeat(16)[:, None].expand(32, 256)
        expected = 256 * a[:, :1].to(torch.int32) * b[:, 0].to(torch.int32)
        try:
            # One row may have a kernel of its own.
            found = [_native_mm(x.to(device), b.to(device)).cpu() for x in (a, a[:1], a[1:2])]
        except (RuntimeError, NotImplementedError, AttributeError):
            return 0
        if torch.equal(found[0], expected) and torch.equal(torch.cat(found[1:]), expected[:2]):
            return largest
    return 0


def integer_mm(a: Tensor, b: Tensor, largest: int = 128) -> Tensor:
    """The exact product of codes.

    Args:
        a: int8 [M, K].
        b: int8 [N, K].
        largest: no abs(b) exceeds it; 1 for ternary codes.

    Returns:
        int32 [M, N], a b^T. 128 * largest * K must be below 2^31, where int32 ends.
    """
    if 0 in (a.shape[0], a.shape[1], b.shape[0]):
        return torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    if a.shape[1] == 1:
        # One column has any stride: PyTorch 2.11 takes the transpose of b for b and reads past its end.
        return a.to(torch.int32) * b.t().to(torch.int32)
    limit = native_limit(a.device)
    if limit == 0:
        return _pieced_mm(a, b, exact_features(largest))
    if largest > limit:
        return 2 * _native_mm(a, b >> 1) + _native_mm(a, b & 1)
    return _native_mm(a, b)


def whole_bmm(a: Tensor, b: Tensor, largest: int = 128, terms: int = 1) -> Tensor:
    """A batch of :func:`integer_mm` in the dtype where it is made.

    Blocks are small as a rule: one float32 batched product beats a call and two repacked operands for each of them.

    Args:
        a: int8 [n, M, K].
        b: int8 [n, N, K].
        largest: as in :func:`integer_mm`.
        terms: sums and differences of so many results are exact too.

    Returns:
        Whole numbers [n, M, N], the products a b^T. On CPU, where float32 holds them and their ``terms``, float32,
        whose zeros may be negative; else int32.
    """
    (matrices, m, k), n, on_cpu = a.shape, b.shape[1], a.device.type == "cpu"
    if terms * k <= exact_features(largest) and (on_cpu or m * n * k < _REPAID):
        product = _float_mm(a, b)
        return product if on_cpu else product.to(torch.int32)
    out = torch.empty(matrices, m, n, dtype=torch.int32, device=a.device)
    for total, x, y in zip(out, a, b, strict=True):
        total.copy_(integer_mm(x, y, largest))
    return out


def integer_bmm(a: Tensor, b: Tensor, largest: int = 128) -> Tensor:
    """:func:`integer_mm` over leading axes.

    Args:
        a: int8 [..., M, K].
        b: int8 [..., N, K], with the leading axes of a.
        largest: as in :func:`integer_mm`.

    Returns:
        int32 [..., M, N], a b^T over the last two axes.
    """
    (*lead, m, k), n = a.shape, b.shape[-2]
    matrices = math.prod(lead)
    product = whole_bmm(a.reshape(matrices, m, k), b.reshape(matrices, n, k), largest)
    return product.to(torch.int32).view(*lead, m, n)
