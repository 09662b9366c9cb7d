"""Vectors of *activations*: ``scale = 127 / max(absmax, 1e-5)``, ``a = clip(rint(x scale), -128, 127)``, per token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group
from walsh.suite.generate.numbers import FLOATS, Draw, activations_are_clear, filled, listed
from walsh.suite.tensors import DTYPES, Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact("quantize_activations")
    yield _exact("fake_quantize_activations")
    yield _rounded("quantize_activations")
    yield _rounded("fake_quantize_activations")
    yield _strict()
    yield from _choice()
    yield _gradient()
    yield from _invalid()


def clear_rows(draw: Draw, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Activations that stay clear of rounding ties."""
    return draw.search(lambda d: d.reals(name, shape, dtype, -3, 2), activations_are_clear)


def dyadic_rows(draw: Draw, shape: tuple[int, ...], dtype: str, shift: int = 0) -> Array:
    """Rows of integers whose largest is 127 times a power of two, so that the scale is one and nothing rounds."""
    rows = draw.integers("x", shape, -126, 126).astype(np.float64)
    rows[..., -1] = np.where(rows[..., 0] < 0, -127.0, 127.0)
    return np.ldexp(rows, shift).astype(DTYPES[dtype])


def _exact(call: str) -> Group:
    group = Group("activations", f"exact-{call.partition('_')[0]}", "exact", call)
    for dtype in FLOATS:
        for shift in (0, -3, 7):
            name = f"{dtype}-shift{shift}"
            group.add(
                name,
                f"the largest of each row is 127 * 2^{shift}: the scale is a power of two",
                {"x": dyadic_rows(group.draw(name), (3, 9), dtype, shift)},
                unproven=True,
                flags=[f.SMOKE] if (dtype, shift) == ("float32", 0) else [],
            )
    group.add("one-feature", "C = 1", {"x": listed([[127.0], [-127.0]])}, unproven=True)
    group.add("no-tokens", "no rows", {"x": filled((0, 6), 0.0)}, flags=[f.EMPTY_BATCH], unproven=True)
    group.add(
        "leading",
        "two leading axes",
        {"x": dyadic_rows(group.draw("leading"), (2, 3, 5), "float32")},
        flags=[f.LEADING_AXES],
        unproven=True,
    )
    group.add(
        "row",
        "no leading axis",
        {"x": dyadic_rows(group.draw("row"), (17,), "float32")},
        flags=[f.LEADING_AXES],
        unproven=True,
    )
    for tokens in (5, 17, 33, 65, 130):
        x = dyadic_rows(group.draw(f"tokens{tokens}"), (tokens, 3), "float32")
        group.add(f"tokens-{tokens}", "rows past the last full tile", {"x": x}, flags=[f.TAIL_ROWS], unproven=True)
    unlike = np.ldexp(dyadic_rows(group.draw("unlike"), (4, 8), "float32"), [[-20], [-5], [0], [20]])
    group.add(
        "unlike-rows",
        "rows of unlike magnitude, each with a scale of its own",
        {"x": unlike.astype(np.float32)},
        flags=[f.TOKEN_SCALE],
        unproven=True,
    )
    return group


def _rounded(call: str) -> Group:
    group = Group("activations", f"rounded-{call.partition('_')[0]}", "rounded", call)
    for dtype in FLOATS:
        for tokens, features in ((1, 1), (5, 8), (3, 17)):
            name = f"{dtype}-{tokens}x{features}"
            x = clear_rows(group.draw(name), "x", (tokens, features), dtype)
            group.add(name, "reals, at least 1e-3 away from a tie", {"x": x})
    group.add("zeros", "a row of zeros: the scale is 127 / 1e-5", {"x": filled((2, 4), 0.0)}, flags=[f.EPSILON])
    below = np.array([[3e-6, -1.4e-6, 0.0], [9.0, -4.0, 1.0]], dtype=np.float32)
    group.add(
        "below-epsilon",
        "a row whose maximum is below 1e-5, beside a common one",
        {"x": below},
        flags=[f.EPSILON, f.TOKEN_SCALE],
    )
    outlier = clear_rows(group.draw("outlier"), "x", (2, 9))
    outlier[0, 3] = 2.0**20
    group.add("outlier", "one huge value in one of two rows", {"x": outlier}, flags=[f.OUTLIER, f.TOKEN_SCALE])
    large = listed([[3e38, -1e38, 2e37], [1.0, -0.3, 0.2]])
    group.add("near-overflow", "magnitudes near the largest float32", {"x": large}, flags=[f.OUTLIER])
    negative = listed([[-8.0, 3.3, 1.7, 0.1]])
    group.add("largest-negative", "the largest magnitude is negative: code -127", {"x": negative})
    return group


