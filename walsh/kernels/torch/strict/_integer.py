"""Exact products of int8 matrices whose entries may be any int8 (SPEC.md, *Strict arithmetic*).

    integer_mm(a, b)  = a b^T,  a int8 [M, K], b int8 [N, K], result int32 [M, N]
    integer_bmm(a, b) the same over leading axes

Integers leave the order of summation free, so the fastest exact kernel serves. ``torch._int_mm`` is it, with one trap:
on x86 without the VNNI instructions it adds pairs of products in 16 bits, saturating, of activations moved to 0 .. 255.
A pair stays in range for weights in -64 .. 64. There b = 2 (b >> 1) + (b & 1), of which both parts are in that range,
makes it exact at twice the price.

Where ``_int_mm`` is missing, and for batches, float32 is exact over 1024 features: every partial sum is an integer of
at most 1024 * 128^2 = 2^24. Products of int8 are exact in TF32 and bfloat16 units as well.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

EXACT_FEATURES = 1024
"""Most int8 products whose sum float32 always holds exactly."""


@cache
def int_mm_saturates() -> bool:
    """Whether ``torch._int_mm`` on this CPU loses large products."""
    for rows in (1, 32):
        a = torch.full((rows, 64), 127, dtype=torch.int8)
        if bool((torch._int_mm(a, torch.full((64, 32), 127, dtype=torch.int8)) != 64 * 127 * 127).any()):
            return True
    return False


def _cpu_mm(a: Tensor, b: Tensor, saturates: bool) -> Tensor:
    if saturates:
        return 2 * torch._int_mm(a, (b >> 1).t()) + torch._int_mm(a, (b & 1).t())
    return torch._int_mm(a, b.t())


def _cuda_mm(a: Tensor, b: Tensor) -> Tensor:
    """CuBLAS wants M > 16, and K and N in multiples of 8: zeros fill them up."""
    (m, k), n = a.shape, b.shape[0]
    if m <= 16 or k % 8:
        a = torch.nn.functional.pad(a, (0, -k % 8, 0, max(32 - m, 0)))
    if n % 8 or k % 8:
        b = torch.nn.functional.pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def integer_mm(a: Tensor, b: Tensor) -> Tensor:
    """The exact product of codes.

    Args:
        a: int8 [M, K].
        b: int8 [N, K].

    Returns:
        int32 [M, N], a b^T. K may be anything below 2^17, where int32 ends.
    """
    a, b = a.contiguous(), b.contiguous()
    if 0 in (a.shape[0], a.shape[1], b.shape[0]):
        return torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    if a.shape[1] == 1:
        # One column has any stride: PyTorch 2.11 takes the transpose of b for b and reads past its end.
        return a.to(torch.int32) * b.t().to(torch.int32)
    if a.device.type == "cpu":
        return _cpu_mm(a, b, int_mm_saturates())
    return _cuda_mm(a, b) if a.device.type == "cuda" else integer_bmm(a, b)


def integer_bmm(a: Tensor, b: Tensor) -> Tensor:
    """The exact product of batches of codes.

    Args:
        a: int8 [..., M, K].
        b: int8 [..., N, K].

    Returns:
        int32 [..., M, N], a b^T over the last two axes.
    """
    total: Tensor | None = None
    for start in range(0, max(a.shape[-1], 1), EXACT_FEATURES):
        part = slice(start, start + EXACT_FEATURES)
        product = a[..., part].to(torch.float32) @ b[..., part].to(torch.float32).mT
        total = product.to(torch.int32) if total is None else total + product.to(torch.int32)
    assert total is not None  # the range above is never empty
    return total
