"""Vectors of *cross_entropy*, plain and from the features of the head, with gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group
from walsh.suite.generate.numbers import FLOATS, Draw, filled, listed
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield from _rounded()
    yield _transcendental()
    yield from _gradients()
    yield from _invalid()


def _targets(values: object, dtype: str = "int64") -> Array:
    return np.array(values, dtype=dtype)


def _exact() -> Group:
    """Logits more than 1000 apart: exp(-gap) is 0 in every dtype, and the loss is the gap itself."""
    group = Group("cross_entropy", "exact", "exact", "cross_entropy")
    logits = [[0.0, 1024.0, -8.0], [-2048.0, 0.0, -1024.0]]
    for dtype in FLOATS:
        group.add(
            f"gap-{dtype}",
            "the mean of two gaps; naive exponentials overflow",
            {"logits": listed(logits, dtype), "targets": _targets([0, 2])},
            flags=[f.SOFTMAX_OVERFLOW, *([f.SMOKE] if dtype == "float32" else [])],
            unproven=True,
        )
    group.add(
        "ignored",
        "the token that does not count has the larger gap",
        {"logits": listed(logits), "targets": _targets([0, -1])},
        flags=[f.IGNORED_TARGET],
        unproven=True,
    )
    return group


def _random(
    draw: Draw, shape: tuple[int, ...], vocabulary: int, dtype: str = "float32", low: int = 0
) -> dict[str, Array]:
    """Logits and targets; ``low`` -1 mixes in targets that do not count."""
    targets = draw.integers("targets", shape, low, vocabulary - 1)
    return {"logits": draw.reals("logits", (*shape, vocabulary), dtype, -3, 2), "targets": targets}


def _linear(
    draw: Draw, shape: tuple[int, ...], vocabulary: int, width: int, dtype: str = "float32", low: int = 0
) -> dict[str, Array]:
    return {
        "x": draw.reals("x", (*shape, width), dtype, -3, 1),
        "table": draw.reals("table", (vocabulary, width), dtype, -3, 1),
        "targets": draw.integers("targets", shape, low, vocabulary - 1),
    }


def _rounded() -> Iterator[Group]:
    group = Group("cross_entropy", "rounded", "rounded", "cross_entropy")
    for dtype in FLOATS:
        for shape, vocabulary in (((3,), 5), ((2, 2), 7)):
            name = f"{dtype}-{'x'.join(map(str, shape))}x{vocabulary}"
            group.add(name, "reals", _random(group.draw(name), shape, vocabulary, dtype))
    for tokens in (1, 17, 33):
        group.add(
            f"tokens-{tokens}",
            "tail rows, some that do not count",
            _random(group.draw(f"t{tokens}"), (tokens,), 3, low=-1 if tokens > 1 else 0),
            flags=[f.TAIL_ROWS, f.IGNORED_TARGET],
        )
    for vocabulary in (2, 33, 65, 130):
        group.add(
            f"v-{vocabulary}",
            "vocabularies past a tile",
            _random(group.draw(f"v{vocabulary}"), (2,), vocabulary),
            flags=[f.TAIL_COLUMNS],
        )
    base = _random(group.draw("base"), (4,), 5)
    group.add("one-class", "V = 1: the loss is 0", {"logits": listed([[3.0], [-2.0]]), "targets": _targets([0, 0])})
    group.add("ignored", "two of four count", {**base, "targets": _targets([-1, 2, -1, 4])}, flags=[f.IGNORED_TARGET])
    group.add(
        "all-ignored", "none counts: 0, not NaN", {**base, "targets": _targets([-1] * 4)}, flags=[f.IGNORED_TARGET]
    )
    group.add(
        "scalar",
        "one token without an axis",
        {"logits": base["logits"][0], "targets": _targets(3)},
        flags=[f.LEADING_AXES],
    )
    group.add(
        "no-tokens", "no tokens: 0", {"logits": filled((0, 5), 0.0), "targets": _targets([])}, flags=[f.EMPTY_BATCH]
    )
    group.add(
        "large", "logits past 88", {**base, "logits": base["logits"] * np.float32(40)}, flags=[f.SOFTMAX_OVERFLOW]
    )
    group.add("uniform", "equal logits: log V", {"logits": filled((2, 4), 0.25), "targets": _targets([0, 3], "int32")})
    group.add(
        "confident",
        "the target's logit is far ahead: a loss close to 0 must not be exactly 0",
        {"logits": listed([[9.0, 0.0, 0.0], [0.0, 12.0, 0.0]]), "targets": _targets([0, 1])},
        flags=[f.CANCELLATION],
    )
    nan = base["logits"].copy()
    nan[2, 1] = np.nan
    group.add(
        "nan-ignored",
        "NaN in a token that does not count",
        {"logits": nan, "targets": _targets([0, 1, -1, 2])},
        flags=[f.NAN_ROW, f.IGNORED_TARGET],
    )
    group.add(
        "nan", "NaN in a token that counts", {"logits": nan, "targets": _targets([0, 1, 1, 2])}, flags=[f.NAN_ROW]
    )
    yield group
    linear = Group("cross_entropy", "rounded-linear", "rounded", "linear_cross_entropy", {"chunk_size": 3})
    for dtype in FLOATS:
        linear.add(dtype, "reals", _linear(linear.draw(dtype), (5,), 7, 4, dtype, -1), flags=[f.CHUNK_TAIL])
    for chunk in (1, 2, 4, 5, 6, 64):
        linear.add(
            f"chunk-{chunk}",
            "chunks of one, that divide, do not, and exceed five tokens",
            _linear(linear.draw(f"c{chunk}"), (5,), 6, 3),
            chunk_size=chunk,
            flags=[f.CHUNK_TAIL],
        )
    half = _linear(linear.draw("half"), (6,), 5, 3)
    half["targets"] = _targets([-1, -1, -1, 2, 0, 4])
    linear.add("ignored-chunk", "a whole chunk that does not count", half, flags=[f.CHUNK_TAIL, f.IGNORED_TARGET])
    none = {**half, "targets": _targets([-1] * 6)}
    linear.add("all-ignored", "none counts: 0", none, flags=[f.IGNORED_TARGET])
    linear.add("axes", "two leading axes", _linear(linear.draw("axes"), (2, 3), 5, 4), flags=[f.LEADING_AXES])
    linear.add(
        "tokens-33",
        "more chunks than one",
        _linear(linear.draw("33"), (33,), 3, 2, low=-1),
        chunk_size=8,
        flags=[f.TAIL_ROWS, f.CHUNK_TAIL],
    )
    yield linear


def _transcendental() -> Group:
    """One token, two classes, no cancellation: log(1 + exp(gap)) itself."""
    group = Group("cross_entropy", "transcendental", "transcendental", "cross_entropy")
    for gap in (0.0, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0):
        group.add(
            f"gap-{gap:g}",
            f"log(1 + exp({gap:g}))",
            {"logits": listed([[0.0, gap]]), "targets": _targets([0])},
            flags=[f.SOFTMAX_OVERFLOW],
        )
    return group


def _gradients() -> Iterator[Group]:
    group = Group("cross_entropy", "gradient-rounded", "gradient", "cross_entropy.backward")
    for dtype in FLOATS:
        draw = group.draw(dtype)
        group.add(dtype, "reals", {**_random(draw, (3,), 5, dtype), "dloss": listed(1.0, dtype)})
        # Not exact: a softmax by way of log(sum) rounds log V.
        group.add(
            f"{dtype}-uniform",
            "equal logits: 1/8 and 1/8 - 1",
            {
                "logits": filled((2, 8), 0.5, dtype),
                "targets": _targets([1, 0]),
                "dloss": listed(4.0, dtype),
            },
        )
    base = _random(group.draw("base"), (4,), 5)
    one = listed(1.0)
    group.add(
        "upstream", "an upstream gradient that is not 1", {**base, "dloss": listed(-0.375)}, flags=[f.SCALE_MISSING]
    )
    group.add(
        "ignored",
        "tokens that do not count have no gradient",
        {**base, "targets": _targets([-1, 2, -1, 4]), "dloss": one},
        flags=[f.IGNORED_TARGET],
    )
    group.add(
        "all-ignored",
        "zero gradients, not NaN",
        {**base, "targets": _targets([-1] * 4), "dloss": one},
        flags=[f.IGNORED_TARGET],
    )
    group.add(
        "large",
        "logits past 88",
        {**base, "logits": base["logits"] * np.float32(40), "dloss": one},
        flags=[f.SOFTMAX_OVERFLOW],
    )
    group.add(
        "tokens-17", "tail rows", {**_random(group.draw("17"), (17,), 3, low=-1), "dloss": one}, flags=[f.TAIL_ROWS]
    )
    yield group
    linear = Group("cross_entropy", "gradient-linear", "gradient", "linear_cross_entropy.backward", {"chunk_size": 2})
    for dtype in FLOATS:
        draw = linear.draw(dtype)
        linear.add(
            dtype,
            "dx and dtable",
            {**_linear(draw, (5,), 6, 3, dtype, -1), "dloss": listed(1.0, dtype)},
            flags=[f.CHUNK_TAIL],
        )
    for chunk in (1, 3, 5, 64):
        linear.add(
            f"chunk-{chunk}",
            "dtable sums over chunks",
            {**_linear(linear.draw(f"c{chunk}"), (5,), 4, 3), "dloss": listed(2.0)},
            chunk_size=chunk,
            flags=[f.CHUNK_TAIL],
        )
    ignored = _linear(linear.draw("ignored"), (5,), 4, 3)
    linear.add(
        "ignored",
        "a chunk that does not count",
        {**ignored, "targets": _targets([-1, -1, 2, 0, -1]), "dloss": one},
        flags=[f.IGNORED_TARGET, f.CHUNK_TAIL],
    )
    linear.add(
        "all-ignored",
        "zero gradients",
        {**ignored, "targets": _targets([-1] * 5), "dloss": one},
        flags=[f.IGNORED_TARGET],
    )
    yield linear


def _invalid() -> Iterator[Group]:
    group = Group("cross_entropy", "invalid", "invalid", "cross_entropy")
    logits = filled((2, 3), 0.0)
    group.add(
        "target-v",
        "a target from V up",
        {"logits": logits, "targets": _targets([0, 3])},
        error="RangeError",
        flags=[f.SILENT_DEFAULT],
    )
    for other in (-2, -100):
        group.add(
            f"target-minus-{-other}",
            "only -1 is ignored",
            {"logits": logits, "targets": _targets([0, other])},
            error="RangeError",
            flags=[f.SILENT_DEFAULT],
        )
    group.add(
        "shape",
        "a target for each token",
        {"logits": logits, "targets": _targets([0])},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    group.add("float", "targets are integers", {"logits": logits, "targets": filled((2,), 0.0)}, error="DTypeError")
    group.add(
        "integer",
        "logits are float",
        {"logits": filled((2, 3), 0, "int32"), "targets": _targets([0, 1])},
        error="DTypeError",
    )
    yield group
    linear = Group("cross_entropy", "invalid-linear", "invalid", "linear_cross_entropy", {"chunk_size": 2})
    good = {"x": filled((2, 3), 1.0), "table": filled((4, 3), 1.0), "targets": _targets([0, 1])}
    linear.add("target", "a target from V up", {**good, "targets": _targets([0, 4])}, error="RangeError")
    linear.add("width", "x does not fit the table", {**good, "x": filled((2, 4), 1.0)}, error="ShapeError")
    for chunk in (0, -1):
        linear.add(
            f"chunk-{'minus-1' if chunk else '0'}",
            "at least one token at a time",
            good,
            error="ParameterError",
            chunk_size=chunk,
        )
    yield linear
