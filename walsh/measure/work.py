"""How much work an op is: arithmetic and compulsory bytes, the formulas behind every fraction of a limit.

M tokens, K -> N full widths, b bytes per activation, w bits per weight, r executed block products of a Cayley-Dickson
product (D^2 direct; 3, 8, 30, 122 fast), P weights, E elements.

    Cayley-Dickson linear   2 M (K/D)(N/D) r              M K b + M N b + (K N / D) w / 8      dense: 2 M K N
    Hadamard-n linear       2 M K N / n + log2(n) M (K + N)   M K b + M N b + (K N / n) w / 8  dense: 2 M K N
    fast transform          E log2 n                      2 E b
    head mixer, n heads of d   2 M d^2 r                  2 M n d b
    weight quantizer        4 P                           4 P twice + P w / 8
    decode step             2 per multiply-add            weights and head once
    codec                                                 int8 side + packed side
"""

from __future__ import annotations

import math

from walsh.measure.case import Work

FAST_PRODUCTS = {1: 1, 2: 3, 4: 8, 8: 30, 16: 122}
"""Block products of the fast method, see ``walsh.algebra``."""

SIZES = {"float64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}
"""Bytes of an element."""


def dense_linear(m: int, k: int, n: int, dtype: str, passes: int = 1) -> Work:
    """One GEMM; ``passes`` is 3 for forward and both gradients."""
    b = SIZES[dtype]
    flops = 2.0 * m * k * n * passes
    out = 4 if dtype == "int8" else b
    return Work(flops, passes * (m * k * b + m * n * out + k * n * b), flops, dtype)


def cayley_dickson_linear(
    m: int, k: int, n: int, dtype: str, d: int = 8, products: int | None = None, bits: float = 2, passes: int = 1
) -> Work:
    """The hyper-complex layer of full widths K -> N; ``products`` defaults to the fewest known."""
    r = FAST_PRODUCTS[d] if products is None else products
    b = SIZES[dtype]
    out = 4 if dtype == "int8" else b
    flops = 2.0 * m * (k / d) * (n / d) * r * passes
    traffic = passes * (m * k * b + m * n * out) + k * n / d * bits / 8 * passes
    return Work(flops, traffic, 2.0 * m * k * n * passes, dtype)


def hadamard_linear(m: int, k: int, n: int, dtype: str, size: int = 32, bits: float = 2, passes: int = 1) -> Work:
    """The Hadamard layer of full widths K -> N."""
    b = SIZES[dtype]
    flops = passes * (2.0 * m * k * n / size + math.log2(size) * m * (k + n))
    traffic = passes * (m * k * b + m * n * b + k * n / size * bits / 8)
    return Work(flops, traffic, 2.0 * m * k * n * passes, dtype)


def transform(elements: int, size: int, dtype: str) -> Work:
    """The fast Walsh-Hadamard transform over ``elements`` values, ``size`` at a time."""
    return Work(elements * math.log2(size), 2.0 * elements * SIZES[dtype], None, dtype)


def head_mixer(m: int, d: int, dtype: str, n: int = 8, products: int = 64) -> Work:
    """One mixer over groups of n heads of d features, M tokens times groups."""
    b = SIZES[dtype]
    flops = 2.0 * m * d * d * products
    return Work(flops, 2.0 * m * n * d * b + n * d * d * b, 2.0 * m * n * n * d * d, dtype)


def elementwise(elements: int, flops_each: float, bytes_each: float, dtype: str = "float32") -> Work:
    """Anything that visits each element once."""
    return Work(elements * flops_each, elements * bytes_each, None, dtype)


def ternary(weights: int, bits: float = 8) -> Work:
    """Mean and rounding of P float32 weights: two readings, one writing."""
    return Work(4.0 * weights, 8.0 * weights + weights * bits / 8)
