"""Vectors of *cayley_dickson*: ``Y_i = beta * sum_j S[i, j] X_j W_{i xor j}^T``, plain, ternary and strict."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from walsh import reference
from walsh.suite.generate import flags as f
from walsh.suite.generate.activations import dyadic_rows
from walsh.suite.generate.bounds import FAST_FROM
from walsh.suite.generate.build import Flag, Group, Paint
from walsh.suite.generate.numbers import FLOATS, Draw, activations_are_clear, filled, listed, ternary_is_clear
from walsh.suite.tensors import DTYPES, Array

DIMENSIONS = (1, 2, 4, 8, 16)


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _basis()
    yield _exact()
    yield _codes()
    yield _integers()
    yield _exact_large()
    yield _exact_bits()
    yield _rounded()
    yield _rounded_bits()
    yield _choice()
    yield _strict()
    yield from _invalid()


def _basis() -> Group:
    """One product of basis elements per cell of the table, all cells in one case."""
    # Most cells are zeros, whose sign is free in a sum: held to a bound, which a wrong sign of a unit exceeds by far.
    group = Group("cayley_dickson", "rounded-basis", "rounded", "cayley_dickson_linear")
    for dimension in DIMENSIONS:
        # Token j holds e_j; output column k holds the weight e_k: y is the whole multiplication table.
        x = np.eye(dimension, dtype=np.float32)
        w = np.eye(dimension, dtype=np.float32)[:, :, None]
        group.add(
            f"table-{dimension}",
            "every product of two basis elements: the sign table itself",
            {"x": x, "w": np.ascontiguousarray(w)},
            flags=[f.SIGN_TABLE, f.OPERAND_ORDER, *([f.SMOKE] if dimension == 8 else [])],
        )
    return group


def layer(
    draw: Draw, dimension: int, tokens: int, inner: int, outputs: int, dtype: str = "float32", size: int = 15
) -> dict[str, Array]:
    """x, w and beta in small integers: beta a power of two, so that it never rounds."""
    return {
        "x": draw.nonzero("x", (tokens, dimension * inner), size, dtype),
        "w": draw.nonzero("w", (dimension, outputs, inner), size, dtype),
        "beta": np.ldexp(1.0, draw.integers("beta", (outputs,), -2, 1)).astype(DTYPES[dtype]),
    }


def _exact() -> Group:
    group = Group("cayley_dickson", "exact-linear", "exact", "cayley_dickson_linear")
    for dimension in DIMENSIONS:
        for dtype in FLOATS:
            name = f"d{dimension}-{dtype}"
            group.add(
                name,
                "integers, K = 3 and N = 5, beta a power of two",
                partial(layer, dimension=dimension, tokens=3, inner=3, outputs=5, dtype=dtype),
                flags=[f.SIGN_TABLE, f.COMPONENT_LAYOUT, f.BETA_SHARED],
            )
            _reaching(group, dimension, dtype)
    for tokens in (1, 5, 17, 33, 65, 130):
        x = Paint("float32", (tokens, 16), 97, 13, 509, 254)
        group.add(f"tokens-{tokens}", "token counts around common tiles", partial(_painted, x=x), flags=[f.TAIL_ROWS])
    for inner, outputs in ((1, 1), (1, 7), (7, 1), (17, 3), (3, 33), (33, 17)):
        name = f"k{inner}-n{outputs}"
        sizes = partial(layer, dimension=4, tokens=2, inner=inner, outputs=outputs, size=25)
        group.add(name, "sizes of 1 and odd sizes", sizes, flags=[f.TAIL_COLUMNS, f.TRANSPOSED])
    _shapes(group)
    _values(group)
    return group


def _painted(draw: Draw, x: Paint) -> dict[str, Array | Paint]:
    """A painted x and drawn weights of an octonion layer, K = 2 and N = 3."""
    return {**layer(draw, 8, 1, 2, 3), "x": x}


def _reaching(group: Group, dimension: int, dtype: str) -> None:
    """Sums close to what the accumulator holds: 2^23 to 2^24 grid units (2^50 and more in float64)."""
    wide = dtype == "float64"
    # Inputs are representable in every dtype: 8 bits are enough for bfloat16, and the grid sets the rest.
    fine, inner = (2.0**-14, 3) if wide else (2.0**-2, 4)
    share = dimension if dimension >= FAST_FROM else 1
    limit = 2.0**53 if wide else 2.0**24
    draw = group.draw(f"reach{dimension}{dtype}")
    x = draw.integers("x", (2, dimension * inner), -127, 127).astype(np.float64)
    w = draw.integers("w", (dimension, 2, inner), -127, 127).astype(np.float64)
    if dimension == 16:
        # 256 products with the factor D leave fewer bits for each.
        x, w = np.rint(x / 4), np.rint(w / 4)
    x[:, 0] = fine
    w[:, :, 0] = 1.0
    if dtype == "float64":
        x, w = x * 2.0**10, w * 2.0**8
        x[:, 0], w[:, :, 0] = fine, 2.0**-6
    sums = np.abs(x).reshape(2, dimension, inner).sum(1) @ np.abs(w).sum(0).T
    grid = fine * (2.0**-6 if wide else 1.0)
    spare = int(np.floor(np.log2(limit * grid / (sums.max() * share))))
    # What is spare goes into the large elements; the small ones keep the grid.
    factor = 2.0**spare
    x[:, 1:] *= factor
    group.add(
        f"reach-d{dimension}-{dtype}",
        "partial sums come close to what the accumulator holds exactly, on a fine grid",
        {"x": x.astype(DTYPES[dtype]), "w": w.astype(DTYPES[dtype])},
        flags=[f.FLOAT32_INSIDE if wide else f.ACCUMULATOR],
    )


def _shapes(group: Group) -> None:
    draw = group.draw("shapes")
    w = draw.integers("w", (4, 3, 2), -9, 9, "float32")
    for shape, comment in (
        ((8,), "no leading axis"),
        ((2, 3, 8), "two leading axes"),
        ((1, 2, 1, 8), "three, some of length 1"),
        ((0, 8), "no tokens"),
        ((2, 0, 8), "no tokens in one of two axes"),
    ):
        name = "x".join(map(str, shape))
        x = draw.integers(f"x{name}", shape, -9, 9, "float32")
        mark = f.EMPTY_BATCH if 0 in shape else f.LEADING_AXES
        group.add(f"shape-{name}", comment, {"x": x, "w": w}, flags=[mark])


def _values(group: Group) -> None:
    draw = group.draw("values")
    base = layer(draw, 8, 4, 3, 3)
    # Rows 2^40 apart cannot share a grid, so each is a case of its own inside one batch of one non-zero feature.
    unlike = np.zeros((3, 24), dtype=np.float32)
    unlike[0, 5], unlike[1, 5], unlike[2, 5] = 2.0**-40, 3.0, 2.0**40
    group.add(
        "unlike-rows",
        "tokens whose magnitudes differ by 2^80",
        {**base, "x": unlike},
        flags=[f.UNLIKE_ROWS],
        unproven=True,
    )
    tiny = (np.arange(1, 25)[None] * np.float32(2.0**-149)).astype(np.float32)
    tiny[0, ::3] *= -1
    group.add(
        "subnormal",
        "subnormal activations and ternary weights",
        lambda d: {"x": tiny, "w": d.codes("q", (8, 3, 3), "float32")},
        flags=[f.SUBNORMAL],
    )
    for name, value, mark in (("nan", np.nan, f.NAN_ROW), ("inf", np.inf, f.INFINITY)):
        x = base["x"].copy()
        x[2, 4] = value
        w = np.where(base["w"] == 0, np.float32(1), base["w"])
        if name == "inf":
            # Against weights of one sign in each component every product has a definite sign.
            x[2] = 0.0
            x[2, 4], w = np.inf, np.where(base["w"] == 0, np.float32(1), base["w"])
            # 0 * w stays 0, inf * w is +-inf; fast forms would meet inf - inf, so the dense algebra is asked.
            dense = layer(group.draw("inf"), 1, 3, 4, 2)
            dense["x"][1, 2] = np.inf
            dense["w"] = np.abs(dense["w"]) + np.float32(1)
            group.add(name, "one infinite feature reaches exactly its token", dense, flags=[mark], unproven=True)
            continue
        group.add(
            name,
            "one NaN reaches all components of its token, and no other",
            {**base, "x": x, "w": w},
            flags=[mark],
            unproven=True,
        )
    for missing in ("with-beta", "without-beta"):
        inputs = layer(group.draw(missing), 4, 2, 3, 4)
        if missing == "without-beta":
            del inputs["beta"]
        group.add(missing, "optional scale", inputs, flags=[f.SCALE_MISSING])
    square = layer(group.draw("square"), 8, 2, 4, 4)
    group.add("square", "N = K: a transposed weight has the right shape", square, flags=[f.TRANSPOSED, f.OPERAND_ORDER])


def _packed(q: Array) -> Array:
    result: Array = reference.pack_ternary(q)
    return result


def _coded(draw: Draw, dimension: int, inner: int, packed: bool, dtype: str = "float32") -> dict[str, Array]:
    """Float activations, five rows of ternary codes, and a beta of both signs."""
    size = 25 if dimension == 16 else 99
    q = draw.codes("w", (dimension, 5, inner))
    return {
        "x": draw.integers("x", (3, dimension * inner), -size, size, dtype),
        "w": _packed(q) if packed else q,
        "beta": listed([1.0, -0.5, 2.0, 0.25, 4.0], dtype),
    }


def _codes() -> Group:
    """Float activations with int8 and packed weights."""
    group = Group("cayley_dickson", "exact-codes", "exact", "cayley_dickson_linear")
    for dimension in DIMENSIONS:
        for inner in (3, 4, 9):
            group.add(
                f"int8-d{dimension}-k{inner}",
                "int8 codes",
                partial(_coded, dimension=dimension, inner=inner, packed=False),
            )
            group.add(
                f"packed-d{dimension}-k{inner}",
                "four codes in a byte; K is no multiple of four unless it is 4",
                partial(_coded, dimension=dimension, inner=inner, packed=True),
                flags=[f.PACKED_ORDER],
            )
    for dtype in ("bfloat16", "float16", "float64"):
        group.add(
            f"packed-{dtype}",
            "packed codes",
            partial(_coded, dimension=8, inner=3, packed=True, dtype=dtype),
            flags=[f.PACKED_ORDER],
        )
    return group


def _integers() -> Group:
    """int8 activations: exact int32 sums, and the float32 path with scales."""
    group = Group("cayley_dickson", "exact-int8", "exact", "cayley_dickson_linear")
    for dimension in DIMENSIONS:
        draw = group.draw(f"d{dimension}")
        a = draw.integers("a", (3, dimension * 5), -128, 127, "int8")
        q = draw.codes("w", (dimension, 3, 5))
        group.add(f"int32-d{dimension}", "int8 by int8 codes: int32", {"x": a, "w": q}, flags=[f.ACCUMULATOR])
        group.add(
            f"int32-packed-d{dimension}",
            "int8 by packed codes: int32",
            {"x": a, "w": _packed(q)},
            flags=[f.PACKED_ORDER],
        )
        scale = np.ldexp(np.float32(1), draw.integers("s", (3, 1), -3, 9)).astype(np.float32)
        group.add(
            f"scaled-d{dimension}",
            "one scale per token divides, beta multiplies",
            {"x": a, "w": q, "beta": listed([0.5, -2.0, 1.0]), "x_scale": scale},
            flags=[f.SCALE_MISSING],
            unproven=True,
        )
    group.add(
        "int32-past-2-24",
        "a sum past 2^24 and odd: float32 accumulation loses its last bit",
        {"x": Paint("int8", (1, 280001), 1, 0, 3, -125), "w": Paint("int8", (1, 1, 280001), 1, 0, 2, 0)},
        flags=[f.ACCUMULATOR, LARGE],
    )
    group.add(
        "int32-past-2-15",
        "sums past 2^15: int16 accumulators wrap",
        {"x": Paint("int8", (1, 8 * 65), 0, 127, 251, 0), "w": Paint("int8", (8, 2, 65), 0, 1, 2, 0)},
        flags=[f.ACCUMULATOR],
    )
    group.add(
        "minus-128",
        "the code -128, which has no positive twin",
        {
            "x": filled((1, 8), -128, "int8"),
            "w": np.array([[[1], [-1]], [[-1], [1]], [[0], [1]], [[1], [1]]] * 2, np.int8),
        },
    )
    return group


LARGE = Flag(
    "large", "only large shapes go wrong", "Larger than one tile in every direction; slow interpreters may skip it."
)


SIZES = ((2, 520), (4, 128), (8, 64), (16, 32))
"""(D, N = K) at 64 tokens: where kernels that choose a method by size choose another than for small layers."""

LARGE_FLAGS = (LARGE, f.SIGN_TABLE, f.TRANSPOSED)


def painted(draw: Draw, name: str, shape: tuple[int, ...], half: int) -> Paint:
    """Integers up to ``half``; the draw says where the paint begins and how fast it runs."""
    start, speed = draw.integers(name, (2,), 1, 10**5)
    return Paint("float32", shape, int(speed), int(start), 2 * half + 1, half)


def _large_layer(draw: Draw, dimension: int, width: int) -> dict[str, Array | Paint]:
    # The factor D of fast forms leaves sedenions less room.
    half = 30 if dimension == 16 else 125
    return {
        "x": painted(draw, "x", (64, dimension * width), half),
        "w": painted(draw, "w", (dimension, width, width), 8),
    }


def _exact_large() -> Group:
    group = Group("cayley_dickson", "exact-large", "exact", "cayley_dickson_linear")
    for dimension, width in SIZES:
        group.add(
            f"d{dimension}-64x{width}",
            "so large that fast forms and block-wise ones pay",
            partial(_large_layer, dimension=dimension, width=width),
            flags=LARGE_FLAGS,
        )
    return group


def exact_layer(draw: Draw, dimension: int, tokens: int, inner: int, outputs: int, dtype: str) -> dict[str, Array]:
    """Inputs of a bit_linear whose quantisers are exact: codes times a power of two, weights far from gamma / 2."""
    x = dyadic_rows(draw, (tokens, dimension * inner), dtype, -3)
    # gamma is the mean magnitude, between 1/2 and 1: 0.125 rounds to 0, 1 and more to 1.
    q = draw.codes("w", (dimension, outputs, inner)).astype(np.float64)
    w = np.where(q == 0, 0.125, q * (1.0 + 0.25 * draw.integers("m", q.shape, 0, 2)))
    beta = np.ldexp(1.0, draw.integers("beta", (outputs,), -2, 1))
    return {"x": x, "w": w.astype(DTYPES[dtype]), "beta": beta.astype(DTYPES[dtype])}


def _exact_bits() -> Group:
    group = Group("cayley_dickson", "exact-bit-linear", "exact", "cayley_dickson_bit_linear")
    for dimension in DIMENSIONS:
        for dtype in FLOATS:
            name = f"d{dimension}-{dtype}"
            inputs = partial(exact_layer, dimension=dimension, tokens=3, inner=3, outputs=4, dtype=dtype)
            group.add(name, "scales that are powers of two: nothing rounds but the result", inputs)
    for bits in (8, None):
        name = f"activation-bits-{bits or 'null'}"
        plain = partial(exact_layer, dimension=4, tokens=5, inner=3, outputs=3, dtype="float32")
        group.add(name, "int8 activations, or none", plain, activation_bits=bits, rule="round")
    draw = group.draw("integer")
    x = dyadic_rows(draw, (3, 40), "float32", -2)
    q = draw.codes("w", (8, 3, 5))
    group.add("int8-weight", "integer weights are used as they are", {"x": x, "w": q})
    group.add(
        "packed-weight",
        "packed weights likewise",
        {"x": x, "w": _packed(q), "beta": filled((3,), 2.0)},
        flags=[f.PACKED_ORDER],
    )
    group.add("no-tokens", "no rows", {"x": x[:0], "w": q}, flags=[f.EMPTY_BATCH])
    return group


def reals(draw: Draw, dimension: int, tokens: int, inner: int, outputs: int, dtype: str) -> dict[str, Array]:
    """x, w and beta in reals of uneven magnitude."""
    return {
        "x": draw.reals("x", (tokens, dimension * inner), dtype),
        "w": draw.reals("w", (dimension, outputs, inner), dtype),
        "beta": draw.positive("beta", (outputs,), dtype),
    }


def _rounded() -> Group:
    group = Group("cayley_dickson", "rounded-linear", "rounded", "cayley_dickson_linear")
    for dimension in DIMENSIONS:
        for dtype in FLOATS:
            name = f"d{dimension}-{dtype}"
            group.add(name, "reals of uneven magnitude", reals(group.draw(name), dimension, 2, 5, 3, dtype))
    for tokens, inner, outputs in ((17, 3, 2), (2, 65, 3), (3, 2, 17), (33, 33, 9)):
        name = f"{tokens}x{inner}x{outputs}"
        group.add(
            f"octonion-{name}",
            "sizes past a tile",
            reals(group.draw(name), 8, tokens, inner, outputs, "float32"),
            flags=[f.TAIL_ROWS, f.TAIL_COLUMNS],
        )
    cancel = reals(group.draw("cancel"), 8, 2, 8, 2, "float32")
    cancel["x"][:, 1] = 2.0**12
    cancel["w"][:, :, 1] = np.float32(1.0)
    cancel["x"][:, 0] = -(2.0**12)
    cancel["w"][:, :, 0] = np.float32(1.0)
    group.add("cancellation", "two large products cancel", cancel, flags=[f.CANCELLATION])
    unlike = reals(group.draw("unlike"), 4, 4, 6, 3, "float32")
    unlike["x"] *= np.ldexp(np.float32(1), np.array([[-30], [-10], [0], [25]])).astype(np.float32)
    group.add("unlike-rows", "tokens whose magnitudes differ by 2^55", unlike, flags=[f.UNLIKE_ROWS])
    zero = reals(group.draw("zero"), 8, 3, 3, 2, "float32")
    zero["x"][1] = 0.0
    group.add("zero-row", "a token of zeros among others", zero)
    outlier = reals(group.draw("outlier"), 8, 3, 4, 2, "float32")
    outlier["x"][1, 7] = 3e7
    group.add("outlier", "one huge activation in one token", outlier, flags=[f.OUTLIER, f.UNLIKE_ROWS])
    for dimension in DIMENSIONS:
        draw = group.draw(f"scaled{dimension}")
        a, q = draw.integers("a", (3, dimension * 4), -128, 127, "int8"), draw.codes("w", (dimension, 3, 4))
        scale = draw.positive("s", (3, 1)) * np.float32(37.5)
        group.add(
            f"x-scale-d{dimension}",
            "int8 activations, their scale and beta",
            {"x": a, "w": q, "beta": draw.positive("beta", (3,)), "x_scale": scale},
            flags=[f.SCALE_MISSING],
        )
        group.add(
            f"x-scale-packed-d{dimension}",
            "the same with packed weights and without beta",
            {"x": a[:2], "w": _packed(q), "x_scale": scale[:2]},
            flags=[f.PACKED_ORDER],
        )
    return group


def clear_layer(
    draw: Draw, dimension: int, tokens: int, inner: int, outputs: int, dtype: str = "float32"
) -> dict[str, Array]:
    """Inputs of a bit_linear whose quantisers both stay clear of ties."""
    return {
        "x": draw.search(lambda d: d.reals("x", (tokens, dimension * inner), dtype, -3, 2), activations_are_clear),
        "w": draw.search(lambda d: d.reals("w", (dimension, outputs, inner), dtype, -3, 1), ternary_is_clear),
        "beta": draw.positive("beta", (outputs,), dtype),
    }


def _rounded_bits() -> Group:
    group = Group("cayley_dickson", "rounded-bit-linear", "rounded", "cayley_dickson_bit_linear")
    for dimension in DIMENSIONS:
        for dtype in FLOATS:
            name = f"d{dimension}-{dtype}"
            group.add(
                name, "reals clear of both quantisers' ties", clear_layer(group.draw(name), dimension, 2, 3, 2, dtype)
            )
        name = f"d{dimension}-null"
        group.add(
            name, "activations left alone", clear_layer(group.draw(name), dimension, 2, 3, 2), activation_bits=None
        )
    for tokens in (5, 17):
        name = f"octonion-{tokens}"
        group.add(name, "tail rows", clear_layer(group.draw(name), 8, tokens, 2, 3), flags=[f.TAIL_ROWS, f.TOKEN_SCALE])
    unlike = clear_layer(group.draw("unlike"), 4, 4, 4, 3)
    unlike["x"] = np.ldexp(unlike["x"], [[-9], [0], [5], [12]]).astype(np.float32)
    group.add(
        "unlike-rows",
        "tokens of unlike magnitude have scales of their own",
        unlike,
        flags=[f.TOKEN_SCALE, f.UNLIKE_ROWS],
    )
    zero = clear_layer(group.draw("zero"), 8, 3, 2, 2)
    zero["x"][1] = 0.0
    group.add("zero-row", "a token of zeros: its scale is finite, its result zero", zero, flags=[f.EPSILON])
    small = clear_layer(group.draw("small"), 8, 2, 2, 2)
    small["x"] = np.ldexp(small["x"], -30).astype(np.float32)
    group.add("below-epsilon", "a token below the floor of the scale rounds to zeros", small, flags=[f.EPSILON])
    scope = clear_layer(group.draw("scope"), 4, 2, 3, 4)
    for number in range(100):
        drawn = group.draw(f"scope{number}").reals("w", (4, 4, 3), "float32", -3, 1)
        drawn[1] *= np.float32(16)
        drawn[:, 2] *= np.float32(0.25)
        if ternary_is_clear(drawn):
            scope["w"] = drawn
            break
    group.add("gamma-scope", "components and rows of unlike magnitude share one gamma", scope, flags=[f.ABSMEAN_SCOPE])
    rounded = clear_layer(group.draw("round"), 8, 2, 3, 2)
    group.add("rule-round", "the other rule", rounded, rule="round")
    return group


def _choice() -> Group:
    """Ties of the inner quantiser, seen from outside."""
    group = Group("cayley_dickson", "choice-ties", "choice", "cayley_dickson_bit_linear", exact=True)
    for dimension in (1, 8):
        # Each component holds 127 times a power of two and one tie at 2.5; the weight takes the ties.
        x = np.tile(np.array([[1.0, 2.5]], dtype=np.float32), (1, dimension))
        x[0, 0] = 127.0
        w = np.zeros((dimension, 1, 2), dtype=np.int8)
        w[0, 0, 1] = 1
        away = filled((1, dimension), 3.0)
        group.add(
            f"activation-tie-d{dimension}",
            "2.5 rounds to the even 2; away from zero gives 3",
            {"x": x, "w": w},
            flags=[f.TIES_AWAY],
            choices={"y": [away]},
        )
    return group


def _strict() -> Group:
    group = Group("cayley_dickson", "strict-linear", "strict", "cayley_dickson_linear.strict")
    for dimension in DIMENSIONS:
        for tokens, inner, outputs in ((1, 1, 1), (3, 5, 4)):
            name = f"d{dimension}-{tokens}x{inner}x{outputs}"
            draw = group.draw(name)
            codes = draw.codes("w", (dimension, outputs, inner))
            group.add(
                name,
                "reals: every product rounded in the pinned order",
                {
                    "x": draw.reals("x", (tokens, dimension * inner)) * np.float32(1.3),
                    "codes": np.where((codes == 0) & (codes.size == 1), np.int8(1), codes),
                    "beta": draw.positive("beta", (outputs,)) * np.float32(0.7),
                },
                flags=[f.RECIPROCAL],
            )
    draw = group.draw("tail")
    for tokens in (17, 33):
        group.add(
            f"tokens-{tokens}",
            "tail rows",
            {
                "x": draw.reals(f"x{tokens}", (tokens, 16)),
                "codes": draw.codes(f"w{tokens}", (8, 3, 2)),
                "beta": draw.positive(f"b{tokens}", (3,)),
            },
            flags=[f.TAIL_ROWS],
        )
    group.add(
        "no-tokens",
        "no rows",
        {
            "x": filled((0, 8), 0.0),
            "codes": draw.codes("w0", (4, 3, 2)),
            "beta": filled((3,), 1.0),
        },
        flags=[f.EMPTY_BATCH],
    )
    x = draw.reals("xz", (3, 8))
    x[1] = 0.0
    group.add(
        "zero-row",
        "a token of zeros between two others",
        {
            "x": x,
            "codes": draw.codes("wz", (4, 3, 2)),
            "beta": draw.positive("bz", (3,)),
        },
        flags=[f.EPSILON],
    )
    ties = np.zeros((1, 8), dtype=np.float32)
    ties[0] = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 3.5, -2.5]
    group.add(
        "ties",
        "activations that are ties",
        {
            "x": ties,
            "codes": np.ones((8, 2, 1), np.int8),
            "beta": listed([1.0, 3.0]),
        },
        flags=[f.TIES_AWAY],
    )
    return group


def _invalid() -> Iterator[Group]:
    group = Group("cayley_dickson", "invalid-linear", "invalid", "cayley_dickson_linear")
    good = layer(group.draw("good"), 4, 2, 3, 2)
    wrong: list[tuple[str, str, dict[str, Array], str]] = [
        ("features", "x has another number of features than D K", {"x": filled((2, 11), 1.0)}, "ShapeError"),
        ("interleaved-scalar", "x without a feature axis", {"x": filled((), 1.0)}, "ShapeError"),
        ("dimension-3", "no algebra has dimension 3", {"w": filled((3, 2, 4), 1.0)}, "ShapeError"),
        (
            "dimension-32",
            "no algebra here has dimension 32",
            {"x": filled((2, 32), 1.0), "w": filled((32, 2, 1), 1.0)},
            "ShapeError",
        ),
        ("weight-matrix", "a weight without its component axis", {"w": filled((2, 12), 1.0)}, "ShapeError"),
        ("beta-scalar", "a beta that would broadcast", {"beta": filled((1,), 1.0)}, "ShapeError"),
        ("beta-components", "a beta per component and output", {"beta": filled((4, 2), 1.0)}, "ShapeError"),
        ("x-int32", "integer activations are int8", {"x": filled((2, 12), 1, "int32")}, "DTypeError"),
        ("w-int32", "integer weights are int8 or packed", {"w": filled((4, 2, 3), 1, "int32")}, "DTypeError"),
        ("int8-float", "int8 activations need integer weights", {"x": filled((2, 12), 1, "int8")}, "DTypeError"),
        ("code-2", "an int8 weight that is no ternary code", {"w": filled((4, 2, 3), 2, "int8")}, "ParameterError"),
        ("packed-code-3", "a packed code 3", {"w": filled((4, 2, 1), 0b01010111, "uint8")}, "FormatError"),
        ("packed-padding", "a packed padding code 2", {"w": filled((4, 2, 1), 0b10010101, "uint8")}, "FormatError"),
        (
            "packed-short",
            "packed rows of the wrong length",
            {"w": filled((4, 2, 2), 0b01010101, "uint8")},
            "ShapeError",
        ),
    ]
    for case, comment, change, error in wrong:
        group.add(case, comment, {**good, **change}, error=error, flags=[f.BROADCAST] if "beta" in case else [])
    scaled = {"x": filled((2, 12), 1, "int8"), "w": filled((4, 2, 3), 1, "int8")}
    group.add(
        "scale-shape",
        "one scale per token, [..., 1]",
        {**scaled, "x_scale": filled((2,), 1.0)},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    yield group
    bits = Group("cayley_dickson", "invalid-bit-linear", "invalid", "cayley_dickson_bit_linear")
    bits.add("activation-bits", "8 or null", good, error="ParameterError", activation_bits=4)
    bits.add("rule", "an unknown rule", good, error="ParameterError", rule="median")
    nan = good["w"].copy()
    nan[1, 0, 2] = np.nan
    bits.add("nan-weight", "a weight that is not finite", {**good, "w": nan}, error="NonFiniteError")
    bits.add("features", "x does not fit", {**good, "x": filled((2, 8), 1.0)}, error="ShapeError")
    bits.add("x-int8", "this layer quantises by itself", {**good, "x": filled((2, 12), 1, "int8")}, error="DTypeError")
    yield bits
    strict = Group("cayley_dickson", "invalid-strict", "invalid", "cayley_dickson_linear.strict")
    sound = {"x": good["x"], "codes": filled((4, 2, 3), 1, "int8"), "beta": filled((2,), 1.0)}
    for case, value in (("nan", np.nan), ("inf", np.inf)):
        x = good["x"].copy()
        x[1, 3] = value
        strict.add(case, "strict arithmetic needs finite rows", {**sound, "x": x}, error="NonFiniteError")
    strict.add(
        "x-float64", "strict arithmetic is float32", {**sound, "x": good["x"].astype(np.float64)}, error="DTypeError"
    )
    strict.add("codes-float", "codes are int8", {**sound, "codes": good["w"]}, error="DTypeError")
    strict.add("code-2", "no ternary code", {**sound, "codes": filled((4, 2, 3), 2, "int8")}, error="ParameterError")
    strict.add("features", "x does not fit", {**sound, "x": filled((2, 8), 1.0)}, error="ShapeError")
    strict.add(
        "beta",
        "a beta that would broadcast",
        {**sound, "beta": filled((1,), 1.0)},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    yield strict
