"""Vectors of *swiglu*: ``h = silu(gate) * up``, and of the strict exponential that it stands on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Flag, Group
from walsh.suite.generate.numbers import FLOATS, filled, listed

SWAPPED = Flag("swapped", "gate and up exchanged", "silu acts on gate, the first argument.")


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield _rounded()
    yield _transcendental()
    yield _accuracy()
    yield _strict()
    yield _exponential()
    yield from _gradients()
    yield from _invalid()


def _exact() -> Group:
    """Past 64, exp(-gate) is lost beside 1 in every dtype: silu(gate) is gate, and the product of integers exact."""
    group = Group("swiglu", "exact", "exact", "swiglu")
    for dtype in FLOATS:
        group.add(
            f"saturated-{dtype}",
            "silu of a large gate is the gate itself",
            {"gate": listed([[64.0, 96.0, 120.0]], dtype), "up": listed([[3.0, -5.0, 0.5]], dtype)},
            flags=[SWAPPED],
            unproven=True,
        )
    group.add(
        "largest",
        "no overflow at a large gate",
        {"gate": listed([1e30, 2.0**100]), "up": listed([1e-30, 4.0])},
        flags=[f.INFINITY],
        unproven=True,
    )
    group.add(
        "empty",
        "no elements",
        {"gate": filled((0, 3), 0.0), "up": filled((0, 3), 0.0)},
        flags=[f.EMPTY_BATCH],
        unproven=True,
    )
    group.add(
        "nan",
        "NaN in either argument stays where it is",
        {"gate": listed([np.nan, 64.0, 80.0]), "up": listed([1.0, np.nan, 3.0])},
        flags=[f.NAN_ROW],
        unproven=True,
    )
    group.add(
        "inf",
        "infinity passes upwards",
        {"gate": listed([np.inf, 64.0]), "up": listed([2.0, -np.inf])},
        flags=[f.INFINITY],
        unproven=True,
    )
    return group


def _rounded() -> Group:
    group = Group("swiglu", "rounded", "rounded", "swiglu")
    for dtype in FLOATS:
        for shape in ((3, 5), (2, 2, 7)):
            name = f"{dtype}-{'x'.join(map(str, shape))}"
            draw = group.draw(name)
            group.add(
                name,
                "reals",
                {"gate": draw.reals("gate", shape, dtype, -4, 2), "up": draw.reals("up", shape, dtype)},
                flags=[SWAPPED, *([f.SMOKE] if name == "float32-3x5" else [])],
            )
    for size in (1, 17, 33, 65, 127):
        draw = group.draw(f"n{size}")
        group.add(
            f"size-{size}",
            "sizes past a vector",
            {"gate": draw.reals("gate", (size,)), "up": draw.reals("up", (size,))},
            flags=[f.TAIL_COLUMNS],
        )
    group.add("zero", "silu(0) is 0", {"gate": listed([0.0, -0.0, 1.0]), "up": listed([5.0, 2.0, 0.0])})
    for dtype in FLOATS:
        group.add(
            f"minus-inf-{dtype}",
            "silu(-inf) is 0, not NaN; its sign is free",
            {"gate": listed([-np.inf, 1.0], dtype), "up": listed([2.0, 3.0], dtype)},
            flags=[f.INFINITY],
        )
    negative = -np.arange(1, 81, 8, dtype=np.float32)
    group.add(
        "negative",
        "gates down to -73: small, but not zero",
        {"gate": negative, "up": filled((10,), 2.0)},
        flags=[f.UNLIKE_ROWS],
    )
    return group


def _transcendental() -> Group:
    group = Group("swiglu", "transcendental", "transcendental", "swiglu")
    for dtype in ("float32", "bfloat16", "float16"):
        low = -12 if dtype == "float16" else -80
        gates = np.concatenate([np.linspace(low, 80, 41), [-1.0, -0.5, 0.5, 1.0, 2.0**-20, -(2.0**-20)]])
        gate = listed(gates[np.abs(gates) < 60000], dtype)
        group.add(
            f"{dtype}-silu",
            "silu itself, up = 1, over the range where it is normal",
            {"gate": gate, "up": filled(gate.shape, 1.0, dtype)},
        )
        reals = group.draw(dtype).reals("gate", (40,), dtype, -6, 2)
        group.add(f"{dtype}-reals", "reals", {"gate": reals, "up": filled((40,), 1.0, dtype)})
    return group


def _accuracy() -> Group:
    """The strict exponential against the true one, which is not its definition but its purpose."""
    group = Group("swiglu", "transcendental-exp", "transcendental", "exp.strict")
    x = np.concatenate([np.linspace(-87, 88, 60), np.ldexp(1.0, np.arange(-30, 0, 5))]).astype(np.float32)
    group.add(
        "range", "the pinned exponential is itself a good one", {"x": x}, expected={"y": np.exp(x.astype(np.float64))}
    )
    return group


def _strict() -> Group:
    group = Group("swiglu", "strict", "strict", "swiglu.strict")
    for shape in ((1,), (3, 5), (65,)):
        name = "x".join(map(str, shape))
        draw = group.draw(name)
        gate, up = draw.reals("gate", shape, "float32", -4, 4), draw.reals("up", shape)
        group.add(
            name,
            "reals",
            {"gate": gate * np.float32(1.1), "up": up * np.float32(1.3)},
            flags=[f.FUSED_MULTIPLY_ADD, f.RECIPROCAL],
        )
    edges = listed([-120.0, -88.5, -88.0, -87.5, -87.0, -1e-30, -0.0, 0.0, 1e-30, 87.0, 88.0, 1e30])
    group.add(
        "edges",
        "the clipping of the exponential on both sides",
        {"gate": edges, "up": filled((12,), 1.5)},
        flags=[f.INFINITY, f.SUBNORMAL],
    )
    group.add("empty", "no elements", {"gate": filled((0, 3), 0.0), "up": filled((0, 3), 0.0)}, flags=[f.EMPTY_BATCH])
    return group


def _exponential() -> Group:
    group = Group("swiglu", "strict-exp", "strict", "exp.strict")
    group.add("integers", "from -90 to 90", {"x": np.arange(-90, 91, dtype=np.float32)}, flags=[f.FUSED_MULTIPLY_ADD])
    halves = (np.arange(-40, 41) + 0.5) * np.float32(0.6931472)
    group.add("ties", "arguments where n is close to a tie", {"x": halves.astype(np.float32)}, flags=[f.TIES_AWAY])
    group.add(
        "reals",
        "reals of uneven magnitude",
        {"x": group.draw("reals").reals("x", (100,), "float32", -20, 6)},
        flags=[f.FUSED_MULTIPLY_ADD],
    )
    just = np.float32(87.0)
    edges = [
        0.0,
        -0.0,
        -just,
        np.nextafter(-just, np.float32(-100)),
        np.nextafter(-just, np.float32(0)),
        88.0,
        88.5,
        1e30,
        -1e30,
        np.inf,
        -np.inf,
        np.nan,
        2.0**-149,
    ]
    group.add(
        "edges",
        "zeros, both clips and their neighbours, infinities and NaN",
        {"x": np.array(edges, dtype=np.float32)},
        flags=[f.INFINITY, f.NAN_ROW],
    )
    group.add("empty", "no elements", {"x": filled((2, 0), 0.0)}, flags=[f.EMPTY_BATCH])
    return group


def _gradients() -> Iterator[Group]:
    exact = Group("swiglu", "gradient-exact", "gradient", "swiglu.backward", exact=True)
    for dtype in FLOATS:
        # At 0 the sigmoid is 1/2: dgate = dh up / 2, and dup is a zero, so large gates show dup.
        exact.add(
            f"saturated-{dtype}",
            "past 128 silu is the identity: dgate = dh up, dup = dh gate",
            {
                "gate": listed([128.0, 160.0, 192.0], dtype),
                "up": listed([3.0, -5.0, 0.5], dtype),
                "dh": listed([1.0, 2.0, -4.0], dtype),
            },
            flags=[SWAPPED],
            unproven=True,
        )
    yield exact
    rounded = Group("swiglu", "gradient-rounded", "gradient", "swiglu.backward")
    for dtype in FLOATS:
        for shape in ((3, 5), (2, 1, 4)):
            name = f"{dtype}-{'x'.join(map(str, shape))}"
            draw = rounded.draw(name)
            rounded.add(
                name,
                "dgate and dup",
                {
                    "gate": draw.reals("gate", shape, dtype, -4, 2),
                    "up": draw.reals("up", shape, dtype),
                    "dh": draw.reals("dh", shape, dtype),
                },
                flags=[SWAPPED],
            )
    rounded.add(
        "zero",
        "at gate 0 the slope is 1/2",
        {
            "gate": listed([0.0, -0.0]),
            "up": listed([3.0, 5.0]),
            "dh": listed([1.0, -2.0]),
        },
    )
    # silu has its minimum at -1.2784645...: dgate crosses zero there.
    rounded.add(
        "minimum",
        "next to the minimum of silu two terms cancel",
        {
            "gate": listed([-1.2783, -1.2785, -1.25, -1.3125]),
            "up": filled((4,), 1.0),
            "dh": filled((4,), 1.0),
        },
        flags=[f.CANCELLATION],
    )
    rounded.add(
        "negative",
        "down to -40",
        {
            "gate": listed([-5.0, -10.0, -20.0, -40.0]),
            "up": filled((4,), 1.5),
            "dh": listed([1.0, -1.0, 2.0, 0.5]),
        },
        flags=[f.UNLIKE_ROWS],
    )
    yield rounded


def _invalid() -> Iterator[Group]:
    group = Group("swiglu", "invalid", "invalid", "swiglu")
    gate = filled((2, 3), 1.0)
    group.add("shapes", "shapes differ", {"gate": gate, "up": filled((2, 4), 1.0)}, error="ShapeError")
    group.add(
        "row", "a row would broadcast", {"gate": gate, "up": filled((3,), 1.0)}, error="ShapeError", flags=[f.BROADCAST]
    )
    group.add(
        "one",
        "an axis of one would broadcast",
        {"gate": gate, "up": filled((2, 1), 1.0)},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    group.add("integer", "arguments are float", {"gate": filled((2, 3), 1, "int32"), "up": gate}, error="DTypeError")
    yield group
    strict = Group("swiglu", "invalid-strict", "invalid", "swiglu.strict")
    strict.add(
        "float64", "strict arithmetic is float32", {"gate": gate.astype(np.float64), "up": gate}, error="DTypeError"
    )
    strict.add(
        "row", "a row would broadcast", {"gate": gate, "up": filled((3,), 1.0)}, error="ShapeError", flags=[f.BROADCAST]
    )
    yield strict
    exponential = Group("swiglu", "invalid-exp", "invalid", "exp.strict")
    exponential.add("float64", "strict arithmetic is float32", {"x": gate.astype(np.float64)}, error="DTypeError")
    yield exponential
