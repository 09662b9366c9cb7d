"""Vectors of *rope*: pairs (2i, 2i + 1) rotated by ``position * theta^(-2 i / d)``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Flag, Group
from walsh.suite.generate.numbers import FLOATS, filled, listed
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield _rounded()
    yield _transcendental()
    yield _strict()
    yield _gradient()
    yield from _invalid()


def _exact() -> Group:
    """Angle 0 only: everything else is irrational."""
    group = Group("rope", "exact", "exact", "rope")
    zeros = np.zeros(3, dtype=np.int64)
    for dtype in FLOATS:
        x = group.draw(dtype).reals("x", (3, 2, 4), dtype)
        group.add(
            f"position-0-{dtype}", "the rotation by 0 is the identity", {"x": x, "positions": zeros}, unproven=True
        )
    x = group.draw("default").reals("x", (2, 1, 3, 6))
    group.add(
        "default-one-token",
        "by default the first token has position 0",
        {"x": x},
        flags=[f.LEADING_AXES],
        unproven=True,
    )
    group.add("no-tokens", "no rows", {"x": filled((0, 2, 4), 0.0)}, flags=[f.EMPTY_BATCH], unproven=True)
    return group


def _at(values: list[int] | list[list[int]], dtype: str = "int64") -> Array:
    return np.array(values, dtype=dtype)


def _rounded() -> Group:
    group = Group("rope", "rounded", "rounded", "rope")
    for dtype in FLOATS:
        for shape in ((4, 2, 2), (3, 1, 6), (2, 2, 2, 4)):
            name = f"{dtype}-{'x'.join(map(str, shape))}"
            group.add(
                name,
                "default positions",
                {"x": group.draw(name).reals("x", shape, dtype)},
                flags=[f.PAIRS, *([f.SMOKE] if name == "float32-4x2x2" else [])],
            )
    draw = group.draw("positions")
    x = draw.reals("x", (2, 3, 2, 4))
    cases: list[tuple[str, str, Array, list[Flag]]] = [
        ("given", "positions that do not start at 0", _at([7, 2, 100]), [f.POSITIONS]),
        ("per-sequence", "every sequence has its own", _at([[0, 5, 9], [1, 3, 77]]), [f.POSITIONS]),
        ("repeated", "the same position twice", _at([4, 4, 5]), [f.POSITIONS]),
        ("int32", "positions of another integer dtype", _at([3, 1, 2], "int32"), [f.POSITIONS]),
        (
            "past-4096",
            "around and past the end of common tables",
            _at([[4095, 4096, 4097], [5000, 8191, 8193]]),
            [f.ROPE_TABLE_END],
        ),
        ("far", "far past any table", _at([40000, 65536, 99999]), [f.ROPE_TABLE_END]),
    ]
    for name, comment, positions, marks in cases:
        group.add(name, comment, {"x": x, "positions": positions}, flags=marks)
    for theta in (500.0, 500000.0):
        group.add(f"theta-{theta:g}", "another base", {"x": x, "positions": _at([1, 2, 30])}, theta=theta)
    for tokens in (17, 33, 65, 130):
        group.add(
            f"tokens-{tokens}",
            "tail rows",
            {"x": group.draw(f"t{tokens}").reals("x", (tokens, 1, 2))},
            flags=[f.TAIL_ROWS],
        )
    many = group.draw("heads").reals("x", (2, 9, 2))
    group.add("heads-9", "one angle for all heads", {"x": many, "positions": _at([1, 6])})
    nan = draw.reals("n", (3, 2, 4))
    nan[1, 0, 2] = np.nan
    group.add("nan", "NaN fills its pair and nothing else", {"x": nan}, flags=[f.NAN_ROW])
    wide = draw.reals("w", (2, 2, 32))
    group.add("d-32", "a head dimension of published models", {"x": wide, "positions": _at([3, 250])}, flags=[f.PAIRS])
    return group


def _transcendental() -> Group:
    """X = (1, 0): the result is (cos, sin) itself; angles are small integers, where neither is close to 0."""
    group = Group("rope", "transcendental", "transcendental", "rope")
    for dtype in ("float32", "bfloat16", "float16"):
        for position in (0, 1, 2, 4, 5):
            x = listed([[[1.0, 0.0]], [[0.0, 1.0]]], dtype)
            group.add(
                f"{dtype}-{position}",
                f"cos and sin of {position}",
                {"x": x, "positions": _at([position, position])},
                flags=[f.PAIRS],
            )
    return group


def frequencies(d: int, theta: float = 10000.0) -> Array:
    """inv_freq float64 [d/2], cut to 40 bits so that no machine's pow decides a last bit."""
    exact = theta ** (-2.0 * np.arange(d // 2) / d)
    significand, exponent = np.frexp(exact)
    return np.asarray(np.ldexp(np.rint(np.ldexp(significand, 40)), exponent - 40))


def _strict() -> Group:
    group = Group("rope", "strict", "strict", "rope.strict")
    for tokens, heads, d in ((1, 1, 2), (3, 2, 4), (4, 1, 8), (17, 1, 2)):
        name = f"{tokens}x{heads}x{d}"
        x = group.draw(name).reals("x", (tokens, heads, d)) * np.float32(1.3)
        group.add(
            name,
            "each product rounded before the sum",
            {"x": x, "inv_freq": frequencies(d), "positions": np.arange(tokens)},
            flags=[f.FUSED_MULTIPLY_ADD, f.PAIRS],
        )
    x = group.draw("values").reals("x", (2, 3, 2, 4)) * np.float32(1.1)
    cases = [
        ("per-sequence", [[0, 5, 9], [1, 3, 77]], f.POSITIONS),
        ("past-4096", [[4095, 4096, 4097], [5000, 8191, 8193]], f.ROPE_TABLE_END),
        ("far", [[40000, 65536, 99999], [100000, 12345, 77777]], f.ROPE_TABLE_END),
    ]
    for name, positions, mark in cases:
        group.add(
            name,
            "sine and cosine from float64, rounded once",
            {"x": x, "inv_freq": frequencies(4), "positions": _at(positions)},
            flags=[mark],
        )
    quadrants = np.arange(0, 13)
    ones = np.ones((13, 1, 2), dtype=np.float32)
    group.add(
        "quadrants",
        "angles through all four quadrants, with and without reduction",
        {"x": ones, "inv_freq": np.array([0.5]), "positions": quadrants},
    )
    near = np.array([1.5707963267948966, 3.141592653589793])
    group.add(
        "near-zeros",
        "angles next to multiples of pi / 2, where reduction decides",
        {"x": x[:1, :, :, :], "inv_freq": near, "positions": _at([1, 2, 1000])},
        flags=[f.SUM_ORDER],
    )
    alone = np.zeros((3, 1, 4), dtype=np.float32)
    alone[..., ::2] = 1
    group.add(
        "near-zeros-alone",
        "x = (1, 0): cosine and sine themselves, also where one is all that reduction leaves",
        {"x": alone, "inv_freq": near, "positions": _at([1, 2, 1000])},
        flags=[f.SUM_ORDER],
    )
    group.add(
        "no-tokens",
        "no rows",
        {"x": filled((0, 1, 2), 0.0), "inv_freq": frequencies(2), "positions": _at([])},
        flags=[f.EMPTY_BATCH],
    )
    return group


def _gradient() -> Group:
    group = Group("rope", "gradient", "gradient", "rope.backward")
    for dtype in FLOATS:
        draw = group.draw(dtype)
        shape = (3, 2, 4)
        group.add(
            dtype,
            "the rotation by the opposite angle",
            {
                "x": draw.reals("x", shape, dtype),
                "positions": _at([0, 3, 50]),
                "dy": draw.reals("dy", shape, dtype),
            },
            flags=[f.PAIRS, f.GRAD_COMPONENT],
        )
    draw = group.draw("default")
    group.add(
        "default",
        "default positions, two sequences",
        {"x": draw.reals("x", (2, 4, 1, 2)), "dy": draw.reals("dy", (2, 4, 1, 2))},
        flags=[f.LEADING_AXES],
    )
    group.add(
        "per-sequence",
        "positions of each sequence, one past 4096",
        {
            "x": draw.reals("x", (2, 2, 1, 4)),
            "positions": _at([[1, 2], [30, 5000]]),
            "dy": draw.reals("dz", (2, 2, 1, 4)),
        },
        flags=[f.POSITIONS, f.ROPE_TABLE_END],
    )
    exact = filled((2, 1, 2), 0.0)
    group.add("zero-gradient", "no gradient, no change", {"x": draw.reals("z", (2, 1, 2)), "dy": exact}, theta=100.0)
    return group


def _invalid() -> Iterator[Group]:
    group = Group("rope", "invalid", "invalid", "rope")
    x = filled((3, 2, 4), 1.0)
    group.add("odd-d", "pairs need an even head dimension", {"x": filled((3, 2, 5), 1.0)}, error="ShapeError")
    group.add(
        "negative", "a padding position", {"x": x, "positions": _at([0, -1, 2])}, error="RangeError", flags=[f.PADDING]
    )
    group.add("too-few", "a position for each token", {"x": x, "positions": _at([0, 1])}, error="ShapeError")
    group.add(
        "one", "one position would broadcast", {"x": x, "positions": _at([3])}, error="ShapeError", flags=[f.BROADCAST]
    )
    group.add("float", "positions are integers", {"x": x, "positions": listed([0.0, 1.0, 2.0])}, error="DTypeError")
    group.add("rank", "x without heads", {"x": filled((3, 4), 1.0)}, error="ShapeError")
    group.add("integer", "x is float", {"x": filled((3, 2, 4), 1, "int32")}, error="DTypeError")
    yield group
    strict = Group("rope", "invalid-strict", "invalid", "rope.strict")
    sound = {"x": x, "inv_freq": frequencies(4), "positions": _at([0, 1, 2])}
    strict.add(
        "angle",
        "an angle above 1e5",
        {**sound, "positions": _at([0, 1, 100001])},
        error="RangeError",
        flags=[f.ROPE_TABLE_END],
    )
    strict.add("negative", "a padding position", {**sound, "positions": _at([0, -1, 2])}, error="RangeError")
    strict.add(
        "float32-frequencies", "inv_freq is float64", {**sound, "inv_freq": listed([1.0, 0.01])}, error="DTypeError"
    )
    strict.add("frequencies", "one frequency per pair", {**sound, "inv_freq": frequencies(6)}, error="ShapeError")
    yield strict
