"""Vectors of *hadamard*, gradients: of the transform, and dx, dw, dalpha, dbeta of both layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group, Paint
from walsh.suite.generate.hadamard import SQUARES, clear_layer, exact_layer, layer, reals, without
from walsh.suite.generate.numbers import FLOATS, Draw
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op's gradients."""
    yield _transform_gradient()
    yield from _gradients()


def _transform_gradient() -> Group:
    group = Group("hadamard", "gradient-transform", "gradient", "hadamard_transform.backward", exact=True)
    for n in (1, 4, 16):
        draw = group.draw(f"n{n}")
        group.add(
            f"normalised-{n}",
            "its own transpose",
            {"x": draw.reals("x", (2, n)), "dy": draw.integers("dy", (2, n), -99, 99, "float32")},
        )
    for dtype in FLOATS:
        draw = group.draw(dtype)
        group.add(
            f"plain-{dtype}",
            "not normalised, n = 8",
            {"x": draw.reals("x", (3, 8), dtype), "dy": draw.integers("dy", (3, 8), -15, 15, dtype)},
            normalize=False,
        )
    return group


def _differentiated(
    draw: Draw, n: int = 4, dtype: str = "float32", absent: tuple[str, ...] = (), tokens: int = 3
) -> dict[str, Array]:
    """A layer in integers, K = 2 and N = 2, and the gradient of its result."""
    size = 3 if n == 16 else 9
    inputs = without(layer(draw, n, tokens, 2, 2, dtype, size), *absent)
    return {**inputs, "dy": draw.integers("dy", (tokens, n * 2), -size, size, dtype)}


def _many_tokens(draw: Draw, tokens: int) -> dict[str, Array | Paint]:
    """Painted x and dy over tail rows of tokens."""
    inputs: dict[str, Array | Paint] = {**layer(draw, 4, 1, 2, 2)}
    inputs["x"] = Paint("float32", (tokens, 8), 5, 1, 29, 14)
    inputs["dy"] = Paint("float32", (tokens, 8), 7, 3, 23, 11)
    return inputs


def _reaching_gradient(draw: Draw) -> dict[str, Array]:
    """One fine element of dy among large ones; x and w are +-1."""
    dy = draw.integers("dy", (1, 8), 65, 127).astype(np.float64)
    dy[0, 1:] *= 2.0 ** np.floor(np.log2(2.0**24 / (dy.sum() * 4 * 8)))
    dy[0, 0] = 1.0
    signs = {
        name: np.where(draw.codes(name, shape) < 0, -1.0, 1.0) for name, shape in (("x", (1, 8)), ("w", (4, 2, 2)))
    }
    return {"x": signs["x"].astype(np.float32), "w": signs["w"].astype(np.float32), "dy": dy.astype(np.float32)}


def _differentiated_bits(draw: Draw, n: int) -> dict[str, Array]:
    inputs = exact_layer(draw, n, 2, 2, 2, "float32")
    return {**inputs, "dy": draw.integers("dy", (2, n * 2), -3, 3, "float32") + np.float32(0.5)}


def _gradients() -> Iterator[Group]:
    exact = Group("hadamard", "gradient-exact", "gradient", "hadamard_linear.backward", exact=True)
    marks = [f.GRAD_COMPONENT, f.NORMALISATION]
    for n in SQUARES:
        for dtype in FLOATS:
            exact.add(
                f"n{n}-{dtype}",
                "integers: dx, dw, dalpha and dbeta of every block",
                partial(_differentiated, n=n, dtype=dtype),
                flags=marks,
            )
    for absent in (("alpha",), ("beta",), ("alpha", "beta")):
        exact.add(
            "-".join(("without", *absent)),
            "absent scales have no gradient",
            partial(_differentiated, absent=absent),
            flags=[f.SCALE_MISSING],
        )
    for tokens in (1, 17, 65):
        exact.add(
            f"tokens-{tokens}",
            "dw, dalpha and dbeta sum over all tokens",
            partial(_many_tokens, tokens=tokens),
            flags=[f.TAIL_ROWS],
        )
    exact.add("reach", "sums close to 2^24 units of the grid", _reaching_gradient, flags=[f.ACCUMULATOR])
    yield exact
    rounded = Group("hadamard", "gradient-rounded", "gradient", "hadamard_linear.backward")
    for n in (2, 8, 32):
        for dtype in FLOATS:
            case = f"n{n}-{dtype}"
            draw = rounded.draw(case)
            inputs = reals(draw, n, 2, 2, 1, dtype)
            rounded.add(case, "reals", {**inputs, "dy": draw.reals("dy", (2, n), dtype)}, flags=[f.GRAD_COMPONENT])
    rounded.add(
        "no-tokens",
        "the gradients of nothing are zeros",
        _differentiated(rounded.draw("none"), tokens=0),
        flags=[f.EMPTY_BATCH],
    )
    yield rounded
    bits = Group("hadamard", "gradient-bit-exact", "gradient", "hadamard_bit_linear.backward", exact=True)
    for n in SQUARES:
        bits.add(
            f"n{n}", "dw uses the rounded activations", partial(_differentiated_bits, n=n), flags=[f.STRAIGHT_THROUGH]
        )
    yield bits
    mixed = Group("hadamard", "gradient-bit-rounded", "gradient", "hadamard_bit_linear.backward")
    for n in SQUARES:
        # Past the clip dw is a zero of either sign.
        mixed.add(
            f"n{n}-clip",
            "some weights past the clip, some exactly at it",
            _differentiated_bits(mixed.draw(f"clip{n}"), n),
            ste_clip=1.25,
            flags=[f.STRAIGHT_THROUGH, f.CLIP_BOUNDARY],
        )
    for n in (2, 4, 8, 32):
        for setting in (8, None):
            case = f"n{n}-{setting or 'null'}"
            draw = mixed.draw(case)
            inputs = clear_layer(draw, n, 2, 2, 1)
            mixed.add(
                case,
                "reals",
                {**inputs, "dy": draw.reals("dy", (2, n))},
                activation_bits=setting,
                ste_clip=1.5,
                flags=[f.STRAIGHT_THROUGH],
            )
    for dtype in ("float64", "bfloat16", "float16"):
        draw = mixed.draw(dtype)
        inputs = clear_layer(draw, 4, 2, 2, 1, dtype)
        mixed.add(
            dtype,
            "reals of another dtype",
            {**inputs, "dy": draw.reals("dy", (2, 4), dtype)},
            flags=[f.STRAIGHT_THROUGH],
        )
    yield mixed
