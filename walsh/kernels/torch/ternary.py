"""Ternary weights and their two-bit packing (SPEC.md, section *ternary*).

    gamma = mean(abs(w)) + 1e-8,   q = clip(rint(w / gamma), -1, 1),   w [...], q int8 [...]

after Ma et al., *The Era of 1-bit LLMs* (arXiv 2402.17764), section 2. Rounding half to even sends a ratio of exactly
one half to 0, so no division is needed: q is the sign of w where ``abs(w) > gamma / 2``, and 0 elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import hardshrink

from walsh.errors import DTypeError, FormatError, NonFiniteError, ParameterError, ShapeError
from walsh.kernels.torch._check import (
    require_float,
    require_number,
    require_tensor,
    require_ternary,
    require_weight,
    values_can_be_read,
)

RULES = ("absmean", "round")

PIECE = 1 << 17
"""Weights that are widened to float64 at a time: 1 MiB."""


def _threshold(t: float, dtype: torch.dtype) -> float:
    """The largest number of this dtype that is at most t: ``w > t`` and ``w > threshold`` are then the same for w."""
    nearest = torch.tensor(t, dtype=dtype)
    if float(nearest) > t:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))
    return float(nearest)


def check_ternary(w: Tensor, rule: str, ste_clip: float | None = None) -> None:
    """Raise unless ``ternary`` takes these arguments; values are not looked at."""
    if rule not in RULES:
        raise ParameterError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
    if ste_clip is not None:
        require_number("ste_clip", ste_clip, 0.0)
    require_float("w", w)
    if w.numel() == 0:
        raise ShapeError(f"w has shape {list(w.shape)}: expected at least one weight to take the mean of")


def _absmean(w: Tensor) -> float:
    """In float64 whatever w is, so that codes do not depend on the order of this sum in any but freak cases."""
    if not w.is_cpu or not w.is_contiguous():
        return float(w.abs().mean(dtype=torch.float64))
    # Piece by piece, so that the wider numbers stay in the cache; copied, because float64 would not be.
    pieces = (piece.to(torch.float64, copy=True) for piece in torch.split(w.view(-1), PIECE))
    return sum(float(piece.abs_().sum()) for piece in pieces) / w.numel()


def ternary(w: Tensor, rule: str = "absmean") -> tuple[Tensor, Tensor]:
    """Ternary codes of a weight tensor and the scale that they leave out.

    Args:
        w: float [...], not empty.
        rule: ``absmean`` or ``round``.

    Returns:
        q int8 [...] in {-1, 0, 1} and gamma, a 0-dim tensor: float64 for float64 w, else float32.

    Raises:
        DTypeError: w is not float. ShapeError: w is empty. ParameterError: another rule.
        NonFiniteError: NaN or infinity in w.
    """
    check_ternary(w, rule)
    w = w.detach()
    wide = w if w.dtype in (torch.float32, torch.float64) else w.float()
    mean = _absmean(wide)
    if not math.isfinite(mean):
        raise NonFiniteError("w holds NaN or infinity: expected finite weights; look for a diverged update")
    gamma = mean + 1e-8 if rule == "absmean" else 1.0
    threshold = _threshold(gamma / 2, wide.dtype)
    q = hardshrink(wide, threshold).sign_().to(torch.int8)
    return q, torch.tensor(gamma, dtype=wide.dtype, device=w.device)


class _TernaryStraightThrough(torch.autograd.Function):
    """q in the dtype of w; backward passes dq where abs(w) <= ste_clip."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, rule: str, ste_clip: float | None) -> Tensor:
        ctx.ste_clip = ste_clip
        if ste_clip is not None:
            ctx.save_for_backward(w)
        return ternary(w, rule)[0].to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor) -> tuple[Tensor | None, ...]:
        (w,) = ctx.saved_tensors or (None,)
        return clip_gradient(dq, w, ctx.ste_clip), None, None


