"""Attention: the same bits in both packages, and those of one query and head at a time over its visible keys."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from both_packages import F32, assert_same_bits, both, ternary_codes, to_torch, wild

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict
from walsh.reference.strict._arithmetic import quantise


def attention_by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One query and head at a time, over its visible keys only."""
    batch, queries, heads, d = q.shape
    o = np.zeros(q.shape, dtype=F32)
    for b, t, h in np.ndindex(batch, queries, heads):
        visible = int(positions[b, t]) + 1
        if visible == 0:
            continue
        (qa, qr), (ka, kr), (va, vr) = (quantise("", x) for x in (q[b, t, h], k[b, :visible, h], v[b, :visible, h]))
        sums = ka.astype(np.int64) @ qa.astype(np.int64)
        score = ((sums.astype(F32) * qr) * kr[:, 0]) * F32(1 / math.sqrt(d))
        e = strict.exp(score - score.max())
        o[b, t, h] = strict.psum((e[:, None] * vr) * va.astype(F32), axis=0) / strict.psum(e)
    return o


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (3, 40), (70, 70), (1, 65)])
def test_attention(rng: np.random.Generator, queries: int, keys: int) -> None:
    q, k, v = wild(rng, 2, queries, 2, 6), wild(rng, 2, keys, 2, 6), wild(rng, 2, keys, 2, 6)
    o = both("attention", q, k, v)
    last = np.broadcast_to(np.arange(queries) + keys - queries, (2, queries))
    np.testing.assert_array_equal(o, attention_by_definition(q, k, v, last))
    positions = rng.integers(-1, keys, (2, queries))
    o = both("attention", q, k, v, positions)
    np.testing.assert_array_equal(o, attention_by_definition(q, k, v, positions))
    assert not o[positions < 0].view(np.int32).any()


def test_attention_in_tiles_is_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (to_torch(wild(rng, 2, 40, 2, 6)) for _ in range(3))
    whole = torch_strict.attention(q, k, v)
    monkeypatch.setattr(sys.modules["walsh.kernels.torch.strict.attention"], "_TILE", 5000)
    monkeypatch.setattr(sys.modules["walsh.kernels.torch.strict.cayley_dickson"], "_TILE", 100)
    assert_same_bits(whole.numpy(), torch_strict.attention(q, k, v))
    both("cayley_dickson_linear", wild(rng, 9, 40), ternary_codes(rng, 8, 3, 5), wild(rng, 3))


def test_invisible_keys_and_padding_queries_never_matter(rng: np.random.Generator) -> None:
    q, k, v = wild(rng, 1, 3, 2, 4), wild(rng, 1, 6, 2, 4), wild(rng, 1, 6, 2, 4)
    positions = np.array([[1, -1, 3]])
    expected = both("attention", q, k, v, positions)
    q[:, 1] = k[:, 4:] = v[:, 4:] = np.nan
    assert_same_bits(expected, torch.from_numpy(both("attention", q, k, v, positions)))


def test_attention_of_nothing(rng: np.random.Generator) -> None:
    for b, t, s in ((0, 2, 2), (2, 0, 3), (2, 2, 0)):
        o = both("attention", wild(rng, b, t, 1, 4), wild(rng, b, s, 1, 4), wild(rng, b, s, 1, 4), np.full(t, -1))
        assert not o.any()


@pytest.mark.parametrize("positions", [[-2, 0], [0, 3]])
def test_attention_refuses_positions_out_of_range(rng: np.random.Generator, positions: list[int]) -> None:
    q, k = wild(rng, 1, 2, 1, 4), wild(rng, 1, 3, 1, 4)
    with pytest.raises(errors.RangeError):
        strict.attention(q, k, k, np.array(positions))
    with pytest.raises(errors.RangeError):
        torch_strict.attention(to_torch(q), to_torch(k), to_torch(k), torch.tensor(positions))