def _strict() -> Group:
    group = Group("activations", "strict-quantize", "strict", "quantize_activations.strict")
    for tokens, features in ((1, 1), (4, 7), (5, 32), (17, 3)):
        name = f"{tokens}x{features}"
        group.add(
            name,
            "reals: division and product rounded as pinned",
            {"x": group.draw(name).reals("x", (tokens, features), "float32", -6, 3) * np.float32(1.1)},
            flags=[f.RECIPROCAL, *([f.SMOKE] if tokens == 4 else [])],
        )
    group.add("zeros", "rows of zeros of both signs", {"x": listed([[0.0, -0.0], [-0.0, -0.0]])}, flags=[f.EPSILON])
    group.add("below-epsilon", "a maximum below 1e-5", {"x": listed([[3e-6, -1e-6]])}, flags=[f.EPSILON])
    tiny = np.array([[1, 5, 2**22 + 1]], dtype=np.int32).view(np.float32)
    group.add("subnormal", "subnormals only", {"x": tiny}, flags=[f.SUBNORMAL])
    group.add(
        "ties", "ties go to the even code", {"x": listed([[127.0, 0.5, 1.5, 2.5, -0.5, -3.5]])}, flags=[f.TIES_AWAY]
    )
    group.add(
        "largest",
        "the largest float32: r is subnormal or nearly so",
        {"x": listed([[3.4e38, -1.0, 1e38]])},
        flags=[f.SUBNORMAL],
    )
    group.add(
        "product-not-quotient",
        "values at half-integers of the scale, where x * s and x / (m / 127) round to different codes",
        {"x": group.draw("quotient").search(_near_ties, _product_differs)},
        flags=[f.RECIPROCAL],
    )
    group.add("no-tokens", "no rows", {"x": filled((0, 3), 0.0)}, flags=[f.EMPTY_BATCH])
    return group


def _near_ties(draw: Draw) -> Array:
    """Rows [4, 6] of a largest value and float32 numbers that the scale takes next to a half-integer."""
    largest = np.abs(draw.reals("m", (4, 1), "float32", -1, 1)) * np.float32(1.37)
    halves = draw.integers("h", (4, 5), 1, 120).astype(np.float64) + 0.5
    return np.concatenate([largest, (halves * largest.astype(np.float64) / 127).astype(np.float32)], axis=1)


def _product_differs(x: Array) -> bool:
    """Whether every row has a code that the quotient would get wrong."""
    m = x.max(axis=1, keepdims=True)
    product, quotient = x * (np.float32(127) / m), x / (m / np.float32(127))
    return bool((np.rint(product) != np.rint(quotient)).any(axis=1).all())


def _choice() -> Iterator[Group]:
    group = Group("activations", "choice-ties", "choice", "quantize_activations", exact=True)
    values = [[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.0]]
    away = np.array([[127, 1, 2, 3, -1, -2, -3, 3]], dtype=np.int8)
    for dtype in FLOATS:
        group.add(
            f"{dtype}-ties",
            "ties round to the even code; away from zero is the alternative",
            {"x": listed(values, dtype)},
            flags=[f.TIES_AWAY],
            choices={"a": [away]},
        )
    yield group
    poisoned = Group("activations", "choice-nan", "choice", "quantize_activations", exact=True)
    for name, value, dtype in (
        ("nan", np.nan, "float32"),
        ("inf", np.inf, "float32"),
        ("minus-inf", -np.inf, "float64"),
        ("nan-bfloat16", np.nan, "bfloat16"),
    ):
        x = listed([[127.0, 3.0, -5.0], [1.0, value, 2.0], [-127.0, 0.0, 64.0]], dtype)
        others = [np.array([[127, 3, -5], [code] * 3, [-127, 0, 64]], dtype=np.int8) for code in (-128, 127)]
        poisoned.add(
            name,
            "a row that is not finite has scale NaN; its codes are free, the other rows are not touched",
            {"x": x},
            flags=[f.NAN_ROW],
            choices={"a": others},
        )
    yield poisoned
    fake = Group("activations", "exact-nan", "exact", "fake_quantize_activations")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        x = listed([[127.0, 3.0, -5.0], [1.0, value, 2.0]])
        fake.add(name, "the values of a row that is not finite are NaN", {"x": x}, flags=[f.NAN_ROW], unproven=True)
    yield fake


def _gradient() -> Group:
    group = Group("activations", "gradient-fake", "gradient", "fake_quantize_activations.backward", exact=True)
    for dtype in FLOATS:
        draw = group.draw(dtype)
        inputs = {"x": draw.reals("x", (3, 5), dtype), "dv": draw.reals("dv", (3, 5), dtype)}
        group.add(dtype, "straight through: dx = dv", inputs, flags=[f.STRAIGHT_THROUGH], unproven=True)
    group.add(
        "zeros",
        "also through a row of zeros",
        {"x": filled((1, 3), 0.0), "dv": listed([[1.0, -2.0, 3.0]])},
        flags=[f.STRAIGHT_THROUGH, f.EPSILON],
        unproven=True,
    )
    return group


def _invalid() -> Iterator[Group]:
    for call in ("quantize_activations", "fake_quantize_activations"):
        group = Group("activations", f"invalid-{call.partition('_')[0]}", "invalid", call)
        group.add("no-features", "C = 0 has no maximum", {"x": filled((3, 0), 0.0)}, error="ShapeError")
        group.add("integers", "integers are quantised already", {"x": listed([[1, 2]], "int8")}, error="DTypeError")
        yield group
    strict = Group("activations", "invalid-strict", "invalid", "quantize_activations.strict")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        strict.add(
            name,
            "strict arithmetic needs finite rows",
            {"x": listed([[1.0, value]])},
            error="NonFiniteError",
            flags=[f.NAN_ROW],
        )
    strict.add("float64", "strict arithmetic is float32", {"x": listed([[1.0]], "float64")}, error="DTypeError")
    strict.add("no-features", "C = 0", {"x": filled((2, 0), 0.0)}, error="ShapeError")
    yield strict
