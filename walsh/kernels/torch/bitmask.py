"""Ternary codes as a mask and signs (SPEC.md, section *bitmask*).

    row-major position p is bit ``p & 7`` of byte ``p >> 3`` of mask, 1 = non-zero; one sign bit per non-zero, 1 = +1

2 - p0 bits per weight at a fraction p0 of zeros, against 2 for the two-bit packing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from walsh.errors import DTypeError, FormatError, ParameterError
from walsh.kernels.torch._check import require_shape, require_tensor, require_ternary


def _pack_bits(bits: Tensor) -> Tensor:
    """Bool [n] to uint8 [ceil(n / 8)], least significant bit first."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(dim=1, dtype=torch.uint8)


def _unpack_bits(name: str, packed: Tensor, n: int) -> Tensor:
    """The inverse for n bits, refusing a wrong length and set padding bits."""
    if packed.numel() != (n + 7) // 8:
        raise FormatError(f"{name} has {packed.numel()} bytes: expected {(n + 7) // 8} for {n} bits; truncated?")
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1).view(-1).bool()
    if bool(bits[n:].any()):
        raise FormatError(f"{name} has a padding bit set past bit {n}: expected 0; the bytes are damaged")
    return bits[:n]


def bitmask_encode(q: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and signs of ternary codes.

    Args:
        q: int8 in {-1, 0, 1}, any shape.

    Returns:
        mask uint8 [ceil(size / 8)] and signs uint8 [ceil(non-zeros / 8)]; padding bits are 0.

    Raises:
        DTypeError: q is not int8. ParameterError: a code outside {-1, 0, 1}.
    """
    require_tensor("q", q)
    if q.dtype != torch.int8:
        raise DTypeError(f"q is {q.dtype}: expected int8 codes; make them with `ternary`")
    require_ternary("q", q)
    flat = q.reshape(-1)
    nonzero = flat != 0
    return _pack_bits(nonzero), _pack_bits(flat[nonzero] > 0)


def bitmask_decode(mask: Tensor, signs: Tensor, shape: Sequence[int]) -> Tensor:
    """The codes that :func:`bitmask_encode` was given.

    Args:
        mask, signs: uint8 vectors.
        shape: of the codes.

    Returns:
        q int8 of this shape.

    Raises:
        FormatError: a wrong length, a set padding bit, or signs that do not fit the mask. DTypeError: not uint8.
        ShapeError: not a vector. ParameterError: a negative length in shape.
    """
    for name, packed in (("mask", mask), ("signs", signs)):
        if packed.dtype != torch.uint8:
            raise DTypeError(f"{name} is {packed.dtype}: expected uint8 made by `bitmask_encode`")
        require_shape(name, packed, (None,), "a vector of bytes")
    if any(length < 0 for length in shape):
        raise ParameterError(f"shape is {list(shape)}: expected lengths of at least 0")
    nonzero = _unpack_bits("mask", mask, math.prod(shape))
    positive = _unpack_bits("signs", signs, int(nonzero.sum()))
    q = torch.zeros(nonzero.numel(), dtype=torch.int8, device=mask.device)
    q[nonzero] = positive.to(torch.int8) * 2 - 1
    return q.view(tuple(shape))
