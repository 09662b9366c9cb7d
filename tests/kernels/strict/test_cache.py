"""The int8 cache: in any split the bits of attention over everything; refusals leave it as it was."""

from __future__ import annotations

import numpy as np
import pytest
from both_packages import assert_same_bits, to_torch, wild

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict


def make_caches(*sizes: int) -> tuple[strict.Int8KVCache, torch_strict.Int8KVCache]:
    return strict.Int8KVCache(*sizes), torch_strict.Int8KVCache(*sizes)


def test_cache_in_any_split_equals_the_full_pass(rng: np.random.Generator) -> None:
    q, k, v = (wild(rng, 2, 70, 2, 6) for _ in range(3))
    full = strict.attention(q, k, v)
    for split in ([70], [1] * 70, [33, 1, 36], [64, 0, 6]):
        for cache, convert in zip(make_caches(2, 80, 2, 6), (lambda x: x, to_torch), strict=True):
            parts, start = [], 0
            for size in split:
                piece = slice(start, start + size)
                positions = cache.append(convert(k[:, piece]), convert(v[:, piece]))
                parts.append(np.asarray(cache.attend(convert(q[:, piece]), positions)))
                start += size
            np.testing.assert_array_equal(np.concatenate(parts, 1).view(np.int32), full.view(np.int32))


def test_cache_of_sequences_of_different_lengths(rng: np.random.Generator) -> None:
    k, v, q = (wild(rng, 3, 4, 2, 6) for _ in range(3))
    counts = np.array([4, 0, 2])
    garbage = k.copy()
    garbage[2, 2:] = np.nan
    outputs = []
    for cache, convert in zip(make_caches(3, 5, 2, 6), (lambda x: x, to_torch), strict=True):
        positions = cache.append(convert(garbage), convert(v), convert(counts))
        assert positions.tolist() == [[0, 1, 2, 3], [-1] * 4, [0, 1, -1, -1]]
        first = cache.attend(convert(q), positions)
        with pytest.raises(errors.CapacityError):
            cache.append(convert(k), convert(v))
        assert cache.lengths.tolist() == [4, 0, 2]
        fork = cache.fork(convert(np.array([2, 0, 2])))
        cache.truncate(convert(np.array([1, 0, 2])))
        cache.append(convert(v), convert(k), convert(np.array([1, 1, 0])))
        assert fork.lengths.tolist() == [2, 4, 2]
        second = fork.attend(convert(q), convert(np.array([[1, 0, -1, -1], [3, 2, 1, 0], [0, 1, 0, 1]])))
        third = cache.attend(convert(q[:, :1]), convert(np.array([[1], [0], [1]])))
        cache.reset(convert(np.array([0])))
        assert cache.lengths.tolist() == [0, 1, 2]
        cache.reset()
        assert cache.lengths.tolist() == [0, 0, 0]
        outputs.append((first, second, third))
    assert_same_bits(*outputs)
    np.testing.assert_array_equal(outputs[0][0][0], strict.attention(q[:1], k[:1], v[:1])[0])
    np.testing.assert_array_equal(outputs[0][0][2, :2], strict.attention(q[2:, :2], k[2:, :2], v[2:, :2])[0])


def test_cache_refuses_and_stays(rng: np.random.Generator) -> None:
    k = wild(rng, 2, 2, 1, 4)
    bad = k.copy()
    bad[1, 1, 0, 0] = np.inf
    for cache, convert in zip(make_caches(2, 4, 1, 4), (lambda x: x, to_torch), strict=True):
        cache.append(convert(k), convert(k))
        attempts = [
            (errors.NonFiniteError, lambda c, f: c.append(f(bad), f(k))),
            (errors.NonFiniteError, lambda c, f: c.append(f(k), f(bad))),
            (errors.ShapeError, lambda c, f: c.append(f(k[:1]), f(k[:1]))),
            (errors.DTypeError, lambda c, f: c.append(f(k.astype(np.float64)), f(k))),
            (errors.RangeError, lambda c, f: c.append(f(k), f(k), f(np.array([0, 3])))),
            (errors.RangeError, lambda c, f: c.truncate(f(np.array([3, 0])))),
            (errors.RangeError, lambda c, f: c.truncate(f(np.array([-1, 0])))),
            (errors.RangeError, lambda c, f: c.fork(f(np.array([2])))),
            (errors.RangeError, lambda c, f: c.reset(f(np.array([-1])))),
            (errors.RangeError, lambda c, f: c.attend(f(k), f(np.array([[0, 2], [0, 1]])))),
        ]
        for error, attempt in attempts:
            with pytest.raises(error):
                attempt(cache, convert)
            assert cache.lengths.tolist() == [2, 2]
    for make in (strict.Int8KVCache, torch_strict.Int8KVCache):
        with pytest.raises(errors.ParameterError):
            make(1, -1, 1, 4)


def test_kv_cache_script(rng: np.random.Generator) -> None:
    k, v, q = ({key: wild(rng, 2, t, 1, 4) for key, t in (("a", 3), ("b", 2))} for _ in range(3))
    script = [["append", "a", [3, 1]], ["attend", "a"], ["fork", [1, 0]], ["truncate", [1, 2]], ["append", "b", None]]
    script += [["attend", "b"], ["reset", [0]]]
    lengths, o = strict.kv_cache(k, v, q, script=script, capacity=6)
    found_lengths, found = torch_strict.kv_cache(*map(to_torch, (k, v, q)), script=script, capacity=6)
    assert lengths.tolist() == found_lengths.tolist() == [0, 4]
    for key in ("a", "b"):
        assert_same_bits(o[key], found[key])
