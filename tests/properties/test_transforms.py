"""Transforms and linear layers in exact integers: involution, Parseval, linearity, adjoints.

H H x = n x;   |H x|^2 = n |x|^2;   f(a x + y) = a f(x) + f(y);   <f(x), dy> = <x, f'(dy)>
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SIZES = st.integers(0, 8).map(lambda k: 1 << k)


def integers(shape, limit=1000, dtype=np.int32):
    return hnp.arrays(dtype, shape, elements=st.integers(-limit, limit))


def transform(caller, x):
    return caller("hadamard_transform", {"x": x}, {"y": ("int32", x.shape)}, normalize=False)["y"]


@given(data=st.data())
def test_the_transform_is_its_own_inverse(caller, data):
    n = data.draw(SIZES)
    x = data.draw(integers((2, n)))
    assert (transform(caller, transform(caller, x)) == n * x).all()


@given(data=st.data())
def test_parseval(caller, data):
    n = data.draw(SIZES)
    x = data.draw(integers((n,)))
    y = transform(caller, x).astype(object)
    assert (y * y).sum() == n * (x.astype(object) ** 2).sum()


@given(data=st.data())
def test_the_transform_is_linear(caller, data):
    n, a = data.draw(SIZES), data.draw(st.integers(-9, 9))
    x, y = data.draw(integers((n,))), data.draw(integers((n,)))
    assert (transform(caller, a * x + y) == a * transform(caller, x) + transform(caller, y)).all()


@given(data=st.data())
def test_the_transform_is_self_adjoint(caller, data):
    n = data.draw(SIZES)
    x, y = (data.draw(integers((n,))).astype(np.int64) for _ in range(2))
    hx, hy = (transform(caller, v.astype(np.int32)).astype(np.int64) for v in (x, y))
    assert hx @ y == x @ hy


@given(data=st.data())
def test_the_transform_is_the_sylvester_matrix(caller, data):
    n = data.draw(st.integers(0, 6).map(lambda k: 1 << k))
    i = data.draw(st.integers(0, n - 1))
    column = transform(caller, np.eye(n, dtype=np.int32)[i])
    assert column.tolist() == [(-1) ** (i & g).bit_count() for g in range(n)]


def floats(shape, limit=9):
    return integers(shape, limit, np.int64).map(lambda v: v.astype(np.float32))


def layer(caller, x, w):
    shape = (*x.shape[:-1], w.shape[0] * w.shape[1])
    return caller("cayley_dickson_linear", {"x": x, "w": w}, {"y": ("float32", shape)})["y"]


def draw_layer(data):
    d, n, k = data.draw(st.sampled_from((1, 2, 4, 8))), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    tokens = data.draw(st.integers(1, 3))
    x, y = data.draw(floats((tokens, d * k))), data.draw(floats((tokens, d * k)))
    return x, y, data.draw(floats((d, n, k))), data.draw(floats((tokens, d * n)))


@given(data=st.data())
def test_a_layer_is_linear_in_features_and_in_weights(caller, data):
    x, y, w, _ = draw_layer(data)
    assert (layer(caller, 2 * x + y, w) == 2 * layer(caller, x, w) + layer(caller, y, w)).all()
    assert (layer(caller, x, w + np.roll(w, 1)) == layer(caller, x, w) + layer(caller, x, np.roll(w, 1))).all()


@given(data=st.data())
def test_gradients_are_adjoints(caller, data):
    """<f(x, w), dy> = <x, dx> = <w, dw>, because f is linear in x and in w."""
    x, _, w, dy = draw_layer(data)
    outputs = {"dx": ("float32", x.shape), "dw": ("float32", w.shape)}
    found = caller("cayley_dickson_linear.backward", {"x": x, "w": w, "dy": dy}, outputs)
    forward = (layer(caller, x, w).astype(np.float64) * dy).sum()
    assert forward == (found["dx"].astype(np.float64) * x).sum()
    assert forward == (found["dw"].astype(np.float64) * w).sum()


@given(data=st.data())
def test_one_token_does_not_see_another(caller, data):
    x, y, w, _ = draw_layer(data)
    both = layer(caller, np.concatenate([x, y]), w)
    assert (both[: len(x)] == layer(caller, x, w)).all()


@given(data=st.data())
def test_attention_averages(caller, data):
    """Weights are positive and sum to 1: equal values come out as they went in, and none leaves their range."""
    b, t, h, d = 1, data.draw(st.integers(1, 5)), 2, 2
    q, k = data.draw(floats((b, t, h, d), 3)), data.draw(floats((b, t, h, d), 3))
    same = np.full((b, t, h, d), 0.75, dtype=np.float32)
    o = caller("attention", {"q": q, "k": k, "v": same}, {"o": ("float32", q.shape)})["o"]
    assert np.abs(o - 0.75).max() < 1e-6
    v = data.draw(floats((b, t, h, d)))
    o = caller("attention", {"q": q, "k": k, "v": v}, {"o": ("float32", q.shape)})["o"]
    for step in range(t):
        seen = v[:, : step + 1]
        assert (o[:, step] <= seen.max(axis=1) + 1e-4).all()
        assert (o[:, step] >= seen.min(axis=1) - 1e-4).all()


@pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-8), ("float32", 1e-2)])
@given(data=st.data())
def test_rope_rotates(caller, dtype, close, data):
    """Lengths of pairs stay, and the score of two tokens depends on their distance only."""
    x, y = data.draw(floats((1, 1, 2, 4))), data.draw(floats((1, 1, 2, 4)))
    start, step = data.draw(st.integers(0, 500)), data.draw(st.integers(0, 50))

    def turned(z, position):
        inputs = {"x": z.astype(dtype), "positions": np.array([position])}
        return caller("rope", inputs, {"y": (dtype, z.shape)})["y"].astype(np.float64)

    pairs = lambda z: (z.reshape(-1, 2) ** 2).sum(axis=1)  # noqa: E731  # a formula
    assert np.abs(pairs(turned(x, start)) - pairs(x.astype(np.float64))).max() < close
    near = (turned(x, step) * turned(y, 0)).sum()
    far = (turned(x, start + step) * turned(y, start)).sum()
    assert abs(near - far) < close
