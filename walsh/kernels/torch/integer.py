"""Exact products of int8 matrices (SPEC.md, *cayley_dickson* and *hadamard* with int8 activations).

    integer_mm(a, b) = a b,  a int8 [M, K], b int8 [K, N] in {-1, 0, 1}, result int32 [M, N]

``torch._int_mm`` multiplies int8 into int32 with the dot-product instructions of the machine, within limits: on CUDA
M > 16 and K, N multiples of 8, here reached by padding with zeros. Where it is missing, or a probe finds that it
saturates (a processor that forms 16-bit pairs of products), a float GEMM takes its place: abs(sum) <= 128 K, and
float32 holds every such integer up to K = 2^17, float64 any.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def _float_mm(a: Tensor, b: Tensor) -> Tensor:
    # float64 on CUDA: there float32 may mean TF32 tensor cores, whose accumulator is not documented.
    dtype = torch.float32 if a.device.type == "cpu" and a.shape[-1] <= 1 << 17 else torch.float64
    return (a.to(dtype) @ b.to(dtype)).to(torch.int32)


def _native_mm(a: Tensor, b: Tensor) -> Tensor:
    m, k = a.shape
    n = b.shape[1]
    if a.device.type == "cpu":
        # Operands with strides of their own go through float32 in PyTorch 2.15: past 2^24 a unit is lost.
        return torch._int_mm(a.contiguous(), b.t().contiguous().t())
    pad_m, pad_k, pad_n = max(32 - m, 0), -k % 8, -n % 8
    if pad_m or pad_k:
        a = torch.nn.functional.pad(a, (0, pad_k, 0, pad_m))
    if pad_k or pad_n:
        b = torch.nn.functional.pad(b.t(), (0, pad_k, 0, pad_n)).t()
    return torch._int_mm(a.contiguous(), b)[:m, :n]


@cache
def native_is_exact(device: torch.device) -> bool:
    """Whether ``torch._int_mm`` exists on this device and gets the extreme products right."""
    a = torch.full((64, 256), -128, dtype=torch.int8)
    a[::2] = 127
    b = torch.ones(64, 256, dtype=torch.int8)
    b[::2] = -1
    expected = (a.to(torch.int64) @ b.to(torch.int64).t()).to(torch.int32)
    try:
        found = _native_mm(a.to(device), b.to(device).t()).cpu()
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return torch.equal(found, expected)


def integer_mm(a: Tensor, b: Tensor) -> Tensor:
    """The exact product of codes.

    Args:
        a: int8 [M, K], any values.
        b: int8 [K, N] in {-1, 0, 1}; fastest where it is the transpose of a contiguous [N, K].

    Returns:
        int32 [M, N].
    """
    m, k = a.shape
    n = b.shape[1]
    if m == 0 or k == 0 or n == 0:
        return torch.zeros(m, n, dtype=torch.int32, device=a.device)
    if k == 1:
        # One column has any stride: PyTorch 2.11 takes the transpose of b for b and reads past its end.
        return a.to(torch.int32) * b.to(torch.int32)
    return _native_mm(a, b) if native_is_exact(a.device) else _float_mm(a, b)


def exact_bmm(a: Tensor, b: Tensor, terms: int = 1) -> Tensor:
    """A batch of :func:`integer_mm`: int8 [n, M, K] and [n, K, N] to whole numbers [n, M, N].

    On CPU one float32 batched GEMM: blocks are small, and n calls of an integer GEMM with a repacking of each operand
    cost more than they save.

    Args:
        a, b: as there.
        terms: sums and differences of so many results are exact too.

    Returns:
        float32 where it holds ``terms * 128 K``, else int32.
    """
    if a.device.type == "cpu" and terms * a.shape[2] <= 1 << 17:
        return torch.bmm(a.float(), b.float())
    return torch.stack([integer_mm(x.contiguous(), y) for x, y in zip(a, b, strict=True)])
