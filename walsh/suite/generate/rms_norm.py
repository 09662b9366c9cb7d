"""Vectors of *rms_norm*: ``y = x / sqrt(mean(x^2) + eps) * weight``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Flag, Group
from walsh.suite.generate.numbers import FLOATS, Draw, filled, listed
from walsh.suite.tensors import DTYPES, Array

MEAN_NOT_SUM = Flag(
    "mean_not_sum",
    "sum of squares instead of their mean, or the norm of the whole tensor",
    "The mean is taken over the last axis of each token.",
)


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield _rounded()
    yield _strict()
    yield from _gradients()
    yield from _invalid()


def _exact() -> Group:
    """Eps = 1 and mean(x^2) = 3, 8, 15, ... make the root an integer that is a power of two: 2^k with mean 4^k - 1."""
    group = Group("rms_norm", "exact", "exact", "rms_norm", {"eps": 1.0})
    rows = {
        2: [[1.0, 1.0, 1.0, 3.0], [-1.0, 3.0, 1.0, -1.0]],  # mean 3, root 2
        4: [[5.0, 1.0, 3.0, 5.0], [-5.0, 5.0, 1.0, -3.0]],  # mean 15, root 4
    }
    for root, values in rows.items():
        for dtype in FLOATS:
            group.add(
                f"root-{root}-{dtype}",
                f"mean(x^2) + eps is {root * root}: the root and the quotient are exact",
                {"x": listed(values, dtype), "weight": listed([1.0, -2.0, 0.5, 4.0], dtype)},
                flags=[f.EPSILON, MEAN_NOT_SUM],
                unproven=True,
            )
    group.add(
        "both",
        "tokens with different roots",
        {"x": listed(rows[2] + rows[4]), "weight": listed([1.0, 2.0, 4.0, 8.0])},
        flags=[f.TOKEN_SCALE],
        unproven=True,
    )
    group.add(
        "no-epsilon",
        "eps = 0 and mean 4",
        {"x": listed([[2.0, -2.0]]), "weight": listed([3.0, 5.0])},
        eps=0.0,
        flags=[f.EPSILON],
        unproven=True,
    )
    group.add("one-feature", "C = 1", {"x": listed([[2.0], [-4.0]]), "weight": listed([3.0])}, eps=0.0, unproven=True)
    group.add(
        "no-tokens",
        "no rows",
        {"x": filled((0, 4), 0.0), "weight": filled((4,), 1.0)},
        flags=[f.EMPTY_BATCH],
        unproven=True,
    )
    group.add(
        "axes",
        "leading axes",
        {"x": listed([rows[2], rows[4]]).reshape(2, 2, 1, 4), "weight": filled((4,), 2.0)},
        flags=[f.LEADING_AXES],
        unproven=True,
    )
    large = listed([[512.0, -512.0, 512.0, 512.0], [-1024.0, 1024.0, 1024.0, -1024.0]])
    group.add(
        "large",
        "rows of one magnitude: y is the weight with the signs of x",
        {"x": large, "weight": listed([1.0, 3.0, 5.0, 7.0])},
        eps=0.0,
        unproven=True,
    )
    return group


def tokens_of(
    draw: Draw, shape: tuple[int, ...], dtype: str = "float32", low: int = -4, high: int = 1
) -> dict[str, Array]:
    """X and weight, reals."""
    return {"x": draw.reals("x", shape, dtype, low, high), "weight": draw.reals("weight", shape[-1:], dtype, -1, 1)}


def _rounded() -> Group:
    group = Group("rms_norm", "rounded", "rounded", "rms_norm")
    for dtype in FLOATS:
        for shape in ((1, 1), (3, 8), (2, 17)):
            name = f"{dtype}-{shape[0]}x{shape[1]}"
            group.add(
                name,
                "reals",
                tokens_of(group.draw(name), shape, dtype),
                flags=[MEAN_NOT_SUM, *([f.SMOKE] if name == "float32-3x8" else [])],
            )
    for tokens in (5, 17, 33, 65, 130):
        group.add(
            f"tokens-{tokens}", "tail rows", tokens_of(group.draw(f"t{tokens}"), (tokens, 3)), flags=[f.TAIL_ROWS]
        )
    for features in (31, 33, 64, 127):
        group.add(
            f"features-{features}",
            "sizes around vector widths",
            tokens_of(group.draw(f"f{features}"), (1, features)),
            flags=[f.TAIL_COLUMNS],
        )
    draw = group.draw("values")
    base = tokens_of(draw, (4, 6))
    unlike = np.ldexp(base["x"], [[-14], [-9], [0], [20]]).astype(np.float32)
    group.add(
        "unlike-rows",
        "tokens of unlike magnitude: epsilon counts in the small ones",
        {**base, "x": unlike},
        flags=[f.TOKEN_SCALE, f.EPSILON, f.UNLIKE_ROWS],
    )
    zero = base["x"].copy()
    zero[2] = 0
    group.add("zero-row", "a token of zeros gives zeros", {**base, "x": zero}, flags=[f.EPSILON])
    tiny = np.ldexp(base["x"], -70).astype(np.float32)
    group.add("tiny", "squares underflow: epsilon alone is left", {**base, "x": tiny}, flags=[f.EPSILON, f.SUBNORMAL])
    large = np.ldexp(base["x"], 58).astype(np.float32)
    group.add("large", "squares come close to the largest float32", {**base, "x": large}, flags=[f.OUTLIER])
    outlier = base["x"].copy()
    outlier[1, 4] = 1e7
    group.add("outlier", "one huge feature in one token", {**base, "x": outlier}, flags=[f.OUTLIER])
    half = {name: array.astype(DTYPES["float16"]) for name, array in base.items()}
    half["x"] = half["x"] * np.float16(512)
    group.add("float16-squares", "float16 squares overflow unless they are float32 inside", half, flags=[f.ACCUMULATOR])
    for eps in (1e-12, 1e-5, 0.5):
        group.add(
            f"eps-{eps:g}", "other epsilons", {**base, "x": base["x"] * np.float32(0.01)}, eps=eps, flags=[f.EPSILON]
        )
    nan = base["x"].copy()
    nan[1, 2] = np.nan
    group.add("nan", "NaN fills its token and no other", {**base, "x": nan}, flags=[f.NAN_ROW])
    group.add("axes", "leading axes", {**base, "x": base["x"].reshape(2, 1, 2, 6)}, flags=[f.LEADING_AXES])
    group.add("row", "no leading axis", {**base, "x": base["x"][0]}, flags=[f.LEADING_AXES])
    return group


def _strict() -> Group:
    group = Group("rms_norm", "strict", "strict", "rms_norm.strict")
    for tokens, features in ((1, 1), (3, 2), (4, 5), (2, 8), (3, 33), (5, 24), (17, 7)):
        name = f"{tokens}x{features}"
        inputs = tokens_of(group.draw(name), (tokens, features))
        inputs["x"] *= np.float32(1.3)
        group.add(
            name,
            "hsum, one division, one root, one division, two products",
            inputs,
            flags=[f.SUM_ORDER, f.ROOT, f.RECIPROCAL, f.FUSED_MULTIPLY_ADD],
        )
    draw = group.draw("values")
    wide = tokens_of(draw, (4, 13), low=-20, high=20)
    group.add("wide", "magnitudes 2^40 apart: the order of the sum shows", wide, flags=[f.SUM_ORDER])
    zero = tokens_of(draw, (3, 4))
    zero["x"][1] = 0
    group.add("zero-row", "a token of zeros between two others", zero, flags=[f.EPSILON])
    zero = {**zero, "x": -zero["x"]}
    group.add("negative-zeros", "a token of negative zeros keeps their sign", zero, flags=[f.NEGATIVE_ZERO])
    small = tokens_of(draw, (2, 6), low=-14, high=-9)
    group.add("small", "epsilon counts", small, flags=[f.EPSILON])
    subnormal = tokens_of(draw, (2, 6), low=-75, high=-70)
    group.add("subnormal-squares", "squares are subnormal or vanish", subnormal, flags=[f.SUBNORMAL])
    group.add("no-tokens", "no rows", {"x": filled((0, 4), 0.0), "weight": filled((4,), 1.0)}, flags=[f.EMPTY_BATCH])
    return group


def _gradients() -> Iterator[Group]:
    exact = Group("rms_norm", "gradient-exact", "gradient", "rms_norm.backward", {"eps": 1.0}, exact=True)
    for dtype in FLOATS:
        # root 2: xhat in halves, mean over four, all dyadic; no result is zero.
        inputs = {
            "x": listed([[1.0, 1.0, 1.0, 3.0], [-1.0, 3.0, 1.0, -1.0]], dtype),
            "weight": listed([1.0, -2.0, 0.5, 4.0], dtype),
            "dy": listed([[8.0, 4.0, -16.0, 2.0], [4.0, 8.0, 24.0, -6.0]], dtype),
        }
        exact.add(dtype, "the root is 2: dx and dweight are dyadic", inputs, flags=[f.EPSILON], unproven=True)
    yield exact
    rounded = Group("rms_norm", "gradient-rounded", "gradient", "rms_norm.backward")
    for dtype in FLOATS:
        for shape in ((2, 5), (3, 16)):
            name = f"{dtype}-{shape[0]}x{shape[1]}"
            draw = rounded.draw(name)
            rounded.add(name, "dx and dweight", {**tokens_of(draw, shape, dtype), "dy": draw.reals("dy", shape, dtype)})
    draw = rounded.draw("values")
    base = {**tokens_of(draw, (4, 6)), "dy": draw.reals("dy", (4, 6))}
    zero = base["x"].copy()
    zero[1] = 0
    rounded.add("zero-row", "epsilon alone divides", {**base, "x": zero}, flags=[f.EPSILON])
    unlike = np.ldexp(base["x"], [[-12], [0], [4], [16]]).astype(np.float32)
    rounded.add("unlike-rows", "tokens of unlike magnitude", {**base, "x": unlike}, flags=[f.UNLIKE_ROWS])
    for tokens in (17, 65):
        draw = rounded.draw(f"t{tokens}")
        rounded.add(
            f"tokens-{tokens}",
            "dweight sums over all tokens",
            {**tokens_of(draw, (tokens, 2)), "dy": draw.reals("dy", (tokens, 2))},
            flags=[f.TAIL_ROWS],
        )
    parallel = {**base, "dy": base["x"].copy(), "weight": filled((6,), 1.0)}
    rounded.add("parallel", "dy along x: dx nearly cancels", parallel, flags=[f.CANCELLATION])
    rounded.add(
        "axes",
        "leading axes",
        {"x": base["x"].reshape(2, 2, 6), "weight": base["weight"], "dy": base["dy"].reshape(2, 2, 6)},
        flags=[f.LEADING_AXES],
        eps=1e-5,
    )
    yield rounded


def _invalid() -> Iterator[Group]:
    group = Group("rms_norm", "invalid", "invalid", "rms_norm")
    good = {"x": filled((2, 4), 1.0), "weight": filled((4,), 1.0)}
    group.add(
        "weight-one",
        "a weight that would broadcast",
        {**good, "weight": filled((1,), 1.0)},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    group.add(
        "weight-matrix",
        "a weight per token",
        {**good, "weight": filled((2, 4), 1.0)},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    group.add("weight-long", "another number of features", {**good, "weight": filled((5,), 1.0)}, error="ShapeError")
    group.add("x-integer", "x is float", {**good, "x": filled((2, 4), 1, "int32")}, error="DTypeError")
    group.add("x-scalar", "x has no feature axis", {**good, "x": filled((), 1.0)}, error="ShapeError")
    yield group
    strict = Group("rms_norm", "invalid-strict", "invalid", "rms_norm.strict")
    strict.add(
        "float64", "strict arithmetic is float32", {**good, "x": filled((2, 4), 1.0, "float64")}, error="DTypeError"
    )
    strict.add(
        "weight",
        "a weight that would broadcast",
        {**good, "weight": filled((1,), 1.0)},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    yield strict
