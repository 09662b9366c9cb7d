"""The cache: any split of a sequence is the whole, each has a length of its own, and a refusal changes nothing."""

import itertools

import numpy as np
import pytest
from definitions import close, normal

from walsh import reference
from walsh.errors import CapacityError, ParameterError, RangeError, ShapeError


def test_cache_append_in_any_split_is_one_append() -> None:
    k, v, q = normal(2, 5, 1, 2), normal(2, 5, 1, 2), normal(2, 5, 1, 2)
    whole = reference.KVCache(2, 6, 1, 2)
    expected = whole.attend(q, whole.append(k, v))
    close(expected, reference.attention(q, k, v), 0)
    for cuts in itertools.product((False, True), repeat=4):
        ends = [t + 1 for t, cut in enumerate(cuts) if cut] + [5]
        cache, start, parts = reference.KVCache(2, 6, 1, 2), 0, []
        for end in ends:
            parts.append(cache.attend(q[:, start:end], cache.append(k[:, start:end], v[:, start:end])))
            start = end
        assert (np.concatenate(parts, axis=1) == expected).all()
        assert (cache.keys == whole.keys).all()
        assert (cache.values == whole.values).all()


def test_cache_keeps_a_length_per_sequence() -> None:
    cache = reference.KVCache(batch=2, capacity=4, heads=1, head_dim=2)
    k = normal(2, 3, 1, 2)
    assert cache.append(k, k, np.array([2, 0])).tolist() == [[0, 1, -1], [-1, -1, -1]]
    assert cache.append(k, k, np.array([1, 3])).tolist() == [[2, -1, -1], [0, 1, 2]]
    before = cache.keys.copy()
    with pytest.raises(CapacityError):
        cache.append(k, k, np.array([1, 2]))
    assert (cache.keys == before).all()
    assert cache.lengths.tolist() == [3, 3]
    fork = cache.fork(np.array([1, 1, 0]))
    cache.truncate(np.array([1, 3]))
    cache.reset(np.array([1]))
    assert cache.lengths.tolist() == [1, 0]
    assert fork.lengths.tolist() == [3, 3, 3]
    assert (fork.keys == before[[1, 1, 0]]).all()
    fork.append(normal(3, 1, 1, 2), normal(3, 1, 1, 2))
    assert (cache.keys == before).all()
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]


def test_cache_refuses() -> None:
    cache = reference.KVCache(2, 4, 1, 2)
    k = normal(2, 1, 1, 2)
    cache.append(k, k)
    with pytest.raises(RangeError):
        cache.truncate(np.array([2, 0]))
    with pytest.raises(RangeError):
        cache.fork(np.array([2]))
    with pytest.raises(RangeError):
        cache.append(k, k, np.array([2, 0]))
    with pytest.raises(RangeError):
        cache.attend(k, np.array([[1], [0]]))
    with pytest.raises(ShapeError):
        cache.append(k[:1], k[:1])
    with pytest.raises(ParameterError):
        reference.KVCache(-1, 4, 1, 2)


def test_cache_script() -> None:
    k = {"a": normal(1, 2, 1, 2), "b": normal(2, 1, 1, 2)}
    v = {"a": normal(1, 2, 1, 2), "b": normal(2, 1, 1, 2)}
    q = {"b": normal(2, 1, 1, 2)}
    script = [["append", "a", None], ["fork", [0, 0]], ["truncate", [2, 1]], ["append", "b", [1, 1]], ["attend", "b"]]
    keys, values, lengths, o = reference.kv_cache(k, v, q, script=script, capacity=4)
    assert lengths.tolist() == [3, 2]
    assert (keys[0, :3] == np.concatenate([k["a"][0], k["b"][0]])).all()
    assert (keys[1, :2] == np.concatenate([k["a"][0, :1], k["b"][1]])).all()
    assert not keys[1, 2:].any()
    for b in range(2):
        seen = slice(lengths[b])
        close(o["b"][b], reference.attention(q["b"][[b]], keys[[b], seen], values[[b], seen])[0], 0)
    for wrong in ([["attend", "b"]], [["append", "a", None], ["forget", 1]], [["append", "z", None]]):
        with pytest.raises(ParameterError):
            reference.kv_cache(k, v, q, script=wrong, capacity=4)
