"""Rotary positions, attention and its caches, head mixers: against formulas in float64; any split is the whole."""

import numpy as np
import pytest
from interpreted import BF16, F32, cayley_dickson_formula, check, hadamard_formula, rand, torch

from walsh import errors
from walsh.kernels import triton as kernels


@pytest.mark.parametrize("algebra", ["complex", "octonion", "hadamard"])
def test_head_mixer(algebra):
    n = 2 if algebra == "complex" else 8

    def formula(x, w, beta):
        groups = x.reshape(3, 2, n * 5)
        if algebra == "hadamard":
            mixed = hadamard_formula(groups, w.transpose(1, 2), torch.ones(n, 5).double(), beta)
        else:
            mixed = cayley_dickson_formula(groups, w.transpose(1, 2), beta)
        return mixed.reshape(x.shape)

    check(lambda *a: kernels.head_mixer(*a, algebra=algebra), formula, (rand(3, 2 * n, 5), rand(n, 5, 5), rand(5)))


@pytest.mark.parametrize("positions", [None, torch.tensor([0, 7, 999_999]), torch.tensor([[0, 5, 9], [3, 3, 100_000]])])
def test_rope(positions):
    def formula(x):
        places = (torch.arange(3) if positions is None else positions).double()
        angle = (places[..., None] * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8))[..., None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
        return torch.stack(turned, dim=-1).flatten(-2)

    check(lambda x: kernels.rope(x, positions), formula, (rand(2, 3, 2, 8),))


def attention_formula(positions):
    def formula(q, k, v):
        score = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        visible = (torch.arange(k.shape[1]) <= positions[:, :, None])[:, None]
        p = score.masked_fill(~visible, -1e30).softmax(-1) * visible
        return torch.einsum("bhts,bshd->bthd", p, v)

    return formula


@pytest.mark.parametrize("shape", [(2, 5, 9, 3, 4), (1, 1, 70, 2, 8), (2, 33, 40, 1, 20)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_attention(shape, dtype):
    batch, tokens, keys, heads, d = shape
    positions = torch.from_numpy(np.random.default_rng(3).integers(-1, keys, (batch, tokens)))
    inputs = [rand(batch, length, heads, d, dtype=dtype, seed=i) for i, length in enumerate((tokens, keys, keys))]
    check(lambda *a: kernels.attention(*a, positions), attention_formula(positions), inputs)


def test_attention_ignores_what_it_does_not_see():
    q, k, v = (rand(1, 4, 1, 4, seed=i) for i in range(3))
    clean = kernels.attention(q, k, v)
    k[0, 3], v[0, 2, 0, 1] = float("nan"), float("nan")
    dirty = kernels.attention(q, k, v)
    assert torch.equal(dirty[0, :2], clean[0, :2])
    assert torch.isnan(dirty[0, 2]).tolist() == [[False, True, False, False]]


def test_cache_split_equals_whole():
    k, v, q = (rand(2, 6, 2, 4, seed=i) for i in range(3))
    for kind in (kernels.KVCache, kernels.strict.Int8KVCache):
        whole, parts = kind(2, 8, 2, 4), kind(2, 8, 2, 4)
        positions = whole.append(k, v)
        assert positions.tolist() == [list(range(6))] * 2
        parts.append(k[:, :2], v[:, :2])
        later = parts.append(k[:, 2:], v[:, 2:])
        assert torch.equal(whole.attend(q[:, 2:], later), parts.attend(q[:, 2:], later))
        forked = parts.fork(torch.tensor([1]))
        forked.truncate(torch.tensor([3]))
        assert forked.append(k[:1], v[:1], torch.tensor([1])).tolist() == [[3, -1, -1, -1, -1, -1]]
        assert parts.lengths.tolist() == [6, 6]
        with pytest.raises(errors.CapacityError):
            parts.append(k, v)


def test_int8_cache_is_near_the_float_one():
    k, v, q = (rand(2, 6, 2, 16, seed=i) for i in range(3))
    caches = kernels.KVCache(2, 8, 2, 16, torch.int8), kernels.KVCache(2, 8, 2, 16)
    near, exact = (cache.attend(q, cache.append(k, v)) for cache in caches)
    assert (near - exact).abs().max() < 0.05
