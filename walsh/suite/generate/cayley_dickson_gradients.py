"""Vectors of *cayley_dickson*, gradients: dx, dw and dbeta of the plain and of the ternary layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group, Paint
from walsh.suite.generate.cayley_dickson import (
    DIMENSIONS,
    LARGE,
    SIZES,
    clear_layer,
    exact_layer,
    layer,
    painted,
    reals,
)
from walsh.suite.generate.numbers import FLOATS, Draw
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op's gradients."""
    yield _gradient_exact()
    yield _gradient_large()
    yield _gradient_rounded()
    yield _gradient_bits_exact()
    yield _gradient_bits()


def with_gradient(inputs: dict[str, Array], dy: Array) -> dict[str, Array]:
    """The inputs of a gradient call."""
    return {**inputs, "dy": dy}


GRADIENT_FLAGS = (f.GRAD_COMPONENT, f.WRONG_BACKWARD_TABLE)


def _differentiated(
    draw: Draw, dimension: int, dtype: str = "float32", shape: tuple[int, ...] = (3,), beta: bool = True
) -> dict[str, Array]:
    """A layer in integers, K = 2 and N = 3, and the gradient of its result."""
    size = 5 if dimension == 16 else 9
    inputs = layer(draw, dimension, int(np.prod(shape)), 2, 3, dtype, size)
    inputs["x"] = inputs["x"].reshape(*shape, dimension * 2)
    if not beta:
        del inputs["beta"]
    return {**inputs, "dy": draw.integers("dy", (*shape, dimension * 3), -size, size, dtype)}


def _adjoint(draw: Draw, dimension: int) -> dict[str, Array]:
    """Dy is one basis element per token, with a second, larger one beside it, so that no result is zero."""
    return {
        "x": draw.integers("x", (dimension, dimension), 1, 9, "float32"),
        "w": draw.integers("w", (dimension, 1, 1), 1, 9, "float32"),
        "dy": np.eye(dimension, dtype=np.float32) + 32 * np.roll(np.eye(dimension, dtype=np.float32), 1, axis=1),
    }


def _many_tokens(draw: Draw, tokens: int) -> dict[str, Array | Paint]:
    """Painted x and dy over tail rows of tokens."""
    inputs: dict[str, Array | Paint] = {**layer(draw, 8, 1, 1, 2, "float32", 7)}
    inputs["x"] = Paint("float32", (tokens, 8), 5, 1, 13, 6)
    inputs["dy"] = Paint("float32", (tokens, 16), 7, 3, 11, 5)
    return inputs


def _gradient_exact() -> Group:
    name = "cayley_dickson_linear.backward"
    group = Group("cayley_dickson", "gradient-exact", "gradient", name, exact=True)
    for dimension in DIMENSIONS:
        for dtype in FLOATS:
            group.add(
                f"d{dimension}-{dtype}",
                "integers: dx, dw and dbeta, every component",
                partial(_differentiated, dimension=dimension, dtype=dtype),
                flags=GRADIENT_FLAGS,
            )
        group.add(
            f"table-d{dimension}",
            "two basis elements of dy per token: the adjoint tables",
            partial(_adjoint, dimension=dimension),
            flags=GRADIENT_FLAGS,
        )
        _reaching_gradient(group, dimension)
    for tokens in (1, 17, 65):
        group.add(
            f"tokens-{tokens}",
            "dw and dbeta sum over all tokens",
            partial(_many_tokens, tokens=tokens),
            flags=[f.TAIL_ROWS, *GRADIENT_FLAGS],
        )
    group.add(
        "no-beta",
        "without beta there is no dbeta",
        partial(_differentiated, dimension=4, beta=False),
        flags=GRADIENT_FLAGS,
    )
    group.add(
        "leading-axes",
        "two leading axes",
        partial(_differentiated, dimension=4, shape=(2, 3)),
        flags=[f.LEADING_AXES, *GRADIENT_FLAGS],
    )
    return group


HALVES = {2: (125, 1000, 8), 4: (125, 120, 8), 8: (30, 60, 8)}
"""By D, the largest x, dy and w: as large as exact sums allow, so that no result is a zero; sedenions have no room."""


def _differentiated_large(draw: Draw, dimension: int, width: int) -> dict[str, Array | Paint]:
    x, dy, w = HALVES[dimension]
    return {
        "x": painted(draw, "x", (64, dimension * width), x),
        "w": painted(draw, "w", (dimension, width, width), w),
        "dy": painted(draw, "dy", (64, dimension * width), dy),
    }


def _gradient_large() -> Group:
    name = "cayley_dickson_linear.backward"
    group = Group("cayley_dickson", "gradient-large", "gradient", name, exact=True)
    for dimension, width in SIZES:
        if dimension not in HALVES:
            continue
        group.add(
            f"d{dimension}-64x{width}",
            "so large that fast forms and block-wise ones pay",
            partial(_differentiated_large, dimension=dimension, width=width),
            flags=[LARGE, *GRADIENT_FLAGS],
        )
    return group