def clip_gradient(dq: Tensor, w: Tensor | None, ste_clip: float | None) -> Tensor:
    """Keep dq where abs(w) <= ste_clip, put 0 elsewhere; without a clip keep all of it."""
    if ste_clip is None or w is None:
        return dq
    return dq.masked_fill(~(w.abs() <= ste_clip), 0)


def ternary_ste(w: Tensor, rule: str = "absmean", ste_clip: float | None = None) -> Tensor:
    """Ternary codes in the dtype of w, with the straight-through gradient (gamma held constant).

    Args:
        w: float [...], not empty.
        rule: as in :func:`ternary`.
        ste_clip: gradients pass where ``abs(w) <= ste_clip``; everywhere if None.

    Returns:
        q [...] in the dtype of w.

    Raises:
        As :func:`ternary`; ParameterError: ste_clip is negative or not a number.
    """
    check_ternary(w, rule, ste_clip)
    result: Tensor = _TernaryStraightThrough.apply(w, rule, ste_clip)
    return result


def pack_ternary(q: Tensor) -> Tensor:
    """Four codes in a byte, code q + 1, position p in bits ``2 (p & 3)`` of byte ``p >> 2``.

    Args:
        q: int8 [..., K] in {-1, 0, 1}.

    Returns:
        uint8 [..., ceil(K / 4)]; positions past K hold code 1, a zero weight.

    Raises:
        DTypeError: q is not int8. ShapeError: q has no axis. ParameterError: a code outside {-1, 0, 1}.
    """
    require_tensor("q", q)
    if q.dtype != torch.int8:
        raise DTypeError(f"q is {q.dtype}: expected int8 codes; make them with `ternary`")
    if q.ndim == 0:
        raise ShapeError("q has no axis: expected [..., K]")
    require_ternary("q", q)
    k = q.shape[-1]
    codes = torch.nn.functional.pad((q + 1).view(torch.uint8), (0, -k % 4), value=1)
    codes = codes.reshape(*q.shape[:-1], (k + 3) // 4, 4)
    return codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6


def unpack_ternary(packed: Tensor, k: int) -> Tensor:
    """The inverse of :func:`pack_ternary`.

    Args:
        packed: uint8 [..., ceil(k / 4)].
        k: number of codes in a row.

    Returns:
        int8 [..., k].

    Raises:
        DTypeError: packed is not uint8. ShapeError: the last axis is not ceil(k / 4). ParameterError: k is negative.
        FormatError: code 3, or a padding code other than 1.
    """
    require_tensor("packed", packed)
    if packed.dtype != torch.uint8:
        raise DTypeError(f"packed is {packed.dtype}: expected uint8 made by `pack_ternary`")
    if k < 0:
        raise ParameterError(f"k is {k}: expected the number of codes in a row, at least 0")
    if packed.ndim == 0 or packed.shape[-1] != (k + 3) // 4:
        raise ShapeError(f"packed has shape {list(packed.shape)}: expected [..., {(k + 3) // 4}], ceil(k / 4), k = {k}")
    codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    codes = codes.reshape(*packed.shape[:-1], 4 * packed.shape[-1])
    if values_can_be_read(codes):
        if bool((codes == 3).any()):
            raise FormatError("packed holds code 3: expected 0, 1 or 2; the bytes are damaged or not packed weights")
        if bool((codes[..., k:] != 1).any()):
            raise FormatError(f"packed has a padding code other than 1 past position {k}: the bytes are damaged")
    return codes[..., :k].view(torch.int8) - 1


def as_codes(w: Tensor, k: int) -> Tensor:
    """int8 codes [..., k] of integer weights: int8 as they are, uint8 unpacked by shift and mask."""
    if w.dtype == torch.uint8:
        return unpack_ternary(w, k)
    require_ternary("w", w)
    return w


def weight_shape(w: Tensor, k: int) -> tuple[int, ...]:
    """The shape that w must have so that its rows hold k weights: [D, N, k], or [D, N, ceil(k / 4)] if packed."""
    require_weight("w", w)
    width = (k + 3) // 4 if w.dtype == torch.uint8 else k
    return (*w.shape[:-1], width)
