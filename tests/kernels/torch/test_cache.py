"""The cache: any split is one append, each sequence has a length, and nobody sees another's slots."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")
import torch
from torch import Tensor

from walsh import errors
from walsh.kernels import torch as kernels


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [H, d] over k, v [S, H, d]; zeros over nothing."""
    return torch.einsum("hs,shd->hd", (torch.einsum("hd,shd->hs", q, k) / math.sqrt(q.shape[-1])).softmax(-1), v)


def test_cache_in_any_split_equals_one_append() -> None:
    k, v = torch.randn(2, 6, 2, 3), torch.randn(2, 6, 2, 3)
    whole = kernels.KVCache(2, 6, 2, 3)
    assert whole.append(k, v).tolist() == [list(range(6))] * 2
    for cut in range(7):
        split = kernels.KVCache(2, 6, 2, 3)
        split.append(k[:, :cut], v[:, :cut])
        split.append(k[:, cut:], v[:, cut:])
        assert torch.equal(split.keys, whole.keys)
        assert torch.equal(split.values, whole.values)
        assert torch.equal(split.lengths, whole.lengths)


def test_cache_keeps_a_length_per_sequence() -> None:
    cache = kernels.KVCache(2, 4, 1, 2)
    ones = torch.ones(2, 3, 1, 2)
    assert cache.append(ones, ones, torch.tensor([3, 1])).tolist() == [[0, 1, 2], [0, -1, -1]]
    before = cache.keys.clone(), cache.lengths.clone()
    with pytest.raises(errors.CapacityError):
        cache.append(ones, ones, torch.tensor([2, 1]))
    assert torch.equal(cache.keys, before[0])
    assert torch.equal(cache.lengths, before[1])
    assert cache.append(2 * ones[:, :1], ones[:, :1]).tolist() == [[3], [1]]
    other = cache.fork([1, 1, 0])
    assert other.lengths.tolist() == [2, 2, 4]
    cache.reset([0])
    cache.truncate(torch.tensor([0, 1]))
    assert cache.lengths.tolist() == [0, 1]
    assert other.keys[2, :, 0, 0].tolist() == [1, 1, 1, 2]
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]
    with pytest.raises(errors.RangeError):
        cache.truncate(torch.tensor([1, 0]))
    with pytest.raises(errors.RangeError):
        cache.fork([2])


def test_slots_that_nobody_sees_cannot_spoil_a_cache() -> None:
    cache = kernels.KVCache(2, 9, 3, 4)
    k, v, q = (torch.randn(2, 3, 3, 4) for _ in range(3))
    cache.append(k, v)
    cache.keys[:, 3:], cache.values[:, 3:] = math.nan, math.inf
    for positions in (torch.tensor([[2], [2]]), torch.tensor([[2], [0]]), torch.tensor([[2], [-1]])):
        found = cache.attend(q[:, :1], positions)
        for b, end in enumerate(positions[:, 0].tolist()):
            expected = plain_attention(q[b, 0], k[b, : end + 1], v[b, : end + 1])
            torch.testing.assert_close(found[b, 0], expected)
    # One of the two still sees a slot that the other must not.
    cache.keys[0, 2] = math.nan
    found = cache.attend(q[:, :1], torch.tensor([[1], [2]]))
    torch.testing.assert_close(found[0, 0], plain_attention(q[0, 0], k[0, :2], v[0, :2]))
    torch.testing.assert_close(found[1, 0], plain_attention(q[1, 0], k[1], v[1]))
    assert torch.isnan(cache.attend(q[:1].expand(2, 3, 3, 4)[:, :1], torch.tensor([[2], [2]]))[0]).all()


def test_whole_appends_equal_counted_ones() -> None:
    whole, counted = kernels.KVCache(2, 6, 2, 4), kernels.KVCache(2, 6, 2, 4)
    for tokens in (3, 1, 2):
        k, v = torch.randn(2, tokens, 2, 4), torch.randn(2, tokens, 2, 4)
        positions = whole.append(k, v)
        assert torch.equal(positions, counted.append(k, v, torch.full((2,), tokens)))
        assert positions.dtype == torch.int64
        positions += 1  # what is returned is nobody else's
    for name in ("keys", "values", "lengths"):
        assert torch.equal(getattr(whole, name), getattr(counted, name))
    with pytest.raises(errors.CapacityError):
        whole.append(k[:, :1], v[:, :1])
    kernels.KVCache(0, 6, 2, 4).append(k[:0], v[:0])
