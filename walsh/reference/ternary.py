"""Ternary weights and their two-bit packing (SPEC.md, section *ternary*).

    gamma = mean(abs(w)) + 1e-8,   q = clip(rint(w / gamma), -1, 1)            w [...], q int8 [...], gamma a scalar
    ternary_ste:  the same q with dw = dq where abs(w) <= ste_clip, else 0                    (gamma held constant)
    pack_ternary: code q + 1 of position p in bits 2 (p & 3) of byte p >> 2    q [..., K], packed [..., ceil(K/4)]

Source: Ma et al., *The Era of 1-bit LLMs* (arXiv 2402.17764), section 2; straight-through gradients: Bengio et al.
(arXiv 1308.3432).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from walsh.errors import DTypeError, FormatError, NonFiniteError, ParameterError, ShapeError
from walsh.reference._check import (
    Array,
    Float,
    as_array,
    as_dtype,
    as_float,
    as_upstream,
    ieee,
    is_float,
    require_axes,
    require_integer,
    require_number,
    require_shape,
    require_ternary,
)

RULES = ("absmean", "round")


def require_rule(rule: object, ste_clip: object = None) -> None:
    """ParameterError unless this is a rounding rule and ste_clip is None or a number of at least 0."""
    if rule not in RULES:
        raise ParameterError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
    if ste_clip is not None:
        require_number("ste_clip", ste_clip, 0.0)


@ieee
def ternary(w: ArrayLike, rule: str = "absmean") -> tuple[NDArray[np.int8], np.float64]:
    """Ternary codes and the scale gamma that they leave out.

    Args:
        w: float [...], not empty.
        rule: ``absmean``, or ``round`` for gamma = 1.

    Returns:
        q int8 [...] in {-1, 0, 1}, and gamma.

    Raises:
        ParameterError: another rule. DTypeError: w is not float. ShapeError: w is empty.
        NonFiniteError: NaN or infinity in w.
    """
    require_rule(rule)
    w = as_float("w", w)
    if w.size == 0:
        raise ShapeError(f"w has shape {list(w.shape)}: expected at least one weight to take the mean of")
    if not np.isfinite(w).all():
        raise NonFiniteError("w holds NaN or infinity: expected finite weights; look for a diverged update")
    gamma = np.float64(np.abs(w).mean() + 1e-8 if rule == "absmean" else 1.0)
    return np.asarray(np.clip(np.rint(w / gamma), -1, 1), dtype=np.int8), gamma


def ternary_ste(w: ArrayLike, rule: str = "absmean", ste_clip: float | None = None) -> Float:
    """The codes of :func:`ternary` as float64 [...], for the straight-through gradient of its backward.

    Raises:
        As :func:`ternary`; ParameterError: ste_clip is negative or not a number.
    """
    require_rule(rule, ste_clip)
    return ternary(w, rule)[0].astype(np.float64)


def ternary_ste_backward(
    w: ArrayLike, dq: ArrayLike, rule: str = "absmean", ste_clip: float | None = None
) -> tuple[Float]:
    """Straight-through gradient: dq float [...] becomes (dw [...],).

    Raises:
        As :func:`ternary_ste`; ShapeError: dq has not the shape of w.
    """
    q = ternary_ste(w, rule, ste_clip)
    return (straight_through(as_upstream("dq", dq, q.shape), as_float("w", w), ste_clip),)


def straight_through(dq: Float, w: Float, ste_clip: float | None) -> Float:
    """``dq`` where ste_clip is None or ``abs(w) <= ste_clip``, else 0."""
    return dq.copy() if ste_clip is None else np.where(np.abs(w) <= ste_clip, dq, 0.0)


def pack_ternary(q: ArrayLike) -> NDArray[np.uint8]:
    """Four codes to a byte.

    Args:
        q: int8 [..., K] in {-1, 0, 1}.

    Returns:
        uint8 [..., ceil(K / 4)]; positions past K hold code 1, a zero weight.

    Raises:
        DTypeError: q is not int8. ShapeError: q has no axis. ParameterError: another value.
    """
    q = as_dtype("q", q, np.int8, "make codes with `ternary`")
    require_axes("q", q, 1, "[..., K]")
    require_ternary("q", q)
    k = q.shape[-1]
    codes = np.ones((*q.shape[:-1], -(-k // 4), 4), dtype=np.uint8)
    codes.reshape(*q.shape[:-1], codes.shape[-2] * 4)[..., :k] = q + 1
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes << np.array([0, 2, 4, 6], dtype=np.uint8), axis=-1)
    return packed


def unpack_ternary(packed: ArrayLike, k: int) -> NDArray[np.int8]:
    """The inverse of :func:`pack_ternary`: uint8 [..., ceil(k / 4)] becomes int8 [..., k].

    Raises:
        ParameterError: k is not an integer of at least 0. DTypeError: packed is not uint8.
        ShapeError: its last axis is not ceil(k / 4). FormatError: code 3, or a padding code other than 1.
    """
    k = require_integer("k", k, 0)
    packed = as_dtype("packed", packed, np.uint8, "make it with `pack_ternary`")
    require_axes("packed", packed, 1, "[..., ceil(k/4)]")
    width = -(-k // 4)
    require_shape("packed", packed, (*packed.shape[:-1], width), f"[..., ceil(k/4)] with k = {k}")
    codes = (packed[..., None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & np.uint8(3)
    codes = codes.reshape(*packed.shape[:-1], width * 4)
    if (codes == 3).any():
        raise FormatError("packed holds code 3: expected 0, 1 or 2; the bytes are damaged or not packed weights")
    if (codes[..., k:] != 1).any():
        raise FormatError(f"packed has a padding code other than 1 past position {k}: the bytes are damaged")
    return codes[..., :k].astype(np.int8) - np.int8(1)


def as_blocks(w: ArrayLike, k: int, letters: str) -> Array:
    """Weights of a linear layer as [D, N, k]: float64, or int8 codes, unpacked if they came packed.

    Raises:
        DTypeError: neither float, int8 nor uint8. ShapeError: another shape. ParameterError, FormatError: bad codes.
    """
    w = as_array("w", w)
    if w.dtype == np.uint8:
        require_shape("w", w, (w.shape[0], w.shape[1], -(-k // 4)), f"{letters} packed four to a byte, K = {k}")
        return unpack_ternary(w, k)
    require_shape("w", w, (w.shape[0], w.shape[1], k), letters)
    if w.dtype == np.int8:
        require_ternary("w", w)
        return w
    if not is_float(w):
        raise DTypeError(f"w is {w.dtype}: expected a float dtype, int8 codes, or uint8 made by `pack_ternary`")
    return as_float("w", w)
