"""Vectors of *head_mixer*: heads mixed in groups of n by full-precision d x d blocks, applied as x @ W."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from walsh.algebra import DIMENSIONS
from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group, Paint
from walsh.suite.generate.numbers import FLOATS, Draw, filled
from walsh.suite.tensors import DTYPES, Array

ALGEBRAS = ("complex", "quaternion", "octonion", "sedenion")


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield _rounded()
    yield _strict()
    yield from _gradients()
    yield from _invalid()


def size_of(algebra: str, n: int = 4) -> int:
    """Heads in a group."""
    return n if algebra == "hadamard" else DIMENSIONS[algebra]


def mixer(
    draw: Draw,
    algebra: str,
    tokens: int = 2,
    groups: int = 1,
    d: int = 2,
    dtype: str = "float32",
    size: int = 9,
    n: int = 4,
) -> dict[str, Array]:
    """x, w and beta in small integers, beta a power of two."""
    n = size_of(algebra, n)
    return {
        "x": draw.integers("x", (tokens, groups * n, d), -size, size, dtype),
        "w": draw.integers("w", (n, d, d), -size, size, dtype),
        "beta": np.ldexp(1.0, draw.integers("beta", (d,), -1, 1)).astype(DTYPES[dtype]),
    }


def _identity(draw: Draw, algebra: str) -> dict[str, Array]:
    inputs = mixer(draw, algebra, d=3)
    w = np.zeros_like(inputs["w"])
    w[: (len(w) if algebra == "hadamard" else 1)] = np.eye(3)
    x = inputs["x"]
    return {"x": np.where(x == 0, np.float32(5), x), "w": w}


def _axes(draw: Draw, shape: tuple[int, ...]) -> dict[str, Array]:
    return {**mixer(draw, "quaternion"), "x": draw.integers("x", shape, -9, 9, "float32")}


def _no_beta(draw: Draw, algebra: str) -> dict[str, Array]:
    return {name: array for name, array in mixer(draw, algebra).items() if name != "beta"}


def _painted(draw: Draw, x: Paint, algebra: str) -> dict[str, Any]:
    return {**mixer(draw, algebra), "x": x}


def _exact() -> Group:
    group = Group("head_mixer", "exact", "exact", "head_mixer")
    for algebra in (*ALGEBRAS, "hadamard"):
        for dtype in FLOATS:
            group.add(
                f"{algebra}-{dtype}",
                "integers",
                partial(mixer, algebra=algebra, dtype=dtype),
                algebra=algebra,
                flags=[f.OPERAND_ORDER, f.TRANSPOSED],
            )
        group.add(
            f"{algebra}-two-groups",
            "two groups share one mixer and are not mixed with each other",
            partial(mixer, algebra=algebra, groups=2),
            algebra=algebra,
            flags=[f.GROUPS],
        )
        group.add(
            f"{algebra}-identity",
            "the initial mixer gives x back",
            partial(_identity, algebra=algebra),
            algebra=algebra,
            flags=[f.SMOKE] if algebra == "octonion" else [f.TRANSPOSED],
        )
        group.add(
            f"{algebra}-no-beta",
            "without beta",
            partial(_no_beta, algebra=algebra),
            algebra=algebra,
            flags=[f.SCALE_MISSING],
        )
    for n in (1, 16):
        group.add(
            f"hadamard-n{n}",
            "other sizes whose root is a power of two",
            partial(mixer, algebra="hadamard", n=n),
            algebra="hadamard",
            flags=[f.NORMALISATION],
        )
    for d in (1, 5, 8):
        group.add(
            f"octonion-d{d}",
            "head dimensions",
            partial(mixer, algebra="octonion", d=d),
            algebra="octonion",
            flags=[f.TAIL_COLUMNS, f.TRANSPOSED],
        )
    for tokens in (5, 17, 33, 65):
        for algebra in ("octonion", "hadamard"):
            x = Paint("float32", (tokens, size_of(algebra), 2), 97, 13, 1021, 510)
            group.add(
                f"{algebra}-tokens-{tokens}",
                "tail rows",
                partial(_painted, x=x, algebra=algebra),
                algebra=algebra,
                flags=[f.TAIL_ROWS],
            )
    for shape, mark in (((4, 2), f.LEADING_AXES), ((2, 3, 4, 2), f.LEADING_AXES), ((0, 4, 2), f.EMPTY_BATCH)):
        group.add(
            "shape-" + "x".join(map(str, shape)),
            "leading axes",
            partial(_axes, shape=shape),
            algebra="quaternion",
            flags=[mark],
        )
    for dtype in FLOATS:
        for algebra in ("octonion", "hadamard"):
            group.add(
                f"{algebra}-reach-{dtype}",
                "sums close to what the accumulator holds exactly",
                partial(_reaching, algebra=algebra, dtype=dtype),
                algebra=algebra,
                flags=[f.FLOAT32_INSIDE if dtype == "float64" else f.ACCUMULATOR],
            )
    return group


def _reaching(draw: Draw, algebra: str, dtype: str) -> dict[str, Array]:
    """One fine element among large ones: 2^23 to 2^24 units (2^52 in float64)."""
    n, d, wide = size_of(algebra), 2, dtype == "float64"
    x = draw.integers("x", (2, n, d), 65, 127).astype(np.float64)
    w = np.where(draw.codes("w", (n, d, d)) < 0, -1.0, 1.0)
    fine = 2.0**-20 if wide else (2.0**-10 if dtype == "float16" else 1.0)
    share = n * n if algebra == "octonion" else n
    # Spare is counted for all elements, so that it holds for whichever draw the search ends at.
    size = 127.0 * n * d * share
    x *= 2.0 ** np.floor(np.log2((2.0**53 if wide else 2.0**24) * fine / size))
    x[:, 0, 0] = fine
    return {"x": x.astype(DTYPES[dtype]), "w": w.astype(DTYPES[dtype])}


def reals(
    draw: Draw, algebra: str, tokens: int = 2, groups: int = 1, d: int = 2, dtype: str = "float32", n: int = 4
) -> dict[str, Array]:
    """Reals of uneven magnitude."""
    n = size_of(algebra, n)
    return {
        "x": draw.reals("x", (tokens, groups * n, d), dtype),
        "w": draw.reals("w", (n, d, d), dtype),
        "beta": draw.positive("beta", (d,), dtype),
    }


def _rounded() -> Group:
    group = Group("head_mixer", "rounded", "rounded", "head_mixer")
    for algebra in (*ALGEBRAS, "hadamard"):
        for dtype in FLOATS:
            name = f"{algebra}-{dtype}"
            group.add(
                name,
                "reals",
                reals(group.draw(name), algebra, dtype=dtype),
                algebra=algebra,
                flags=[f.OPERAND_ORDER, f.TRANSPOSED],
            )
    for n in (2, 8, 32):
        group.add(
            f"hadamard-n{n}",
            "1 / sqrt(n) rounds",
            reals(group.draw(f"h{n}"), "hadamard", n=n, tokens=1),
            algebra="hadamard",
            flags=[f.NORMALISATION],
        )
    group.add(
        "octonion-groups",
        "three groups",
        reals(group.draw("groups"), "octonion", 1, 3, 2),
        algebra="octonion",
        flags=[f.GROUPS],
    )
    zero = reals(group.draw("zero"), "quaternion", 3)
    zero["x"][1] = 0
    group.add("zero-row", "a token of zeros among others", zero, algebra="quaternion")
    unlike = reals(group.draw("unlike"), "quaternion", 3)
    unlike["x"] *= np.array([2.0**-30, 1.0, 2.0**30], dtype=np.float32)[:, None, None]
    group.add("unlike-rows", "tokens of unlike magnitude", unlike, algebra="quaternion", flags=[f.UNLIKE_ROWS])
    basis = {
        "x": np.eye(8, dtype=np.float32)[:, :, None],
        "w": np.array([1, 2, 4, 8, 16, 32, 64, 128], dtype=np.float32)[:, None, None],
    }
    group.add(
        "basis-octonion",
        "one head at a time against powers of two: every sign of the table",
        basis,
        algebra="octonion",
        flags=[f.SIGN_TABLE, f.OPERAND_ORDER],
    )
    nan = reals(group.draw("nan"), "octonion", 3)
    nan["x"][1, 2, 0] = np.nan
    group.add("nan", "NaN fills its group of its token and no other", nan, algebra="octonion", flags=[f.NAN_ROW])
    return group


def _strict() -> Group:
    group = Group("head_mixer", "strict", "strict", "head_mixer.strict")
    for algebra in (*ALGEBRAS, "hadamard"):
        for tokens, count, d in ((1, 1, 1), (3, 2, 3)):
            name = f"{algebra}-{tokens}x{count}x{d}"
            group.add(
                name,
                "one scale per token and group, three or four products",
                strict_inputs(group.draw(name), algebra, tokens, count, d),
                algebra=algebra,
                flags=[f.GROUPS],
            )
    for n in (2, 8, 32):
        group.add(
            f"hadamard-n{n}",
            "other sizes",
            strict_inputs(group.draw(f"n{n}"), "hadamard", 2, 1, 2, n),
            algebra="hadamard",
            flags=[f.NORMALISATION],
        )
    zero = strict_inputs(group.draw("zero"), "octonion", 3, 1, 2)
    zero["x"][1] = 0
    group.add("zero-row", "a token of zeros between two others", zero, algebra="octonion", flags=[f.EPSILON])
    group.add(
        "tokens-17",
        "tail rows",
        strict_inputs(group.draw("17"), "quaternion", 17, 1, 2),
        algebra="quaternion",
        flags=[f.TAIL_ROWS],
    )
    return group


def strict_inputs(draw: Draw, algebra: str, tokens: int, groups: int, d: int, n: int = 4) -> dict[str, Array]:
    """x, int8 codes, one scale per output column and beta."""
    n = size_of(algebra, n)
    return {
        "x": draw.reals("x", (tokens, groups * n, d)) * np.float32(1.3),
        "codes": draw.integers("codes", (n, d, d), -127, 127, "int8"),
        "scale": draw.positive("scale", (d,)) * np.float32(0.01),
        "beta": draw.positive("beta", (d,)) * np.float32(1.1),
    }


def _with_gradient(
    draw: Draw, algebra: str, dtype: str = "float32", groups: int = 1, tokens: int = 2
) -> dict[str, Array]:
    size = 5 if algebra == "sedenion" else 9
    inputs = mixer(draw, algebra, tokens, groups, 2, dtype, size)
    return {**inputs, "dy": draw.integers("dy", inputs["x"].shape, -size, size, dtype)}


def _gradients() -> Iterator[Group]:
    exact = Group("head_mixer", "gradient-exact", "gradient", "head_mixer.backward", exact=True)
    marks = [f.GRAD_COMPONENT, f.WRONG_BACKWARD_TABLE, f.TRANSPOSED]
    for algebra in (*ALGEBRAS, "hadamard"):
        for dtype in FLOATS:
            exact.add(
                f"{algebra}-{dtype}",
                "integers: dx, dw and dbeta of every component",
                partial(_with_gradient, algebra=algebra, dtype=dtype),
                algebra=algebra,
                flags=marks,
            )
        exact.add(
            f"{algebra}-groups",
            "dw sums over groups too",
            partial(_with_gradient, algebra=algebra, groups=2),
            algebra=algebra,
            flags=[f.GROUPS, *marks],
        )
    exact.add(
        "no-beta", "without beta there is no dbeta", partial(_gradient_without_beta), algebra="octonion", flags=marks
    )
    exact.add(
        "reach-octonion",
        "sums close to 2^24 units of the grid",
        partial(_reaching_gradient, algebra="octonion"),
        algebra="octonion",
        flags=[f.ACCUMULATOR],
    )
    yield exact
    rounded = Group("head_mixer", "gradient-rounded", "gradient", "head_mixer.backward")
    for algebra in (*ALGEBRAS, "hadamard"):
        for dtype in FLOATS:
            name = f"{algebra}-{dtype}"
            draw = rounded.draw(name)
            inputs = reals(draw, algebra, tokens=3, d=2, dtype=dtype)
            rounded.add(
                name,
                "reals",
                {**inputs, "dy": draw.reals("dy", inputs["x"].shape, dtype)},
                algebra=algebra,
                flags=marks,
            )
    inputs = reals(rounded.draw("n32"), "hadamard", n=32, tokens=1, groups=2, d=1)
    rounded.add(
        "hadamard-n32",
        "the size of the published models, two groups",
        {**inputs, "dy": rounded.draw("n32").reals("dy", inputs["x"].shape)},
        algebra="hadamard",
        flags=[f.GROUPS, *marks],
    )
    yield rounded


def _gradient_without_beta(draw: Draw) -> dict[str, Array]:
    return {name: array for name, array in _with_gradient(draw, "octonion").items() if name != "beta"}


def _reaching_gradient(draw: Draw, algebra: str) -> dict[str, Array]:
    """Dy large, x and w +-1: dx, dw and dbeta all have room below 2^24 units."""
    n, d = size_of(algebra), 2
    dy = draw.integers("dy", (1, n, d), 65, 127).astype(np.float64)
    w = np.where(draw.codes("w", (n, d, d)) < 0, -1.0, 1.0)
    x = np.zeros((1, n, d))
    x[0, 0, 0] = 1.0
    x[0, 0, 1] = -1.0
    size = np.abs(dy).sum() * n * n
    dy *= 2.0 ** np.floor(np.log2(2.0**24 / size))
    dy[0, 0] = 1.0
    return {"x": x.astype(np.float32), "w": w.astype(np.float32), "dy": dy.astype(np.float32)}


def _invalid() -> Iterator[Group]:
    group = Group("head_mixer", "invalid", "invalid", "head_mixer")
    good = mixer(group.draw("good"), "octonion")
    wrong: list[tuple[str, str, dict[str, Array], str, str]] = [
        ("heads", "heads are no multiple of the group", {"x": filled((2, 12, 2), 1.0)}, "octonion", "ShapeError"),
        ("dimension", "the algebra has another dimension", {}, "quaternion", "ShapeError"),
        (
            "dimension-smaller",
            "a quaternion mixer is no octonion one, though the heads would divide",
            {"w": filled((4, 2, 2), 1.0)},
            "octonion",
            "ShapeError",
        ),
        ("algebra", "an unknown algebra", {}, "octonions", "ParameterError"),
        ("dense", "reals do not mix heads", {"w": filled((1, 2, 2), 1.0)}, "dense", "ParameterError"),
        ("not-square", "blocks are d x d", {"w": filled((8, 2, 3), 1.0)}, "octonion", "ShapeError"),
        ("weight-d", "blocks of another head dimension", {"w": filled((8, 3, 3), 1.0)}, "octonion", "ShapeError"),
        ("beta", "a beta that would broadcast", {"beta": filled((1,), 1.0)}, "octonion", "ShapeError"),
        ("beta-heads", "a beta per head", {"beta": filled((8, 2), 1.0)}, "octonion", "ShapeError"),
        (
            "hadamard-6",
            "six is no power of two",
            {"x": filled((2, 6, 2), 1.0), "w": filled((6, 2, 2), 1.0)},
            "hadamard",
            "ShapeError",
        ),
        ("rank", "x without a head axis", {"x": filled((2,), 1.0)}, "octonion", "ShapeError"),
        ("w-int8", "mixers are full precision", {"w": filled((8, 2, 2), 1, "int8")}, "octonion", "DTypeError"),
        ("x-int32", "x is float", {"x": filled((2, 8, 2), 1, "int32")}, "octonion", "DTypeError"),
    ]
    for case, comment, change, algebra, error in wrong:
        group.add(
            case,
            comment,
            {**good, **change},
            error=error,
            algebra=algebra,
            flags=[f.BROADCAST] if case.startswith("beta") else [],
        )
    yield group
    strict = Group("head_mixer", "invalid-strict", "invalid", "head_mixer.strict")
    sound = strict_inputs(strict.draw("good"), "octonion", 2, 1, 2)
    nan = sound["x"].copy()
    nan[0, 1, 1] = np.inf
    strict.add(
        "inf", "strict arithmetic needs finite rows", {**sound, "x": nan}, error="NonFiniteError", algebra="octonion"
    )
    strict.add(
        "codes",
        "codes are int8",
        {**sound, "codes": sound["codes"].astype(np.int32)},
        error="DTypeError",
        algebra="octonion",
    )
    strict.add(
        "scale",
        "one scale per column",
        {**sound, "scale": filled((8, 2), 1.0)},
        error="ShapeError",
        algebra="octonion",
        flags=[f.BROADCAST],
    )
    strict.add("algebra", "an unknown algebra", sound, error="ParameterError", algebra="real")
    yield strict
