"""Embeddings and heads: the same bits in both packages, and those of gathered codes times their scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from both_packages import F32, both, to_torch, wild

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict
from walsh.reference.strict._arithmetic import quantise


def test_embedding_and_head(rng: np.random.Generator) -> None:
    codes, scale = rng.integers(-127, 128, (50, 12)).astype(np.int8), wild(rng, 50)
    ids = rng.integers(0, 50, (2, 7))
    np.testing.assert_array_equal(both("embedding", ids, codes, scale)[1, 3], codes[ids[1, 3]] * scale[ids[1, 3]])
    both("embedding", ids[:0], codes, scale)
    for lead in ((), (3,), (2, 0)):
        x = wild(rng, *lead, 12)
        logits = both("lm_head", x, codes, scale)
        a, r = quantise("x", x)
        np.testing.assert_array_equal(logits, ((a.astype(np.int64) @ codes.T.astype(np.int64)).astype(F32) * r) * scale)
    for wrong in (-1, 50):
        with pytest.raises(errors.RangeError):
            strict.embedding(np.array([wrong]), codes, scale)
        with pytest.raises(errors.RangeError):
            torch_strict.embedding(torch.tensor([wrong]), to_torch(codes), to_torch(scale))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_hash_embedding_and_head(rng: np.random.Generator, count: int, stored: bool) -> None:
    vocabulary = 30
    tables = [rng.integers(-127, 128, (40, 12)).astype(np.int8) for _ in range(count)]
    scales = [wild(rng, 40) for _ in range(count)]
    importance = wild(rng, vocabulary, count)
    indices = rng.integers(0, 40, (vocabulary, count)) if stored else None
    ids = rng.integers(0, vocabulary, (2, 5))
    for scale in (1.0, math.sqrt(12)):
        e = both("hash_embedding", ids, tables, scales, importance, indices, scale=scale)
    both("hash_lm_head", wild(rng, 2, 3, 12), tables, scales, importance, indices)
    t = ids[1, 2]
    rows = indices[t] if stored else ([t % 1021, t // 1021] if count == 2 else [t % 1021, t % 1019, t % 1013])
    total = importance[t, 0] * (tables[0][rows[0]].astype(F32) * scales[0][rows[0]])
    for i in range(1, count):
        total = total + importance[t, i] * (tables[i][rows[i]].astype(F32) * scales[i][rows[i]])
    np.testing.assert_array_equal(e[1, 2], total * F32(math.sqrt(12)))
    with pytest.raises(errors.RangeError):
        strict.hash_embedding(ids, [t[:1] for t in tables], [s[:1] for s in scales], importance, indices)
