"""Vectors of *ternary*: ``q = clip(rint(w / gamma), -1, 1)``, its straight-through gradient and the two-bit packing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group, Paint
from walsh.suite.generate.numbers import FLOATS, Draw, filled, listed, ternary_is_clear
from walsh.suite.tensors import DTYPES, Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield from _packing()
    yield _rounded()
    yield _choice()
    yield from _gradient()
    yield from _invalid()


def _clear(draw: Draw, shape: tuple[int, ...], dtype: str) -> Array:
    """Weights of uneven magnitude that stay clear of rounding ties."""
    return draw.search(lambda d: d.reals("w", shape, dtype, -3, 1), ternary_is_clear)


def _exact() -> Group:
    group = Group("ternary", "exact-round", "exact", "ternary", {"rule": "round"})
    for dtype in FLOATS:
        near = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
        # The spacing below 1/2 is half of the spacing above it.
        values = [0.5 + 2 * near, 0.5 - near, -0.5 - 2 * near, -0.5 + near, 1.5, -1.5, 0.0, -0.0, 0.75, -0.25]
        group.add(
            f"{dtype}-neighbours",
            "the floats next to one half on both sides, which round apart",
            {"w": listed(values, dtype)},
            flags=[f.THRESHOLD],
        )
        group.add(
            f"{dtype}-shape-3x2x5",
            "three axes; integers and halves of odd numbers are left out",
            {"w": group.draw(dtype).reals("w", (3, 2, 5), dtype, -4, 3)},
            flags=[f.SMOKE] if dtype == "float32" else [],
        )
    group.add("scalar", "no axis at all", {"w": listed(-0.75)}, flags=[f.LEADING_AXES])
    tiny = np.array([1, 2**22, 7, 2**23 - 1], dtype=np.int32).view(np.float32)
    group.add("subnormal", "subnormal weights are zeros, and no error", {"w": tiny}, flags=[f.SUBNORMAL])
    largest = float(np.finfo(np.float32).max)
    group.add("largest", "the largest finite float32", {"w": listed([largest, -largest, 1.0])}, flags=[f.OUTLIER])
    return group


def _packing() -> Iterator[Group]:
    pack = Group("ternary", "exact-pack", "exact", "pack_ternary")
    unpack = Group("ternary", "exact-unpack", "exact", "unpack_ternary")
    shapes: list[tuple[tuple[int, ...], str]] = [
        ((1,), "one code, three of padding"),
        ((2,), "two codes"),
        ((3,), "three codes"),
        ((4,), "a full byte"),
        ((5,), "one code into the second byte"),
        ((7,), "odd"),
        ((8,), "two full bytes"),
        ((2, 3, 9), "leading axes; every row is padded by itself"),
        ((0, 6), "no rows"),
        ((3, 0), "no columns"),
        ((33, 65), "larger than common tiles"),
    ]
    for shape, comment in shapes:
        name = "x".join(map(str, shape))
        q = pack.draw(name).codes("q", shape)
        given: Array | Paint = q
        if q.nbytes > 1024:
            given = Paint("int8", shape, 2, 1, 3, 1)
            q = given.array()
        marks = [f.PACKED_ORDER, *([f.EMPTY_BATCH] if 0 in shape else [f.TAIL_COLUMNS])]
        pack.add(name, comment, {"q": given}, flags=marks)
        padded = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, -shape[-1] % 4)]) + 1
        quads = padded.reshape(*shape[:-1], -1, 4).astype(np.uint8) if q.size else np.zeros(0, np.uint8)
        if q.size:
            packed = quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6
        else:
            packed = np.zeros((*shape[:-1], (shape[-1] + 3) // 4), dtype=np.uint8)
        unpack.add(name, comment, {"packed": packed}, flags=marks, k=shape[-1])
    yield pack
    yield unpack


def _rounded() -> Group:
    group = Group("ternary", "rounded-absmean", "rounded", "ternary", {"rule": "absmean"})
    shapes = [((1,), "one weight: gamma is its own magnitude"), ((5, 7), "odd sizes"), ((2, 3, 8), "a component axis")]
    for dtype in FLOATS:
        for shape, comment in shapes:
            name = f"{dtype}-{'x'.join(map(str, shape))}"
            group.add(name, comment, {"w": _clear(group.draw(name), shape, dtype)})
    draw = group.draw("unlike")
    rows = np.ldexp(np.ones((4, 1)), [[-12], [-4], [0], [6]])

    def unlike(d: Draw) -> Array:
        return (d.reals("w", (4, 9)).astype(np.float64) * rows).astype(np.float32)

    group.add(
        "unlike-rows",
        "rows whose magnitudes differ by 2^18: one gamma for all of them",
        {"w": draw.search(unlike, ternary_is_clear)},
        flags=[f.ABSMEAN_SCOPE],
    )
    outlier = _clear(group.draw("outlier"), (3, 8), "float32")
    outlier[1, 4] = -4096.0
    group.add("outlier", "one huge weight sends all others to zero", {"w": outlier}, flags=[f.OUTLIER])
    group.add(
        "half-of-gamma",
        "gamma / 2 lies a hair above 1, between two floats: the weight 1 is a zero, its successor is not",
        {"w": listed([1.0, 3.0, -1.0, -3.0])},
        flags=[f.THRESHOLD],
    )
    group.add("zeros", "all zero: gamma is the epsilon 1e-8", {"w": filled((3, 5), 0.0)}, flags=[f.EPSILON])
    group.add(
        "tiny",
        "weights of the size of the epsilon: without it the codes would not be zero",
        {"w": listed([2.0**-28, -(2.0**-29), 2.0**-28, 2.0**-30])},
        flags=[f.EPSILON],
    )
    group.add(
        "negative-zeros",
        "zeros of both signs count in the mean",
        {"w": listed([-0.0, 0.0, 3.0, -2.0])},
        flags=[f.NEGATIVE_ZERO],
    )
    group.add(
        "sparse", "one weight in 24 is not zero: gamma is small", {"w": np.eye(1, 24, 5, dtype=np.float32) * 0.75}
    )
    big = group.draw("large").search(lambda d: d.reals("w", (31, 33), "float32", -3, 1), ternary_is_clear)
    group.add("31x33", "more weights than one tile", {"w": big}, flags=[f.TAIL_ROWS])
    return group


def _choice() -> Group:
    group = Group("ternary", "choice-ties", "choice", "ternary", {"rule": "round"}, exact=True)
    for dtype in FLOATS:
        group.add(
            f"{dtype}-ties",
            "one half rounds to the even 0; away from zero gives 1",
            {"w": listed([0.5, -0.5, 0.25, -2.5, 2.5, 0.75], dtype)},
            flags=[f.TIES_AWAY],
            choices={"q": [np.array([1, -1, 0, -1, 1, 1], dtype=np.int8)]},
        )
    return group


def _gradient() -> Iterator[Group]:
    # Past the clip the gradient is a zero of either sign; elsewhere the bound allows dq and nothing else.
    group = Group("ternary", "gradient-ste", "gradient", "ternary_ste.backward")
    edge = [0.5, -0.5, 0.5 + 2.0**-10, -0.5 - 2.0**-10, 0.5 - 2.0**-11, 0.0, -3.0, 1e30]
    for dtype in FLOATS:
        values = [v for v in edge if abs(v) < 1e4 or dtype not in ("float16",)]
        if dtype == "bfloat16":
            values = [0.5, -0.5, 0.50390625, -0.50390625, 0.498046875, 0.0, -3.0, 256.0]
        w = listed(values, dtype)
        dq = group.draw(dtype).reals("dq", w.shape, dtype)
        group.add(
            f"{dtype}-clip",
            "weights exactly at, just above and just below the clip",
            {"w": w, "dq": dq},
            flags=[f.CLIP_BOUNDARY, f.STRAIGHT_THROUGH],
            rule="absmean",
            ste_clip=0.5,
        )
        group.add(
            f"{dtype}-identity",
            "without a clip the gradient is handed on unchanged, whatever gamma is",
            {
                "w": group.draw(dtype + "i").reals("w", (3, 4), dtype),
                "dq": group.draw(dtype + "i").reals("dq", (3, 4), dtype),
            },
            flags=[f.STRAIGHT_THROUGH],
        )
    group.add(
        "rule-round",
        "the other rule has the same gradient",
        {"w": listed([0.4, -0.6, 1.5]), "dq": listed([1.0, 2.0, 3.0])},
        rule="round",
        ste_clip=1.0,
    )
    group.add(
        "clip-zero",
        "a clip of 0 leaves the gradient of zeros only",
        {"w": listed([0.0, -0.0, 2.0**-149]), "dq": listed([1.0, -2.0, 3.0])},
        flags=[f.CLIP_BOUNDARY],
        ste_clip=0.0,
    )
    yield group
    value = Group("ternary", "exact-ste", "exact", "ternary_ste")
    for dtype in FLOATS:
        w = _clear(value.draw(dtype), (4, 6), dtype)
        value.add(dtype, "codes in the dtype of w", {"w": w}, unproven=True, ste_clip=1.0)
    value.add("rule-round", "rule round", {"w": listed([0.4, -0.6, 1.5])}, unproven=True, rule="round")
    yield value


def _invalid() -> Iterator[Group]:
    group = Group("ternary", "invalid", "invalid", "ternary")
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        group.add(name, "a weight that is not finite", {"w": listed([1.0, value, 0.5])}, error="NonFiniteError")
    group.add("nan-bfloat16", "the same in 16 bits", {"w": listed([np.nan, 1.0], "bfloat16")}, error="NonFiniteError")
    group.add("empty", "the mean of nothing", {"w": filled((0,), 0.0)}, error="ShapeError")
    group.add("empty-rows", "a matrix without columns", {"w": filled((3, 0), 0.0)}, error="ShapeError")
    group.add("rule", "an unknown rule", {"w": listed([1.0])}, error="ParameterError", rule="absmax")
    group.add("integers", "integers are no float weights", {"w": listed([1, 0], "int8")}, error="DTypeError")
    yield group
    ste = Group("ternary", "invalid-ste", "invalid", "ternary_ste")
    ste.add("nan", "a weight that is not finite", {"w": listed([np.nan])}, error="NonFiniteError")
    ste.add("rule", "an unknown rule", {"w": listed([1.0])}, error="ParameterError", rule="")
    yield ste
    pack = Group("ternary", "invalid-pack", "invalid", "pack_ternary")
    for code in (2, -2, 127, -128):
        q = np.array([0, 1, code, -1, 0], dtype=np.int8)
        pack.add(
            f"code-{code}".replace("--", "-minus-"),
            "no ternary code",
            {"q": q},
            error="ParameterError",
            flags=[f.SILENT_DEFAULT],
        )
    pack.add("floats", "codes are int8", {"q": listed([1.0, 0.0])}, error="DTypeError")
    yield pack
    unpack = Group("ternary", "invalid-unpack", "invalid", "unpack_ternary")
    bad: list[tuple[str, str, list[int], int]] = [
        ("code-3-first", "code 3 in position 0", [0b01010111], 4),
        ("code-3-last", "code 3 in position 3", [0b11010101], 4),
        ("padding-0", "a padding code 0", [0b01010101, 0b01010001], 5),
        ("padding-2", "a padding code 2", [0b10010101], 3),
        ("padding-3", "code 3 in the padding", [0b11010101], 1),
    ]
    for name, comment, data, k in bad:
        unpack.add(
            name, comment, {"packed": np.array(data, dtype=np.uint8)}, error="FormatError", k=k, flags=[f.PADDING_BITS]
        )
    five = np.full((2, 2), 0b01010101, dtype=np.uint8)
    unpack.add("too-short", "two bytes for nine codes", {"packed": five}, error="ShapeError", k=9)
    unpack.add("too-long", "two bytes for four codes", {"packed": five}, error="ShapeError", k=4)
    unpack.add("int8", "packed bytes are uint8", {"packed": five.astype(DTYPES["int8"])}, error="DTypeError", k=8)
    yield unpack
