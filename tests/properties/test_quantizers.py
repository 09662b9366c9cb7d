"""Quantizers and codecs: symmetry, idempotence, scale by powers of two, and every length from 0 to 130."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

LENGTHS = range(131)


def reals(shape, limit=100.0):
    elements = st.one_of(st.sampled_from((0.0, 0.5, 1.5, 2.5, -0.5, 1.0, 127.0)), st.floats(-limit, limit, width=32))
    return hnp.arrays(np.float32, shape, elements=elements)


ROWS = st.tuples(st.integers(1, 3), st.integers(1, 9))


def quantize(caller, x, strict=False):
    call, scale = ("quantize_activations.strict", "r") if strict else ("quantize_activations", "scale")
    outputs = {"a": ("int8", x.shape), scale: ("float32", (*x.shape[:-1], 1))}
    found = caller(call, {"x": x}, outputs)
    return found["a"], found[scale]


@pytest.mark.parametrize("strict", [False, True])
@given(data=st.data())
def test_activations_are_symmetric(caller, strict, data):
    x = data.draw(ROWS.flatmap(reals))
    a, scale = quantize(caller, x, strict)
    b, same = quantize(caller, -x, strict)
    assert (a == -b).all()
    assert (scale == same).all()
    assert np.abs(a.astype(int)).max() <= 127


@pytest.mark.parametrize("strict", [False, True])
@given(data=st.data())
def test_activations_scale_by_powers_of_two(caller, strict, data):
    x, k = data.draw(ROWS.flatmap(reals)), data.draw(st.integers(-6, 20))
    factor = np.float32(2.0**k)
    assume((np.abs(x).max(axis=-1) * min(1.0, factor) >= 1e-3).all())
    assume(((x == 0) | (np.abs(x) > 1e-20)).all())
    a, scale = quantize(caller, x, strict)
    b, scaled = quantize(caller, x * factor, strict)
    assert (a == b).all()
    assert (scaled == (scale * factor if strict else scale / factor)).all()


@given(data=st.data())
def test_activations_are_idempotent(caller, data):
    """What was rounded once is on the grid: rounding again gives the same codes."""
    x = data.draw(ROWS.flatmap(reals))
    assume((np.abs(x).max(axis=-1) > 1e-3).all())
    v = caller("fake_quantize_activations", {"x": x}, {"v": ("float32", x.shape)})["v"]
    assert (quantize(caller, v)[0] == quantize(caller, x)[0]).all()


@given(data=st.data())
def test_the_largest_code_is_127(caller, data):
    x = data.draw(ROWS.flatmap(reals))
    assume((np.abs(x).max(axis=-1) > 1e-3).all())
    assert (np.abs(quantize(caller, x)[0].astype(int)).max(axis=-1) == 127).all()


def ternary(caller, w, rule):
    return caller("ternary", {"w": w}, {"q": ("int8", w.shape), "gamma": ("float32", ())}, rule=rule)


@pytest.mark.parametrize("rule", ["absmean", "round"])
@given(data=st.data())
def test_ternary_is_symmetric(caller, rule, data):
    w = data.draw(ROWS.flatmap(reals))
    one, other = ternary(caller, w, rule), ternary(caller, -w, rule)
    assert (one["q"] == -other["q"]).all()
    assert one["gamma"] == other["gamma"]
    assert set(np.unique(one["q"])) <= {-1, 0, 1}


@given(data=st.data())
def test_ternary_is_idempotent(caller, data):
    w = data.draw(ROWS.flatmap(reals))
    q = ternary(caller, w, "round")["q"]
    assert (ternary(caller, q.astype(np.float32), "round")["q"] == q).all()


@given(data=st.data())
def test_ternary_keeps_the_order(caller, data):
    w = np.sort(data.draw(reals((12,))))
    assert (np.diff(ternary(caller, w, "absmean")["q"].astype(int)) >= 0).all()


def there_and_back(caller, q, shape):
    size, nonzero = q.size, int(np.count_nonzero(q))
    outputs = {"mask": ("uint8", (-(-size // 8),)), "signs": ("uint8", (-(-nonzero // 8),))}
    coded = caller("bitmask_encode", {"q": q}, outputs)
    return caller("bitmask_decode", coded, {"q": ("int8", shape)}, shape=list(shape))["q"]


def pack(caller, q):
    k = q.shape[-1]
    return caller("pack_ternary", {"q": q}, {"packed": ("uint8", (*q.shape[:-1], -(-k // 4)))})["packed"]


def pack_and_unpack(caller, q):
    return caller("unpack_ternary", {"packed": pack(caller, q)}, {"q": ("int8", q.shape)}, k=q.shape[-1])["q"]


def test_codecs_at_every_length(caller):
    for length in LENGTHS:
        for phase in range(3):
            q = ((np.arange(length) * 5 + np.arange(length) // 7 + phase) % 3 - 1).astype(np.int8)
            assert (there_and_back(caller, q, (length,)) == q).all()
            assert (pack_and_unpack(caller, q) == q).all()


@given(data=st.data())
def test_codecs_on_any_codes(caller, data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9))
    q = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))
    assert (there_and_back(caller, q, shape) == q).all()
    assert (pack_and_unpack(caller, q) == q).all()


@given(data=st.data())
def test_packed_weights_are_the_weights(caller, data):
    """A layer takes codes, packed codes and floats of the same weights and gives the same answer."""
    d, n, k = data.draw(st.sampled_from((1, 2, 8))), 2, data.draw(st.integers(1, 9))
    w = data.draw(hnp.arrays(np.int8, (d, n, k), elements=st.integers(-1, 1)))
    x = data.draw(hnp.arrays(np.int64, (2, d * k), elements=st.integers(-50, 50))).astype(np.float32)
    outputs = {"y": ("float32", (2, d * n))}
    found = [
        caller("cayley_dickson_linear", {"x": x, "w": form}, outputs)["y"]
        for form in (w, pack(caller, w), w.astype(np.float32))
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
