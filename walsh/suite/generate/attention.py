"""Vectors of *attention*: ``o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`` over the keys that a query may see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group
from walsh.suite.generate.numbers import FLOATS, Draw, filled
from walsh.suite.tensors import DTYPES, Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield _rounded()
    yield _strict()
    yield _gradient()
    yield from _invalid()


def _at(values: object) -> Array:
    return np.array(values, dtype=np.int64)


def _uniform(draw: Draw, batch: int, tokens: int, length: int, heads: int, d: int, dtype: str) -> dict[str, Array]:
    """Q = 0 makes all scores 0: the mean of the visible values; non-zero integers keep zeros out."""
    v = draw.integers("v", (batch, length, heads, d), 1, 31) * 16
    return {
        "q": filled((batch, tokens, heads, d), 0.0, dtype),
        "k": draw.reals("k", (batch, length, heads, d), dtype),
        "v": v.astype(DTYPES[dtype]),
    }


def _exact() -> Group:
    """Means over 1, 2, 4, ... keys: the probabilities are powers of two."""
    group = Group("attention", "exact", "exact", "attention")
    for dtype in FLOATS:
        inputs = _uniform(group.draw(dtype), 2, 4, 8, 2, 2, dtype)
        group.add(
            f"uniform-{dtype}",
            "equal scores over 1, 2, 4 and 8 keys",
            {**inputs, "positions": _at([0, 1, 3, 7])},
            flags=[f.POSITIONS],
            unproven=True,
        )
        group.add(
            f"one-key-{dtype}",
            "one key: its value",
            _random(group.draw(f"one{dtype}"), 2, 1, 1, 2, 2, dtype),
            unproven=True,
        )
    first = _random(group.draw("first"), 2, 3, 4, 1, 2)
    first["positions"] = _at([[0, 0, 0], [0, 0, 0]])
    group.add(
        "first-key", "queries that see key 0 only, in either sequence", first, flags=[f.CACHE_ROW_0], unproven=True
    )
    sharp = _random(group.draw("sharp"), 1, 2, 4, 1, 4)
    sharp["q"] = filled((1, 2, 1, 4), 64.0)
    sharp["k"] = np.zeros((1, 4, 1, 4), dtype=np.float32)
    sharp["k"][0, 1] = 64.0
    group.add(
        "one-hot",
        "scores 8192 apart: the value of one key, to the bit",
        sharp,
        flags=[f.SOFTMAX_OVERFLOW],
        unproven=True,
    )
    group.add("no-queries", "T = 0", _random(group.draw("none"), 2, 0, 3, 1, 2), flags=[f.EMPTY_BATCH], unproven=True)
    group.add("no-batch", "B = 0", _random(group.draw("nob"), 0, 2, 2, 1, 2), flags=[f.EMPTY_BATCH], unproven=True)
    return group


def _random(
    draw: Draw, batch: int, tokens: int, length: int, heads: int, d: int, dtype: str = "float32"
) -> dict[str, Array]:
    shape = (batch, length, heads, d)
    return {
        "q": draw.reals("q", (batch, tokens, heads, d), dtype),
        "k": draw.reals("k", shape, dtype),
        "v": draw.reals("v", shape, dtype),
    }


def _rounded() -> Group:
    group = Group("attention", "rounded", "rounded", "attention")
    for dtype in FLOATS:
        for batch, tokens, length, heads, d in ((1, 3, 3, 1, 2), (2, 2, 5, 2, 4)):
            name = f"{dtype}-{batch}x{tokens}x{length}x{heads}x{d}"
            group.add(
                name,
                "reals; the queries are the last tokens",
                _random(group.draw(name), batch, tokens, length, heads, d, dtype),
                flags=[f.FUTURE, *([f.SMOKE] if name.startswith("float32-1x3") else [])],
            )
    for length in (17, 33, 65, 130):
        group.add(
            f"keys-{length}",
            "tail rows of keys",
            _random(group.draw(f"k{length}"), 1, 2, length, 1, 2),
            flags=[f.TAIL_ROWS],
        )
    for tokens in (5, 17, 33):
        group.add(
            f"tokens-{tokens}",
            "tail rows of queries",
            _random(group.draw(f"t{tokens}"), 1, tokens, tokens, 1, 2),
            flags=[f.TAIL_ROWS, f.FUTURE],
        )
    for d in (1, 3, 8):
        group.add(f"d-{d}", "head dimensions", _random(group.draw(f"d{d}"), 1, 2, 4, 2, d), flags=[f.TAIL_COLUMNS])
    _positions(group)
    draw = group.draw("values")
    base = _random(draw, 2, 3, 4, 1, 2)
    future = {name: array.copy() for name, array in base.items()}
    future["k"][:, 3], future["v"][:, 3] = 1e4, 1e30
    group.add(
        "future",
        "the last key is huge and belongs to nobody's past",
        {**future, "positions": _at([0, 1, 2])},
        flags=[f.FUTURE],
    )
    hidden = {name: array.copy() for name, array in base.items()}
    hidden["k"][:, 3], hidden["v"][:, 3] = np.nan, np.nan
    group.add(
        "hidden-nan",
        "a key that nobody sees may hold NaN",
        {**hidden, "positions": _at([0, 1, 2])},
        flags=[f.FUTURE, f.NAN_ROW],
    )
    later = {name: array.copy() for name, array in base.items()}
    later["k"][0, 2, 0, 0], later["v"][1, 2, 0, 0] = np.nan, np.nan
    group.add(
        "later-nan",
        "a NaN that the last query sees does not reach the queries before it",
        {**later, "positions": _at([0, 1, 2])},
        flags=[f.FUTURE, f.NAN_ROW],
    )
    large = {**base, "q": base["q"] * np.float32(200), "k": base["k"] * np.float32(4)}
    group.add("large-scores", "scores past 88 in magnitude", large, flags=[f.SOFTMAX_OVERFLOW])
    unlike = {**base, "v": np.ldexp(base["v"], np.array([-20, 0, 3, 20])[None, :, None, None]).astype(np.float32)}
    group.add("unlike-values", "values of unlike magnitude", unlike, flags=[f.UNLIKE_ROWS])
    nan = {name: array.copy() for name, array in base.items()}
    nan["q"][0, 1, 0, 0] = np.nan
    group.add("nan-query", "a NaN query fills its own result and no other", nan, flags=[f.NAN_ROW])
    return group


def _positions(group: Group) -> None:
    draw = group.draw("positions")
    base = _random(draw, 2, 3, 5, 2, 2)
    cases = [
        ("given", "one list for all sequences", [1, 4, 2], [f.POSITIONS]),
        ("per-sequence", "lengths differ between sequences", [[0, 1, 2], [2, 3, 4]], [f.POSITIONS, f.CACHE_ROW_0]),
        ("padding", "padded queries give zeros", [[0, -1, -1], [3, 4, -1]], [f.PADDING]),
        ("all-padding", "nothing but padding in one sequence", [[-1, -1, -1], [0, 1, 2]], [f.PADDING]),
        ("not-sorted", "positions in any order", [[4, 0, 2], [1, 1, 3]], [f.POSITIONS]),
    ]
    for name, comment, positions, marks in cases:
        group.add(name, comment, {**base, "positions": _at(positions)}, flags=marks)


def _strict() -> Group:
    group = Group("attention", "strict", "strict", "attention.strict")
    for batch, tokens, length, heads, d in (
        (1, 1, 1, 1, 1),
        (2, 3, 3, 2, 2),
        (1, 2, 7, 1, 4),
        (1, 1, 33, 1, 2),
        (1, 2, 70, 1, 2),
    ):
        name = f"{batch}x{tokens}x{length}x{heads}x{d}"
        inputs = {
            key: array * np.float32(1.3)
            for key, array in _random(group.draw(name), batch, tokens, length, heads, d).items()
        }
        group.add(
            name,
            "int8 scores; sums in blocks of 32 positions",
            inputs,
            flags=[f.SUM_ORDER, *([f.SMOKE] if length == 3 else [])],
        )
    base = _random(group.draw("positions"), 2, 3, 5, 2, 2)
    for name, positions, mark in (
        ("per-sequence", [[0, 1, 2], [2, 3, 4]], f.CACHE_ROW_0),
        ("padding", [[0, -1, -1], [3, 4, -1]], f.PADDING),
        ("given", [4, 0, 2], f.POSITIONS),
    ):
        group.add(name, "positions as a cache gives them", {**base, "positions": _at(positions)}, flags=[mark])
    large = {**base, "q": base["q"] * np.float32(300), "k": base["k"] * np.float32(7)}
    group.add("large-scores", "exponents far below -87 give +0", large, flags=[f.SOFTMAX_OVERFLOW])
    zero = {name: array.copy() for name, array in base.items()}
    zero["k"][:, 1] = 0.0
    zero["v"][:, 2] = 0.0
    group.add("zero-key", "a key and a value of zeros", zero, flags=[f.EPSILON])
    group.add("no-queries", "T = 0", _random(group.draw("none"), 2, 0, 3, 1, 2), flags=[f.EMPTY_BATCH])
    return group


def _gradient() -> Group:
    group = Group("attention", "gradient-rounded", "gradient", "attention.backward")
    for dtype in FLOATS:
        for batch, tokens, length, heads, d in ((1, 3, 3, 1, 2), (2, 2, 4, 2, 2)):
            name = f"{dtype}-{batch}x{tokens}x{length}x{heads}x{d}"
            draw = group.draw(name)
            inputs = _random(draw, batch, tokens, length, heads, d, dtype)
            group.add(
                name, "dq, dk and dv", {**inputs, "do": draw.reals("do", inputs["q"].shape, dtype)}, flags=[f.FUTURE]
            )
    draw = group.draw("positions")
    inputs = _random(draw, 2, 2, 3, 1, 2)
    do = draw.reals("do", (2, 2, 1, 2))
    for name, positions, mark in (
        ("padding", [[0, -1], [1, 2]], f.PADDING),
        ("per-sequence", [[0, 1], [2, 2]], f.POSITIONS),
    ):
        group.add(
            name,
            "padded queries have no gradient" if "pad" in name else "positions differ",
            {**inputs, "positions": _at(positions), "do": do},
            flags=[mark],
        )
    for tokens in (17, 33):
        draw = group.draw(f"t{tokens}")
        inputs = _random(draw, 1, tokens, tokens, 1, 1)
        group.add(
            f"tokens-{tokens}", "tail rows", {**inputs, "do": draw.reals("do", inputs["q"].shape)}, flags=[f.TAIL_ROWS]
        )
    draw = group.draw("one")
    inputs = _random(draw, 2, 1, 1, 1, 2)
    group.add("one-key", "one key: dv is do, dq and dk are zeros", {**inputs, "do": draw.reals("do", (2, 1, 1, 2))})
    return group


def _invalid() -> Iterator[Group]:
    group = Group("attention", "invalid", "invalid", "attention")
    good = _random(group.draw("good"), 2, 2, 3, 2, 2)
    wrong: list[tuple[str, str, dict[str, Array], str]] = [
        ("position-minus-2", "below -1 nothing is defined", {"positions": _at([-2, 0])}, "RangeError"),
        ("position-s", "a position from S up", {"positions": _at([0, 3])}, "RangeError"),
        ("position-shape", "positions of another length", {"positions": _at([0, 1, 2])}, "ShapeError"),
        ("position-float", "positions are integers", {"positions": filled((2,), 0.0)}, "DTypeError"),
        (
            "too-many-queries",
            "two queries more than keys: the first would stand at -2",
            {"q": filled((2, 5, 2, 2), 1.0)},
            "RangeError",
        ),
        ("heads", "k has other heads than q", {"q": filled((2, 2, 1, 2), 1.0)}, "ShapeError"),
        ("d", "k has another head dimension", {"q": filled((2, 2, 2, 3), 1.0)}, "ShapeError"),
        ("batch", "a batch of one would broadcast", {"q": filled((1, 2, 2, 2), 1.0)}, "ShapeError"),
        ("v-length", "v is shorter than k", {"v": filled((2, 2, 2, 2), 1.0)}, "ShapeError"),
        ("rank", "q without a batch axis", {"q": filled((2, 2, 2), 1.0)}, "ShapeError"),
        ("integer", "q is float", {"q": filled((2, 2, 2, 2), 1, "int32")}, "DTypeError"),
    ]
    for case, comment, change, error in wrong:
        group.add(case, comment, {**good, **change}, error=error, flags=[f.BROADCAST] if case == "batch" else [])
    yield group
    strict = Group("attention", "invalid-strict", "invalid", "attention.strict")
    nan = good["v"].copy()
    nan[0, 1, 0, 0] = np.nan
    strict.add("nan-value", "strict arithmetic needs finite rows", {**good, "v": nan}, error="NonFiniteError")
    strict.add(
        "float64", "strict arithmetic is float32", {**good, "q": good["q"].astype(np.float64)}, error="DTypeError"
    )
    strict.add("position-s", "a position from S up", {**good, "positions": _at([0, 3])}, error="RangeError")
    yield strict
