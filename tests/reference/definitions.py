"""Definitions that share nothing with the references: products as matrices, gradients as slopes.

    Cayley-Dickson   y_i = beta sum over j, k of T[j, k, i] x_j w_k^T      T[j, k, i] the coefficient of e_i in e_j e_k
    Hadamard         y = beta H z,   z_h = v_h w_h^T,   v = H (alpha x)    H Sylvester's matrix, divided by sqrt(n)
    slope            (f(x + h) - f(x - h)) / 2h for each element of x      h = 1e-5

Every test draws its numbers from ``RNG``, which conftest.py sets by the test's name.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from walsh import algebra

Array = np.ndarray
RNG = np.random.default_rng(20240229)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


def codes(*shape: int) -> Array:
    return RNG.integers(-1, 2, shape).astype(np.int8)


def structure(dimension: int) -> Array:
    """T[j, k, i], the coefficient of e_i in e_j e_k."""
    basis = np.eye(dimension)
    return np.stack(
        [np.stack([algebra.multiply(basis[j], basis[k]) for k in range(dimension)]) for j in range(dimension)]
    )


def dense_cayley_dickson(x: Array, w: Array, beta: Array | None = None) -> Array:
    dimension, n, k = w.shape
    blocks = x.reshape(-1, dimension, k)
    y = np.einsum("mja,kna,jki->min", blocks, w, structure(dimension))
    return (y if beta is None else y * beta).reshape(*x.shape[:-1], dimension * n)


def dense_hadamard(x: Array, w: Array, alpha: Array, beta: Array, added: Array | float = 0.0) -> Array:
    """``added`` is what rounding adds to v [m, n, K]."""
    n, out, k = w.shape
    h = algebra.sylvester(n) / math.sqrt(n)
    v = np.einsum("gh,mhk->mgk", h, alpha * x.reshape(-1, n, k)) + added
    return (beta * np.einsum("gh,mhk,hok->mgo", h, v, w)).reshape(*x.shape[:-1], n * out)


def rounded(x: Array) -> Array:
    scale = 127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
    return np.rint(x * scale) / scale


def ternary_codes(w: Array) -> Array:
    return np.clip(np.rint(w / (np.abs(w).mean() + 1e-8)), -1, 1)


def slope(f: Callable[[Array], Any], x: Array, upstream: Any) -> Array:
    """Gradient of sum(upstream * f(x)) by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = x.copy()
            moved[index] += step
            values.append(np.sum(upstream * f(moved)))
        gradient[index] = (values[0] - values[1]) / 2e-5
    return gradient


def close(actual: Any, expected: Any, tolerance: float = 1e-7) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, strict=True)