def _reaching_gradient(group: Group, dimension: int) -> None:
    """Dx comes close to 2^24 grid units; x stays at 1, so that dw and dbeta have room."""
    draw = group.draw(f"reach{dimension}")
    outputs = 2
    dy = draw.integers("dy", (2, dimension * outputs), -127, 127).astype(np.float64)
    dy[:, 0] = 1.0
    w = np.where(draw.codes("w", (dimension, outputs, 1)) < 0, -1.0, 1.0)
    size = np.abs(dy).reshape(2, dimension, outputs).sum(1) @ np.abs(w).sum(0)
    spare = np.floor(np.log2(2.0**24 / (size.max() * (dimension if dimension >= 4 else 1))))
    # dbeta sums dy over components and tokens as well; its share of the range is kept free.
    spare = min(spare, np.floor(np.log2(2.0**24 / _dbeta_size(dy, w, dimension))))
    dy[:, 1:] *= 2.0**spare
    x = np.zeros((2, dimension))
    x[:, 0] = [1.0, 1.0]
    group.add(
        f"reach-d{dimension}",
        "sums close to 2^24 units of the grid",
        {"x": x.astype(np.float32), "w": w.astype(np.float32), "dy": dy.astype(np.float32)},
        flags=[f.ACCUMULATOR, *GRADIENT_FLAGS],
    )


def _dbeta_size(dy: Array, w: Array, dimension: int) -> float:
    return float(np.abs(dy).sum() * np.abs(w).sum(0).max() * (dimension if dimension >= 4 else 1)) / 2


def _gradient_rounded() -> Group:
    group = Group("cayley_dickson", "gradient-rounded", "gradient", "cayley_dickson_linear.backward")
    for dimension in DIMENSIONS:
        for dtype in FLOATS:
            case = f"d{dimension}-{dtype}"
            draw = group.draw(case)
            inputs = reals(draw, dimension, 3, 3, 2, dtype)
            group.add(
                case, "reals", with_gradient(inputs, draw.reals("dy", (3, dimension * 2), dtype)), flags=GRADIENT_FLAGS
            )
    nothing = _differentiated(group.draw("none"), 8, shape=(0,))
    group.add("no-tokens", "the gradients of nothing are zeros", nothing, flags=[f.EMPTY_BATCH])
    return group


def _differentiated_bits(draw: Draw, dimension: int) -> dict[str, Array]:
    inputs = exact_layer(draw, dimension, 2, 2, 2, "float32")
    if dimension == 16:
        # 256 products with the factor D: less room for each.
        inputs["beta"][:] = 1.0
        inputs["x"] = np.where(np.abs(inputs["x"]) * 8 == 127, inputs["x"], np.trunc(inputs["x"] / 2)).astype(
            np.float32
        )
    size = 2 if dimension == 16 else 5
    return {**inputs, "dy": draw.integers("dy", (2, dimension * 2), -size, size, "float32")}


def _gradient_bits_exact() -> Group:
    name = "cayley_dickson_bit_linear.backward"
    group = Group("cayley_dickson", "gradient-bit-exact", "gradient", name, exact=True)
    for dimension in DIMENSIONS:
        group.add(
            f"d{dimension}",
            "dw uses the rounded activations, dx the codes",
            partial(_differentiated_bits, dimension=dimension),
            flags=[f.STRAIGHT_THROUGH, *GRADIENT_FLAGS],
        )
    return group


def _gradient_bits() -> Group:
    group = Group("cayley_dickson", "gradient-bit-rounded", "gradient", "cayley_dickson_bit_linear.backward")
    for dimension in DIMENSIONS:
        # Past the clip dw is a zero of either sign.
        inputs = _differentiated_bits(group.draw(f"clip{dimension}"), dimension)
        group.add(
            f"d{dimension}-clip",
            "some weights are past the clip, some exactly at it",
            inputs,
            flags=[f.CLIP_BOUNDARY, f.STRAIGHT_THROUGH],
            ste_clip=1.25,
        )
    for dimension in DIMENSIONS:
        for bits in (8, None):
            case = f"d{dimension}-{bits or 'null'}"
            draw = group.draw(case)
            inputs = clear_layer(draw, dimension, 2, 3, 2)
            group.add(
                case,
                "reals",
                with_gradient(inputs, draw.reals("dy", (2, dimension * 2))),
                flags=[f.STRAIGHT_THROUGH, *GRADIENT_FLAGS],
                activation_bits=bits,
                ste_clip=1.5,
            )
    for dtype in ("float64", "bfloat16", "float16"):
        draw = group.draw(dtype)
        inputs = clear_layer(draw, 8, 2, 2, 2, dtype)
        group.add(
            dtype,
            "reals of another dtype",
            with_gradient(inputs, draw.reals("dy", (2, 16), dtype)),
            flags=[f.STRAIGHT_THROUGH, *GRADIENT_FLAGS],
        )
    return group
