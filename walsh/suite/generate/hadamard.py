"""Vectors of *hadamard*: the transform in natural order, the layer across blocks, its ternary form, and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from walsh import reference
from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Flag, Group, Paint
from walsh.suite.generate.numbers import FLOATS, Draw, clear_of_ties, filled, listed, ternary_is_clear
from walsh.suite.tensors import DTYPES, Array

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SQUARES = (1, 4, 16)
"""Sizes whose 1/sqrt(n) is a power of two: the layer is exact on integers."""


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _transform_exact()
    yield _transform_rounded()
    yield _transform_strict()
    yield _linear_exact()
    yield _linear_rounded()
    yield _bits_exact()
    yield _bits_rounded()
    yield _choice()
    yield _linear_strict()
    yield from _invalid()


def _transform_exact() -> Group:
    group = Group("hadamard", "exact-transform", "exact", "hadamard_transform", {"normalize": False})
    for n in SIZES:
        x = Paint("float32", (2, n), 97, 13, 251, 125)
        group.add(f"n{n}", "painted integers, not normalised", {"x": x}, flags=[f.NATURAL_ORDER])
    basis = np.eye(8, dtype=np.float32)
    group.add("basis-8", "unit vectors: the rows of H in natural order", {"x": basis}, flags=[f.NATURAL_ORDER, f.SMOKE])
    for dtype in ("int8", "int32"):
        integers = group.draw(dtype).integers("x", (3, 16), -128, 127, dtype)
        group.add(dtype, "integers stay integers: int32", {"x": integers})
    for dtype, n in (("int8", 128), ("int32", 256), ("float64", 128)):
        long = group.draw(f"{dtype}-{n}").integers("x", (2, n), -128, 127, dtype)
        group.add(f"{dtype}-{n}", "every stage of a long transform", {"x": long}, flags=[f.NATURAL_ORDER])
    odd = group.draw("big").integers("x", (1, 8), -(2**27), 2**27, "int32") | 1
    odd[0, 0] += 1  # so that the sums are odd, and no float32
    group.add("int32-large", "integers past 2^24: float32 would lose bits", {"x": odd}, flags=[f.ACCUMULATOR])
    for n, shift in ((4, 0), (16, -2), (64, 3), (256, 0), (1024, -4)):
        x = Paint("float32", (2, n), 37, 5, 199, 99, shift)
        group.add(
            f"normalised-{n}",
            "n is a power of four: 1 / sqrt(n) is exact",
            {"x": x},
            flags=[f.NORMALISATION],
            normalize=True,
        )
    for dtype in FLOATS:
        _reaching(group, dtype)
        small = group.draw(dtype).integers("x", (3, 16), -50, 50, dtype)
        group.add(f"{dtype}-16", "every dtype", {"x": small}, flags=[f.NORMALISATION], normalize=True)
    draw = group.draw("shapes")
    for shape, mark in (
        ((8,), f.LEADING_AXES),
        ((2, 3, 4), f.LEADING_AXES),
        ((0, 4), f.EMPTY_BATCH),
        ((2, 0, 16), f.EMPTY_BATCH),
    ):
        name = "x".join(map(str, shape))
        group.add(f"shape-{name}", "leading axes", {"x": draw.integers(name, shape, -9, 9, "float32")}, flags=[mark])
    for rows in (5, 17, 33, 65, 130):
        group.add(f"rows-{rows}", "tail rows", {"x": Paint("float32", (rows, 4), 29, 3, 61, 30)}, flags=[f.TAIL_ROWS])
    tiny = (np.array([[3, -1, 5, 7]], dtype=np.int32) * np.float32(2.0**-149)).astype(np.float32)
    group.add("subnormal", "subnormals add exactly", {"x": tiny}, flags=[f.SUBNORMAL])
    nan = np.ones((3, 4), dtype=np.float32)
    nan[1, 2] = np.nan
    group.add("nan", "NaN fills its row and no other", {"x": nan}, flags=[f.NAN_ROW], unproven=True)
    return group


def _reaching(group: Group, dtype: str) -> None:
    """Sums close to what the accumulator holds: few large elements over a fine grid."""
    limit, fine = (2.0**53, 2.0**-10) if dtype == "float64" else (2.0**24, 1.0)
    x = group.draw(f"reach-{dtype}").integers("x", (2, 8), 65, 127).astype(np.float64)
    x[:, 0], x[:, 3] = fine, -fine
    factor = 2.0 ** np.floor(np.log2(limit * fine / np.abs(x).sum(axis=-1).max()))
    if dtype == "float16":
        # 65504 is the largest float16, so the grid is refined instead.
        x[:, 0], x[:, 3] = 2.0**-9, -(2.0**-9)
        factor = 2.0 ** np.floor(np.log2(limit * 2.0**-9 / np.abs(x).sum(axis=-1).max()))
    x[:, [1, 2, 4, 5, 6, 7]] *= factor
    x[:, 4:] *= -1.0
    group.add(
        f"reach-{dtype}",
        "sums close to what the accumulator holds exactly",
        {"x": x.astype(DTYPES[dtype])},
        flags=[f.ACCUMULATOR],
    )


def _transform_rounded() -> Group:
    group = Group("hadamard", "rounded-transform", "rounded", "hadamard_transform")
    for dtype in FLOATS:
        for n in (1, 2, 8, 32):
            name = f"{dtype}-{n}"
            group.add(
                name,
                "1 / sqrt(n) rounds unless n is a power of four",
                {"x": group.draw(name).reals("x", (2, n), dtype)},
                flags=[f.NORMALISATION],
            )
    for n in (64, 128, 512, 1024):
        group.add(f"large-{n}", "long transforms of reals", {"x": group.draw(f"l{n}").reals("x", (1, n))})
    draw = group.draw("unlike")
    x = np.ldexp(draw.reals("x", (4, 8)), [[-40], [-3], [0], [40]]).astype(np.float32)
    group.add("unlike-rows", "rows of unlike magnitude", {"x": x}, flags=[f.UNLIKE_ROWS])
    outlier = draw.reals("o", (2, 16))
    outlier[0, 5] = 1e8
    group.add("outlier", "an outlier spreads over its row only", {"x": outlier}, flags=[f.OUTLIER])
    constant = filled((1, 8), 0.7)
    group.add("constant", "a constant row cancels everywhere but at 0", {"x": constant}, flags=[f.CANCELLATION])
    return group


def _transform_strict() -> Group:
    group = Group("hadamard", "strict-transform", "strict", "hadamard_transform.strict")
    for n in SIZES:
        x = group.draw(f"n{n}").reals("x", (2, n)) * np.float32(1.3)
        if n > 128:
            x = Paint("float32", (2, n), 7919, 31, 10007, 5003, -9).array()
            group.add(
                f"n{n}",
                "strides 1, 2, 4, ... and one product",
                {"x": Paint("float32", (2, n), 7919, 31, 10007, 5003, -9)},
                flags=[f.SUM_ORDER],
            )
        else:
            group.add(f"n{n}", "strides 1, 2, 4, ... and one product", {"x": x}, flags=[f.SUM_ORDER])
    wide = group.draw("wide").reals("x", (3, 16), "float32", -30, 30)
    group.add(
        "wide",
        "magnitudes 2^60 apart: any other order of additions shows",
        {"x": wide},
        flags=[f.SUM_ORDER, f.FUSED_MULTIPLY_ADD],
    )
    group.add(
        "zeros",
        "signs of zero follow from the butterflies",
        {"x": listed([[0.0, -0.0, -0.0, 0.0]])},
        flags=[f.NEGATIVE_ZERO],
    )
    group.add("no-rows", "no rows", {"x": filled((0, 8), 0.0)}, flags=[f.EMPTY_BATCH])
    return group


def layer(
    draw: Draw, n: int, tokens: int, inner: int, outputs: int, dtype: str = "float32", size: int = 9
) -> dict[str, Array]:
    """Inputs of hadamard_linear in small integers, alpha and beta powers of two."""
    return {
        "x": draw.nonzero("x", (tokens, n * inner), size, dtype),
        "w": draw.nonzero("w", (n, outputs, inner), size, dtype),
        "alpha": np.ldexp(1.0, draw.integers("alpha", (n, inner), -1, 1)).astype(DTYPES[dtype]),
        "beta": np.ldexp(1.0, draw.integers("beta", (n, outputs), -1, 1)).astype(DTYPES[dtype]),
    }


def without(inputs: dict[str, Array], *names: str) -> dict[str, Array]:
    """The inputs but these."""
    return {name: array for name, array in inputs.items() if name not in names}


def _linear_exact() -> Group:
    group = Group("hadamard", "exact-linear", "exact", "hadamard_linear")
    for n in SQUARES:
        for dtype in FLOATS:
            name = f"n{n}-{dtype}"
            group.add(
                name,
                "integers; 1 / sqrt(n) is a power of two",
                layer(group.draw(name), n, 3, 3, 2, dtype),
                flags=[f.NORMALISATION, f.COMPONENT_LAYOUT, *([f.SMOKE] if name == "n4-float32" else [])],
            )
    for dtype in FLOATS:
        _reaching_layer(group, dtype)
    for absent in (("alpha",), ("beta",), ("alpha", "beta")):
        name = "-".join(("without", *absent))
        group.add(
            name,
            "absent scales count 1",
            without(layer(group.draw(name), 4, 2, 3, 3), *absent),
            flags=[f.SCALE_MISSING],
        )
    for kind in ("int8", "packed"):
        for inner in (3, 5, 8):
            name = f"{kind}-k{inner}"
            draw = group.draw(name)
            q = draw.codes("w", (4, 5, inner))
            w = reference.pack_ternary(q) if kind == "packed" else q
            group.add(name, "ternary codes", {**layer(draw, 4, 2, inner, 5), "w": w}, flags=[f.PACKED_ORDER])
    for tokens in (1, 5, 17, 33, 65, 130):
        inputs: dict[str, Any] = layer(group.draw(f"t{tokens}"), 4, tokens, 2, 2)
        inputs["x"] = Paint("float32", (tokens, 8), 7, 3, 19, 9)
        group.add(f"tokens-{tokens}", "tail rows", inputs, flags=[f.TAIL_ROWS])
    for shape, mark in (((8,), f.LEADING_AXES), ((2, 2, 8), f.LEADING_AXES), ((0, 8), f.EMPTY_BATCH)):
        inputs = layer(group.draw("shape"), 4, 1, 2, 3)
        name = "x".join(map(str, shape))
        inputs["x"] = group.draw(name).nonzero("x", shape, 9, "float32")
        group.add(f"shape-{name}", "leading axes", inputs, flags=[mark])
    wide = layer(group.draw("wide"), 16, 2, 1, 17)
    group.add("k1-n17", "K = 1, N = 17", wide, flags=[f.TAIL_COLUMNS])
    tall = layer(group.draw("tall"), 4, 2, 33, 1)
    group.add("k33-n1", "K = 33, N = 1", tall, flags=[f.TAIL_COLUMNS])
    square = layer(group.draw("square"), 4, 2, 4, 4)
    group.add("square", "N = K: a transposed weight has the right shape", square, flags=[f.TRANSPOSED])
    nan = layer(group.draw("nan"), 4, 3, 2, 2)
    nan["x"][1, 3] = np.nan
    group.add("nan", "NaN fills its token and no other", nan, flags=[f.NAN_ROW], unproven=True)
    return group


def _reaching_layer(group: Group, dtype: str) -> None:
    """Sums close to what the accumulator holds: the large elements are scaled up as far as they may."""
    wide = dtype == "float64"
    n, inner = 4, 2
    draw = group.draw(f"reach-{dtype}")
    x = draw.integers("x", (2, n * inner), 65, 127).astype(np.float64) * np.where(
        draw.codes("s", (2, n * inner)) < 0, -1, 1
    )
    w = np.where(draw.codes("w", (n, 2, inner)) < 0, -1.0, 1.0)
    fine = 2.0**-20 if wide else (2.0**-7 if dtype == "float16" else 1.0)
    x[:, 0] = fine
    # Each output sums n * n * inner absolute products, all with the factor 1/n.
    size = np.abs(x).sum(axis=-1).max() * n
    factor = 2.0 ** np.floor(np.log2((2.0**53 if wide else 2.0**24) * fine / size))
    x[:, 1:] *= factor
    group.add(
        f"reach-{dtype}",
        "sums close to what the accumulator holds exactly",
        {"x": x.astype(DTYPES[dtype]), "w": w.astype(DTYPES[dtype])},
        flags=[f.FLOAT32_INSIDE if wide else f.ACCUMULATOR],
    )


def reals(draw: Draw, n: int, tokens: int, inner: int, outputs: int, dtype: str = "float32") -> dict[str, Array]:
    """x, w, alpha and beta in reals of uneven magnitude."""
    return {
        "x": draw.reals("x", (tokens, n * inner), dtype),
        "w": draw.reals("w", (n, outputs, inner), dtype),
        "alpha": draw.positive("alpha", (n, inner), dtype),
        "beta": draw.positive("beta", (n, outputs), dtype),
    }


def _linear_rounded() -> Group:
    group = Group("hadamard", "rounded-linear", "rounded", "hadamard_linear")
    for n in (1, 2, 4, 8, 32):
        for dtype in FLOATS:
            name = f"n{n}-{dtype}"
            group.add(name, "reals", reals(group.draw(name), n, 1, 3, 2, dtype), flags=[f.NORMALISATION])
    for tokens, inner, outputs in ((17, 2, 1), (3, 33, 3), (2, 3, 17)):
        name = f"{tokens}x{inner}x{outputs}"
        group.add(
            name,
            "sizes past a tile",
            reals(group.draw(name), 8, tokens, inner, outputs),
            flags=[f.TAIL_ROWS, f.TAIL_COLUMNS],
        )
    zero = reals(group.draw("zero"), 4, 3, 2, 2)
    zero["x"][1] = 0
    group.add("zero-row", "a token of zeros among others", zero)
    unlike = reals(group.draw("unlike"), 4, 4, 2, 2)
    unlike["x"] = np.ldexp(unlike["x"], [[-20], [-3], [0], [20]]).astype(np.float32)
    group.add("unlike-rows", "tokens of unlike magnitude", unlike, flags=[f.UNLIKE_ROWS])
    outlier = reals(group.draw("outlier"), 8, 2, 2, 2)
    outlier["x"][0, 3] = 1e6
    group.add("outlier", "an outlier spreads over all blocks of its token", outlier, flags=[f.OUTLIER])
    packed = reals(group.draw("packed"), 32, 2, 2, 2)
    packed["w"] = reference.pack_ternary(group.draw("packed").codes("q", (32, 2, 2)))
    group.add("packed-n32", "packed codes at the size of the published models", packed, flags=[f.PACKED_ORDER])
    return group


def exact_layer(draw: Draw, n: int, tokens: int, inner: int, outputs: int, dtype: str) -> dict[str, Array]:
    """Inputs of hadamard_bit_linear whose quantisers are exact.

    v is made first, as codes with a largest of 127, and x = H v / sqrt(n): H is its own inverse, so v comes back.
    """
    v = draw.integers("v", (tokens, n * inner), -30, 30).astype(np.float64)
    v[:, 0] = 127.0
    x = reference.hadamard_transform(v.reshape(tokens, n, inner).swapaxes(1, 2)).swapaxes(1, 2)
    alpha = np.ldexp(1.0, draw.integers("alpha", (n, inner), -1, 1))
    q = draw.codes("w", (n, outputs, inner)).astype(np.float64)
    w = np.where(q == 0, 0.125, q * (1.0 + 0.25 * draw.integers("m", q.shape, 0, 2)))
    return {
        "x": (x / alpha).reshape(tokens, n * inner).astype(DTYPES[dtype]),
        "w": w.astype(DTYPES[dtype]),
        "alpha": alpha.astype(DTYPES[dtype]),
        "beta": np.ldexp(1.0, draw.integers("beta", (n, outputs), -1, 1)).astype(DTYPES[dtype]),
    }


def _bits_exact() -> Group:
    group = Group("hadamard", "exact-bit-linear", "exact", "hadamard_bit_linear")
    for n in SQUARES:
        for dtype in ("float32", "float64"):
            name = f"n{n}-{dtype}"
            group.add(
                name,
                "the transformed activations are codes with a scale of 1",
                exact_layer(group.draw(name), n, 2, 3, 2, dtype),
            )
    for bits in (8, None):
        name = f"activation-bits-{bits or 'null'}"
        group.add(
            name,
            "int8 activations, or none",
            exact_layer(group.draw(name), 4, 3, 3, 2, "float32"),
            activation_bits=bits,
            rule="round",
        )
    draw = group.draw("codes")
    inputs = exact_layer(draw, 4, 2, 5, 3, "float32")
    q = draw.codes("q", (4, 3, 5))
    group.add("int8-weight", "integer weights are used as they are", {**inputs, "w": q})
    group.add(
        "packed-weight",
        "packed weights likewise",
        {
            **without(inputs, "alpha", "beta"),
            "x": inputs["alpha"].ravel() * inputs["x"],
            "w": reference.pack_ternary(q),
        },
        flags=[f.PACKED_ORDER, f.SCALE_MISSING],
    )
    group.add("no-tokens", "no rows", {**inputs, "x": inputs["x"][:0]}, flags=[f.EMPTY_BATCH])
    return group


def clear_layer(draw: Draw, n: int, tokens: int, inner: int, outputs: int, dtype: str = "float32") -> dict[str, Array]:
    """Inputs of hadamard_bit_linear whose quantisers stay clear of ties; v has rounding error, so 4e-3 are kept."""
    alpha = draw.positive("alpha", (n, inner), dtype)

    def clear(x: Array) -> bool:
        u = alpha.astype(np.float64) * x.astype(np.float64).reshape(tokens, n, inner)
        v = reference.hadamard_transform(u.swapaxes(1, 2)).reshape(tokens, -1)
        return clear_of_ties(v * (127.0 / np.maximum(np.abs(v).max(axis=-1, keepdims=True), 1e-5)), 4e-3)

    return {
        "x": draw.search(lambda d: d.reals("x", (tokens, n * inner), dtype, -3, 2), clear),
        "w": draw.search(lambda d: d.reals("w", (n, outputs, inner), dtype, -3, 1), ternary_is_clear),
        "alpha": alpha,
        "beta": draw.positive("beta", (n, outputs), dtype),
    }


def _bits_rounded() -> Group:
    group = Group("hadamard", "rounded-bit-linear", "rounded", "hadamard_bit_linear")
    for n in (1, 2, 4, 8, 32):
        for dtype in FLOATS:
            name = f"n{n}-{dtype}"
            group.add(name, "reals clear of both quantisers' ties", clear_layer(group.draw(name), n, 2, 2, 2, dtype))
    for n in (2, 8):
        group.add(
            f"n{n}-null",
            "activations left alone",
            clear_layer(group.draw(f"null{n}"), n, 2, 3, 2),
            activation_bits=None,
        )
    zero = clear_layer(group.draw("zero"), 4, 3, 2, 2)
    zero["x"][1] = 0
    group.add("zero-row", "a token of zeros", zero, flags=[f.EPSILON])
    unlike = clear_layer(group.draw("unlike"), 4, 4, 2, 2)
    unlike["x"] = np.ldexp(unlike["x"], [[-9], [0], [5], [12]]).astype(np.float32)
    group.add(
        "unlike-rows",
        "tokens of unlike magnitude have scales of their own",
        unlike,
        flags=[f.TOKEN_SCALE, f.UNLIKE_ROWS],
    )
    group.add("tokens-17", "tail rows", clear_layer(group.draw("t17"), 4, 17, 1, 2), flags=[f.TAIL_ROWS])
    spread = clear_layer(group.draw("spread"), 4, 1, 2, 2)
    group.add(
        "before-transform",
        "the quantiser stands after the transform: an outlier in x is spread first",
        spread,
        flags=[ROUND_AFTER],
    )
    return group


ROUND_AFTER = Flag(
    "round_after",
    "activations rounded before the first transform",
    "Hadamard layers quantise v, after alpha and the transform; Cayley-Dickson layers quantise x.",
)


def _choice() -> Group:
    group = Group("hadamard", "choice-ties", "choice", "hadamard_bit_linear", exact=True)
    v = np.zeros((1, 4, 2))
    v[0, 0] = [127.0, 2.5]
    x = reference.hadamard_transform(v.swapaxes(1, 2)).swapaxes(1, 2).reshape(1, 8).astype(np.float32)
    w = np.zeros((4, 1, 2), dtype=np.int8)
    w[0, 0, 1] = 1
    away = filled((1, 4), 1.5)
    group.add(
        "activation-tie",
        "2.5 rounds to the even 2; away from zero gives 3",
        {"x": x, "w": w},
        flags=[f.TIES_AWAY, ROUND_AFTER],
        choices={"y": [away]},
    )
    return group


def _linear_strict() -> Group:
    group = Group("hadamard", "strict-linear", "strict", "hadamard_linear.strict")
    for n in (1, 2, 4, 8, 32, 64):
        for tokens in (1, 5):
            name = f"n{n}-{tokens}"
            draw = group.draw(name)
            group.add(
                name,
                "reals: alpha, transform, quantiser, integers, three products",
                {
                    "x": draw.reals("x", (tokens, n * 2)) * np.float32(1.3),
                    "codes": draw.codes("w", (n, 3, 2)),
                    "alpha": draw.positive("alpha", (n, 2)),
                    "beta": draw.positive("beta", (n, 3)) * np.float32(0.7),
                },
                flags=[f.SUM_ORDER, ROUND_AFTER],
            )
    draw = group.draw("zero")
    x = draw.reals("x", (3, 8))
    x[1] = 0
    group.add(
        "zero-row",
        "a token of zeros between two others",
        {
            "x": x,
            "codes": draw.codes("w", (4, 3, 2)),
            "alpha": draw.positive("a", (4, 2)),
            "beta": draw.positive("b", (4, 3)),
        },
        flags=[f.EPSILON],
    )
    long = group.draw("long")
    group.add(
        "long-sums",
        "inner products in the thousands, odd ones among them: 16-bit floats do not hold them",
        {
            "x": long.positive("x", (2, 4 * 96)) * np.float32(1.3),
            "codes": np.abs(long.codes("w", (4, 2, 96))) * np.sign(long.reals("s", (4, 1, 1))).astype(np.int8),
            "alpha": long.positive("alpha", (4, 96)),
            "beta": long.positive("beta", (4, 2)) * np.float32(0.7),
        },
        flags=[f.ACCUMULATOR],
    )
    group.add(
        "no-tokens",
        "no rows",
        {
            "x": x[:0],
            "codes": draw.codes("w", (4, 3, 2)),
            "alpha": draw.positive("a", (4, 2)),
            "beta": draw.positive("b", (4, 3)),
        },
        flags=[f.EMPTY_BATCH],
    )
    return group


def _invalid() -> Iterator[Group]:
    transform = Group("hadamard", "invalid-transform", "invalid", "hadamard_transform")
    for n in (3, 6, 12, 0):
        transform.add(f"n{n}", "not a power of two", {"x": filled((2, n), 1.0)}, error="ShapeError")
    transform.add("scalar", "no axis to transform", {"x": filled((), 1.0)}, error="ShapeError")
    transform.add(
        "integer-normalised",
        "integers are not normalised",
        {"x": filled((1, 4), 1, "int32")},
        normalize=True,
        error="ParameterError",
    )
    yield transform
    group = Group("hadamard", "invalid-linear", "invalid", "hadamard_linear")
    good = layer(group.draw("good"), 4, 2, 3, 2)
    wrong: list[tuple[str, str, dict[str, Array], str]] = [
        ("features", "x has another number of features than n K", {"x": filled((2, 11), 1.0)}, "ShapeError"),
        (
            "size-3",
            "three blocks are no power of two",
            {
                "x": filled((2, 9), 1.0),
                "w": filled((3, 2, 3), 1.0),
                "alpha": filled((3, 3), 1.0),
                "beta": filled((3, 2), 1.0),
            },
            "ShapeError",
        ),
        ("weight-matrix", "a weight without its block axis", {"w": filled((2, 12), 1.0)}, "ShapeError"),
        ("alpha-flat", "alpha is [n, K]", {"alpha": filled((12,), 1.0)}, "ShapeError"),
        ("beta-shared", "beta is [n, N], not shared by the blocks", {"beta": filled((2,), 1.0)}, "ShapeError"),
        ("beta-row", "a beta that would broadcast", {"beta": filled((1, 2), 1.0)}, "ShapeError"),
        ("w-int32", "integer weights are int8 or packed", {"w": filled((4, 2, 3), 1, "int32")}, "DTypeError"),
        (
            "code-minus-2",
            "an int8 weight that is no ternary code",
            {"w": filled((4, 2, 3), -2, "int8")},
            "ParameterError",
        ),
        ("packed-code-3", "a packed code 3", {"w": filled((4, 2, 1), 0b01110101, "uint8")}, "FormatError"),
    ]
    for case, comment, change, error in wrong:
        group.add(case, comment, {**good, **change}, error=error, flags=[f.BROADCAST] if "beta" in case else [])
    yield group
    bits = Group("hadamard", "invalid-bit-linear", "invalid", "hadamard_bit_linear")
    nan = good["w"].copy()
    nan[1, 0, 2] = np.nan
    bits.add("nan-weight", "a weight that is not finite", {**good, "w": nan}, error="NonFiniteError")
    bits.add("activation-bits", "8 or null", good, error="ParameterError", activation_bits=16)
    bits.add("rule", "an unknown rule", good, error="ParameterError", rule="mean")
    yield bits
    strict = Group("hadamard", "invalid-strict", "invalid", "hadamard_linear.strict")
    sound = {**without(good, "w"), "codes": filled((4, 2, 3), 1, "int8")}
    x = good["x"].copy()
    x[0, 5] = np.nan
    strict.add("nan", "strict arithmetic needs finite rows", {**sound, "x": x}, error="NonFiniteError")
    strict.add("codes-float", "codes are int8", {**sound, "codes": good["w"]}, error="DTypeError")
    strict.add("alpha", "alpha is [n, K]", {**sound, "alpha": filled((4, 2), 1.0)}, error="ShapeError")
    strict.add("code-2", "no ternary code", {**sound, "codes": filled((4, 2, 3), 2, "int8")}, error="ParameterError")
    yield strict
    plain = Group("hadamard", "invalid-transform-strict", "invalid", "hadamard_transform.strict")
    plain.add("n3", "not a power of two", {"x": filled((2, 3), 1.0)}, error="ShapeError")
    plain.add("float64", "strict arithmetic is float32", {"x": filled((2, 4), 1.0, "float64")}, error="DTypeError")
    yield plain
