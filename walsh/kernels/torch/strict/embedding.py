"""Embeddings and heads in strict arithmetic (SPEC.md, *embedding* and *Strict arithmetic*).

    embedding        e(t)     = f32(codes[t]) * scale[t]
    hash_embedding   e(t)     = (sum_i importance[t, i] * (f32(codes_i[h_i(t)]) * scales_i[h_i(t)])) * f32(scale)
    lm_head          logits_t = (f32(a . codes[t]) * r) * scale[t],                               a, r = quantise(x)
    hash_lm_head     logits_t = sum_i importance[t, i] * ((f32(a . codes_i[h_i(t)]) * r) * scales_i[h_i(t)])

Sums over tables run left to right. ids [...], codes int8 [V, C], tables a list of int8 [P_i, C] with scales [P_i],
importance [V, tables], h_i(t) = indices[t, i], by default ``hash_indices``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from walsh.errors import ParameterError, ShapeError
from walsh.kernels.torch._check import require_features, require_range, require_shape
from walsh.kernels.torch.integer import integer_mm
from walsh.kernels.torch.strict._arithmetic import quantise
from walsh.kernels.torch.strict._check import as_integers, require_dtype, require_float32, require_last_axis
from walsh.reference.embedding import hash_indices


@lru_cache(maxsize=8)
def _default_indices(vocabulary: int, tables: int, device: torch.device) -> Tensor:
    return torch.from_numpy(hash_indices(np.arange(vocabulary), tables)).to(device)


def _require_table(name: str, codes: Tensor, scale: Tensor) -> None:
    require_dtype(name, codes, torch.int8)
    require_shape(name, codes, (None, None), "[rows, C]")
    require_dtype(f"scale of {name}", scale, torch.float32)
    require_shape(f"scale of {name}", scale, (codes.shape[0],), "[rows]")


def _checked_ids(ids: Tensor, vocabulary: int) -> Tensor:
    ids = as_integers("ids", ids)
    require_range("ids", ids, 0, vocabulary, "use ids of this vocabulary")
    return ids


def embedding(ids: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Look up rows of an int8 table.

    Args:
        ids: integers [...] in 0 .. V-1.
        codes: int8 [V, C].
        scale: float32 [V].

    Returns:
        float32 [..., C].

    Raises:
        DTypeError, ShapeError, RangeError (an id outside the table).
    """
    _require_table("codes", codes, scale)
    ids = _checked_ids(ids, codes.shape[0])
    return codes[ids].to(torch.float32) * scale[ids][..., None]


def _checked_indices(
    tables: Sequence[Tensor], scales: Sequence[Tensor], importance: Tensor, indices: Tensor | None
) -> Tensor:
    """The indices, int64 [V, tables], once all parts of a hash embedding fit each other."""
    if not tables or len(tables) != len(scales):
        raise ShapeError(f"{len(tables)} tables with {len(scales)} scales: expected one scale vector per table")
    for i, (codes, scale) in enumerate(zip(tables, scales, strict=True)):
        _require_table(f"tables.{i}", codes, scale)
        require_shape(f"tables.{i}", codes, (None, tables[0].shape[1]), "[P, C] with the C of tables.0")
    require_float32(importance=importance)
    require_shape("importance", importance, (None, len(tables)), "[V, tables]")
    if indices is None:
        indices = _default_indices(importance.shape[0], len(tables), importance.device)
    indices = as_integers("indices", indices)
    require_shape("indices", indices, tuple(importance.shape), "[V, tables]")
    for i, codes in enumerate(tables):
        remedy = "use a taller table or other indices"
        require_range(f"indices of tables.{i}", indices[:, i], 0, codes.shape[0], remedy)
    return indices


def _left_to_right(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def hash_embedding(
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    importance: Tensor,
    indices: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Sum rows of several small int8 tables, weighted per token.

    Args:
        ids: integers [...] in 0 .. V-1.
        tables: int8 [P_i, C] each.
        scales: float32 [P_i] each.
        importance: float32 [V, tables].
        indices: integers [V, tables], which row of each table belongs to a token; ``hash_indices`` by default.
        scale: a factor on the result, rounded to float32.

    Returns:
        float32 [..., C].

    Raises:
        DTypeError, ShapeError, RangeError (ids, indices), ParameterError (scale not finite).
    """
    indices = _checked_indices(tables, scales, importance, indices)
    factor = torch.tensor(scale, dtype=torch.float64).to(torch.float32).item()
    if not math.isfinite(factor):
        raise ParameterError(f"scale {scale!r}: expected a finite float32")
    ids = _checked_ids(ids, importance.shape[0])
    parts = []
    for i, (codes, row_scale) in enumerate(zip(tables, scales, strict=True)):
        rows = indices[ids, i]
        parts.append(importance[ids, i][..., None] * (codes[rows].to(torch.float32) * row_scale[rows][..., None]))
    total = _left_to_right(parts)
    return total if factor == 1.0 else total * factor


def lm_head(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Logits by an int8 table.

    Args:
        x: float32 [..., C].
        codes: int8 [V, C].
        scale: float32 [V].

    Returns:
        float32 [..., V].

    Raises:
        DTypeError, ShapeError, NonFiniteError (x).
    """
    _require_table("codes", codes, scale)
    require_float32(x=x)
    require_last_axis("x", x, "C")
    require_features("x", x, codes.shape[1], "C")
    a, r = quantise("x", x)
    tokens = math.prod(x.shape[:-1])
    sums = integer_mm(a.reshape(tokens, x.shape[-1]), codes).reshape(*x.shape[:-1], codes.shape[0])
    return (sums.to(torch.float32) * r) * scale


def hash_lm_head(
    x: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    importance: Tensor,
    indices: Tensor | None = None,
) -> Tensor:
    """Logits of the tied head of a hash embedding: one product per table row, gathered per token.

    Args:
        x: float32 [..., C].
        tables: int8 [P_i, C] each.
        scales: float32 [P_i] each.
        importance: float32 [V, tables].
        indices: integers [V, tables]; ``hash_indices`` by default.

    Returns:
        float32 [..., V].

    Raises:
        DTypeError, ShapeError, RangeError (indices), NonFiniteError (x).
    """
    indices = _checked_indices(tables, scales, importance, indices)
    parts = []
    for i, (codes, scale) in enumerate(zip(tables, scales, strict=True)):
        parts.append(importance[:, i] * lm_head(x, codes, scale)[..., indices[:, i]])
    return _left_to_right(parts)
