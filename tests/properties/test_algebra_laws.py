"""Laws of the Cayley-Dickson algebras by dimension, and their failure above it, in exact integers.

A product of numbers is the layer with one feature in and out: x [1, D], w [D, 1, 1].

    commutative            D <= 2       alternative, Moufang, |xy| = |x||y|                    D <= 8
    associative            D <= 4       flexible, quadratic, adjoint, conj(xy) = conj(y) conj(x)  every D
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

DIMENSIONS = (1, 2, 4, 8, 16)


def product(caller, x, w):
    """X w by the backend, exact while |results| stay below 2^24."""
    d = len(x)
    inputs = {"x": np.asarray(x, dtype=np.float32)[None], "w": np.asarray(w, dtype=np.float32).reshape(d, 1, 1)}
    y = caller("cayley_dickson_linear", inputs, {"y": ("float32", (1, d))})["y"][0]
    assert (y == np.rint(y)).all()
    return [int(v) for v in y]


def numbers(count, d, limit=5):
    one = st.lists(st.integers(-limit, limit), min_size=d, max_size=d)
    return st.tuples(*[one] * count)


def add(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def scale(c, x):
    return [c * a for a in x]


def conjugate(x):
    return [x[0], *(-a for a in x[1:])]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def at(*dimensions):
    return pytest.mark.parametrize("d", dimensions)


@at(1, 2)
@given(data=st.data())
def test_commutative(caller, d, data):
    x, y = data.draw(numbers(2, d))
    assert product(caller, x, y) == product(caller, y, x)


@at(1, 2, 4)
@given(data=st.data())
def test_associative(caller, d, data):
    x, y, z = data.draw(numbers(3, d))
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # the laws read as formulas
    assert p(p(x, y), z) == p(x, p(y, z))


@at(1, 2, 4, 8)
@given(data=st.data())
def test_alternative(caller, d, data):
    x, y = data.draw(numbers(2, d))
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above
    assert p(p(x, x), y) == p(x, p(x, y))
    assert p(p(y, x), x) == p(y, p(x, x))


@at(1, 2, 4, 8)
@given(data=st.data())
def test_moufang(caller, d, data):
    x, y, z = data.draw(numbers(3, d, 3))
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above
    assert p(p(x, y), p(z, x)) == p(p(x, p(y, z)), x)


@at(1, 2, 4, 8)
@given(data=st.data())
def test_norms_multiply(caller, d, data):
    x, y = data.draw(numbers(2, d))
    xy = product(caller, x, y)
    assert dot(xy, xy) == dot(x, x) * dot(y, y)


@at(*DIMENSIONS)
@given(data=st.data())
def test_flexible(caller, d, data):
    x, y = data.draw(numbers(2, d))
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above
    assert p(p(x, y), x) == p(x, p(y, x))


@at(*DIMENSIONS)
@given(data=st.data())
def test_powers_associate(caller, d, data):
    (x,) = data.draw(numbers(1, d))
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above
    square = p(x, x)
    assert p(square, x) == p(x, square)
    assert p(square, square) == p(p(square, x), x)


@at(*DIMENSIONS)
@given(data=st.data())
def test_quadratic(caller, d, data):
    """X^2 - 2 Re(x) x + |x|^2 = 0."""
    (x,) = data.draw(numbers(1, d))
    rest = add(product(caller, x, x), scale(-2 * x[0], x))
    assert add(rest, [dot(x, x), *[0] * (d - 1)]) == [0] * d


@at(*DIMENSIONS)
@given(data=st.data())
def test_adjoint(caller, d, data):
    """<x w, y> = <x, y w*>: what makes the input gradient a product with the conjugate."""
    x, w, y = data.draw(numbers(3, d))
    assert dot(product(caller, x, w), y) == dot(x, product(caller, y, conjugate(w)))


@at(*DIMENSIONS)
@given(data=st.data())
def test_conjugation_reverses(caller, d, data):
    x, y = data.draw(numbers(2, d))
    assert conjugate(product(caller, x, y)) == product(caller, conjugate(y), conjugate(x))


@at(*DIMENSIONS)
@given(data=st.data())
def test_distributive_on_both_sides(caller, d, data):
    x, y, z = data.draw(numbers(3, d))
    assert product(caller, x, add(y, z)) == add(product(caller, x, y), product(caller, x, z))
    assert product(caller, add(x, y), z) == add(product(caller, x, z), product(caller, y, z))


def basis(d):
    return [[int(i == j) for i in range(d)] for j in range(d)]


@at(4, 8, 16)
def test_not_commutative_any_more(caller, d):
    e = basis(d)
    assert product(caller, e[1], e[2]) == scale(-1, product(caller, e[2], e[1]))


@at(8, 16)
def test_not_associative_any_more(caller, d):
    e = basis(d)
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above
    assert p(p(e[1], e[2]), e[4]) == scale(-1, p(e[1], p(e[2], e[4])))


def test_sedenions_are_not_alternative(caller):
    e = basis(16)
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above
    x, y = add(e[1], e[10]), e[4]
    assert p(p(x, x), y) != p(x, p(x, y))


def test_sedenions_have_no_moufang_identity(caller):
    e = basis(16)
    p = lambda a, b: product(caller, a, b)  # noqa: E731  # as above

    def fails(x, y, z):
        return p(p(x, y), p(z, x)) != p(p(x, p(y, z)), x)

    assert any(fails(add(e[1], e[10]), e[i], e[j]) for i, j in itertools.product((4, 5, 15), repeat=2))


def test_sedenions_have_zero_divisors(caller):
    e = basis(16)
    assert product(caller, add(e[1], e[10]), add(e[4], scale(-1, e[15]))) == [0] * 16


@at(1, 2, 4, 8, 16)
def test_one_is_one(caller, d):
    e = basis(d)
    for x in e:
        assert product(caller, x, e[0]) == product(caller, e[0], x) == x
