"""A-priori rounding-error bounds: magnitude and number of terms per output, from the inputs alone.

A backend may sum in any order, so what can be asked of a float32 result is (Higham, *Accuracy and Stability of
Numerical Algorithms*, section 3.1)::

    |actual - expected| <= gamma_terms magnitude + u |expected|,     gamma_n = n u / (1 - n u)

where the magnitude of an inner product is the sum of the absolute products and ``terms`` counts the roundings on the
longest path. Non-linear functions follow by first-order propagation; each says how. Magnitudes are float64.

Cayley-Dickson products with D >= 4 may be computed with fewer multiplications (see `walsh.algebra`). Such bilinear
algorithms add components before they multiply, so they satisfy the bound *norm-wise over the components* only (Brent;
Higham, section 23.2.2)::

    magnitude[t, i, n] = sum_k (sum_j |x[t, j, k]|) (sum_j |w[j, n, k]|)           the same for every i

with three times the roundings: one share for the convolution, two for the corrections ``2 x_j w_k``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh import reference
from walsh.suite.tensors import Array

Real = NDArray[np.float64]
Inputs = Mapping[str, Array]
Params = Mapping[str, Any]
Bounds = dict[str, tuple[Real, int]]
"""Per output: magnitude (broadcastable to the output) and terms."""

FAST_FROM = 4
"""The smallest D for which norm-wise bounds apply."""


def absolute(array: Array) -> Real:
    """|array| in float64."""
    result: Real = np.abs(np.asarray(array).astype(np.float64))
    return result


def unpacked(w: Array, k: int) -> Array:
    """Codes of a weight that may be packed four to a byte: uint8 [..., ceil(k/4)] -> int8 [..., k]."""
    if w.dtype != np.uint8:
        return w
    shifted = w[..., None] >> np.arange(0, 8, 2, dtype=np.uint8)
    codes = (shifted & 3).astype(np.int8) - 1
    return codes.reshape(*w.shape[:-1], -1)[..., :k]


def _components(x: Real, w: Real) -> Real:
    """Absolute products of [T, D, K] and [D, N, K]: [T, D, N], norm-wise from D = 4 on."""
    dimension = w.shape[0]
    if dimension >= FAST_FROM:
        return np.repeat((x.sum(axis=1) @ w.sum(axis=0).T)[:, None], dimension, axis=1)
    index = np.arange(dimension)
    return np.stack([sum(x[:, j] @ w[i ^ j].T for j in index) for i in index], axis=1)


def _component_terms(dimension: int, inner: int) -> int:
    """Roundings of an inner product over ``inner`` positions and D components, the fast form allowed."""
    return max(dimension * inner, 3 * (inner + 20) if dimension >= FAST_FROM else 0) + 8


def _components_backward(x: Real, w: Real, gradient: Real) -> tuple[Real, Real]:
    """Absolute products of dX_j = sum_i g_i W_{i xor j} and dW_k = sum_i g_i^T X_{i xor k}."""
    dimension = w.shape[0]
    dx = _components(gradient, w.swapaxes(1, 2))
    if dimension >= FAST_FROM:
        dw = np.repeat((gradient.sum(axis=1).T @ x.sum(axis=1))[None], dimension, axis=0)
    else:
        index = np.arange(dimension)
        dw = np.stack([sum(gradient[:, i].T @ x[:, i ^ k] for i in index) for k in index])
    return dx, dw


def _cayley_dickson(inputs: Inputs, _: Params, x: Real | None = None, w: Real | None = None) -> Bounds:
    dimension, outputs = inputs["w"].shape[:2]
    raw = inputs["x"]
    inner = raw.shape[-1] // dimension
    xs = (absolute(raw) if x is None else x).reshape(-1, dimension, inner)
    ws = absolute(unpacked(inputs["w"], inner)) if w is None else w
    scale = absolute(inputs["beta"]) if "beta" in inputs else np.ones(outputs)
    magnitude = (_components(xs, ws) * scale).reshape(*raw.shape[:-1], dimension * outputs)
    if "x_scale" in inputs:
        magnitude = magnitude / absolute(inputs["x_scale"])
    return {"y": (magnitude, _component_terms(dimension, inner))}


def _cayley_dickson_backward(inputs: Inputs, _: Params, x: Real | None = None, w: Real | None = None) -> Bounds:
    dimension, outputs = inputs["w"].shape[:2]
    raw = inputs["x"]
    inner = raw.shape[-1] // dimension
    xs = (absolute(raw) if x is None else x).reshape(-1, dimension, inner)
    ws = absolute(inputs["w"]) if w is None else w
    dy = absolute(inputs["dy"]).reshape(-1, dimension, outputs)
    scale = absolute(inputs["beta"]) if "beta" in inputs else np.ones(outputs)
    dx, dw = _components_backward(xs, ws, dy * scale)
    tokens = xs.shape[0]
    bounds = {
        "dx": (dx.reshape(raw.shape), _component_terms(dimension, outputs)),
        "dw": (dw, _component_terms(dimension, tokens)),
    }
    if "beta" in inputs:
        dbeta = (dy * _components(xs, ws)).sum(axis=(0, 1))
        bounds["dbeta"] = (dbeta, _component_terms(dimension, inner) + _component_terms(dimension, tokens))
    return bounds


def _codes_and_values(inputs: Inputs, params: Params, x: Array) -> tuple[Real, Real]:
    """|q| and |v| of a bit_linear: what the inner product really sees."""
    w = np.asarray(inputs["w"])
    if w.dtype.kind in "iu":
        codes = unpacked(w, x.shape[-1] // w.shape[0])
    else:
        codes = reference.ternary(w.astype(np.float64), params.get("rule", "absmean"))[0]
    if params.get("activation_bits", 8) is None:
        return absolute(codes), absolute(x)
    a, scale = reference.quantize_activations(x.astype(np.float64))
    return absolute(codes), absolute(a / scale)


def _cayley_dickson_bit(inputs: Inputs, params: Params) -> Bounds:
    # a / scale costs two divisions and the maximum, a handful of roundings more than the plain inner product.
    q, v = _codes_and_values(inputs, params, inputs["x"])
    return _more(_cayley_dickson(inputs, params, v, q), 6)


def _cayley_dickson_bit_backward(inputs: Inputs, params: Params) -> Bounds:
    q, v = _codes_and_values(inputs, params, inputs["x"])
    return _more(_cayley_dickson_backward(inputs, params, v, q), 6)


def _more(bounds: Bounds, terms: int) -> Bounds:
    return {name: (magnitude, count + terms) for name, (magnitude, count) in bounds.items()}


def _hadamard_transform(inputs: Inputs, params: Params) -> Bounds:
    x = absolute(inputs["x"])
    n = x.shape[-1]
    scale = 1 / math.sqrt(n) if params.get("normalize", True) else 1.0
    return {"y": (np.broadcast_to(x.sum(axis=-1, keepdims=True) * scale, x.shape), n + 1)}


def _hadamard_transform_backward(inputs: Inputs, params: Params) -> Bounds:
    return {"dx": _hadamard_transform({"x": inputs["dy"]}, params)["y"]}


class _HadamardLayer:
    """Absolute values of every stage of hadamard_linear; ``[T, n, .]`` unless said otherwise."""

    def __init__(self, inputs: Inputs, v: Real | None = None, w: Real | None = None) -> None:
        raw = inputs["x"]
        self.n, self.outputs = inputs["w"].shape[:2]
        self.inner = raw.shape[-1] // self.n
        self.norm = 1 / math.sqrt(self.n)
        self.x = absolute(raw).reshape(-1, self.n, self.inner)
        self.w = absolute(unpacked(inputs["w"], self.inner)) if w is None else w
        self.alpha = absolute(inputs["alpha"]) if "alpha" in inputs else np.ones((self.n, self.inner))
        self.beta = absolute(inputs["beta"]) if "beta" in inputs else np.ones((self.n, self.outputs))
        self.v = self._across(self.alpha * self.x) if v is None else v
        self.mixed = self._across(np.einsum("tgk,gnk->tgn", self.v, self.w))
        self.terms = 2 * self.n + self.inner + 8

    def _across(self, blocks: Real) -> Real:
        """The transform with every sign made +: the same sum for each block."""
        return np.repeat(blocks.sum(axis=1, keepdims=True) * self.norm, self.n, axis=1)

    def forward(self, shape: tuple[int, ...]) -> Bounds:
        return {"y": ((self.mixed * self.beta).reshape(shape), self.terms)}

    def backward(self, inputs: Inputs) -> Bounds:
        tokens = self.x.shape[0]
        dy = absolute(inputs["dy"]).reshape(-1, self.n, self.outputs)
        dz = self._across(self.beta * dy)
        du = self._across(np.einsum("tgn,gnk->tgk", dz, self.w))
        back = 2 * self.n + self.outputs + 8
        bounds = {
            "dx": ((du * self.alpha).reshape(inputs["x"].shape), back),
            "dw": (np.einsum("tgn,tgk->gnk", dz, self.v), 2 * self.n + tokens + 8),
        }
        if "alpha" in inputs:
            bounds["dalpha"] = ((du * self.x).sum(axis=0), back + tokens)
        if "beta" in inputs:
            bounds["dbeta"] = ((dy * self.mixed).sum(axis=0), self.terms + tokens)
        return bounds


def _hadamard_bit_layer(inputs: Inputs, params: Params) -> _HadamardLayer:
    """The quantised v has the absolute error of the scale, which is that of the largest element: kappa times relative.

    kappa = (sum of absolute terms) / absmax(v) per token; every v is charged with it.
    """
    plain = _HadamardLayer(inputs)
    n, inner = plain.n, plain.inner
    x = np.asarray(inputs["x"]).astype(np.float64).reshape(-1, n, inner)
    alpha = np.asarray(inputs["alpha"]).astype(np.float64) if "alpha" in inputs else np.ones((n, inner))
    exact = reference.hadamard_transform((alpha * x).swapaxes(1, 2)).swapaxes(1, 2).reshape(-1, n * inner)
    q, v = _codes_and_values(inputs, params, exact)
    largest = np.maximum(absolute(exact).max(axis=-1), 1e-5)[:, None, None]
    kappa = np.maximum(plain.v.max(axis=(1, 2))[:, None, None] / largest, 1.0)
    if params.get("activation_bits", 8) is None:
        return _HadamardLayer(inputs, w=q)
    return _HadamardLayer(inputs, v.reshape(-1, n, inner) * kappa, q)


def _output_shape(inputs: Inputs) -> tuple[int, ...]:
    n, outputs = inputs["w"].shape[:2]
    return (*inputs["x"].shape[:-1], n * outputs)


def _hadamard_linear(inputs: Inputs, _: Params) -> Bounds:
    return _HadamardLayer(inputs).forward(_output_shape(inputs))


def _hadamard_linear_backward(inputs: Inputs, _: Params) -> Bounds:
    return _HadamardLayer(inputs).backward(inputs)


def _hadamard_bit(inputs: Inputs, params: Params) -> Bounds:
    return _more(_hadamard_bit_layer(inputs, params).forward(_output_shape(inputs)), 6)


def _hadamard_bit_backward(inputs: Inputs, params: Params) -> Bounds:
    return _more(_hadamard_bit_layer(inputs, params).backward(inputs), 6)


def _mixer_as_linear(inputs: Inputs) -> dict[str, Array]:
    """head_mixer as a linear layer: groups become tokens, x @ W becomes x W^T, [n, d, d] transposed."""
    w = np.asarray(inputs["w"])
    n, d = w.shape[:2]
    linear = {"x": np.asarray(inputs["x"]).reshape(-1, n * d), "w": w.swapaxes(1, 2)}
    if "beta" in inputs:
        linear["beta"] = np.asarray(inputs["beta"])
    if "dy" in inputs:
        linear["dy"] = np.asarray(inputs["dy"]).reshape(-1, n * d)
    return linear


def _head_mixer(inputs: Inputs, params: Params) -> Bounds:
    linear, n = _mixer_as_linear(inputs), inputs["w"].shape[0]
    if params.get("algebra", "octonion") == "hadamard":
        if "beta" in linear:
            linear["beta"] = np.broadcast_to(linear["beta"], (n, *linear["beta"].shape))
        bounds = _hadamard_linear(linear, params)
    else:
        bounds = _cayley_dickson(linear, params)
    magnitude, terms = bounds["y"]
    return {"y": (magnitude.reshape(inputs["x"].shape), terms)}


def _head_mixer_backward(inputs: Inputs, params: Params) -> Bounds:
    linear, n = _mixer_as_linear(inputs), inputs["w"].shape[0]
    if params.get("algebra", "octonion") == "hadamard":
        if "beta" in linear:
            linear["beta"] = np.broadcast_to(linear["beta"], (n, *linear["beta"].shape))
        bounds = _hadamard_linear_backward(linear, params)
        if "dbeta" in bounds:
            bounds["dbeta"] = (bounds["dbeta"][0].sum(axis=0), bounds["dbeta"][1] + n)
    else:
        bounds = _cayley_dickson_backward(linear, params)
    dx, dw = bounds["dx"], bounds["dw"]
    return bounds | {"dx": (dx[0].reshape(inputs["x"].shape), dx[1]), "dw": (dw[0].swapaxes(1, 2), dw[1])}


LINEAR: dict[str, Callable[[Inputs, Params], Bounds]] = {
    "cayley_dickson_linear": _cayley_dickson,
    "cayley_dickson_linear.backward": _cayley_dickson_backward,
    "cayley_dickson_bit_linear": _cayley_dickson_bit,
    "cayley_dickson_bit_linear.backward": _cayley_dickson_bit_backward,
    "hadamard_transform": _hadamard_transform,
    "hadamard_transform.backward": _hadamard_transform_backward,
    "hadamard_linear": _hadamard_linear,
    "hadamard_linear.backward": _hadamard_linear_backward,
    "hadamard_bit_linear": _hadamard_bit,
    "hadamard_bit_linear.backward": _hadamard_bit_backward,
    "head_mixer": _head_mixer,
    "head_mixer.backward": _head_mixer_backward,
}
"""Bounds of the calls that are sums of products, by call name."""
