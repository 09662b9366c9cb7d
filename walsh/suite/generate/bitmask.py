"""Vectors of *bitmask*: one bit per position, one sign bit per non-zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from walsh import reference
from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Flag, Group, Paint
from walsh.suite.generate.numbers import filled
from walsh.suite.tensors import Array

LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130)


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    encode, decode = (
        Group("bitmask", "exact-encode", "exact", "bitmask_encode"),
        Group("bitmask", "exact-decode", "exact", "bitmask_decode"),
    )
    for n in LENGTHS:
        _both(encode, decode, f"n{n}", "length around a multiple of 8", encode.draw(f"n{n}").codes("q", (n,)))
    for name, shape in (("matrix", (5, 13)), ("cube", (2, 3, 7)), ("row", (1, 9)), ("column", (9, 1))):
        _both(encode, decode, name, "row-major over all axes: rows are not padded", encode.draw(name).codes("q", shape))
    _both(encode, decode, "empty", "no positions: no bytes", np.zeros((0, 4), dtype=np.int8))
    _both(encode, decode, "zeros", "no signs at all", np.zeros(11, dtype=np.int8))
    for count in (1, 7, 8, 9, 16, 17):
        q = np.zeros(40, dtype=np.int8)
        chosen = np.argsort(encode.draw(f"s{count}").words("where", 40), kind="stable")[:count]
        q[chosen] = np.where(np.arange(count) % 3 == 0, -1, 1)
        _both(encode, decode, f"signs-{count}", "number of signs around a multiple of 8", q)
    _both(encode, decode, "all-plus", "every bit set", np.ones(16, dtype=np.int8))
    _both(encode, decode, "all-minus", "every mask bit set, no sign bit", -np.ones(19, dtype=np.int8))
    first = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1], dtype=np.int8)
    _both(encode, decode, "ends", "first and last position only", first)
    large = Paint("int8", (37, 101), 2, 1, 3, 1)
    encode.add("painted", "many bytes", {"q": large}, flags=[f.BIT_ORDER])
    yield encode
    yield decode
    yield from _invalid()


def _both(encode: Group, decode: Group, name: str, comment: str, q: Array) -> None:
    marks: list[Flag | str] = [f.BIT_ORDER, *([f.SMOKE] if name == "n17" else [])]
    encode.add(name, comment, {"q": q}, flags=marks)
    mask, signs = reference.bitmask_encode(q)
    decode.add(name, comment, {"mask": mask, "signs": signs}, flags=marks, shape=list(q.shape))


def _invalid() -> Iterator[Group]:
    encode = Group("bitmask", "invalid-encode", "invalid", "bitmask_encode")
    for code in (2, -2, 127, -128):
        q = np.array([0, 1, code], dtype=np.int8)
        encode.add(
            f"code-{'minus-' if code < 0 else ''}{abs(code)}",
            "no ternary code",
            {"q": q},
            error="ParameterError",
            flags=[f.SILENT_DEFAULT],
        )
    encode.add("floats", "codes are int8", {"q": filled((3,), 1.0)}, error="DTypeError")
    yield encode
    decode = Group("bitmask", "invalid-decode", "invalid", "bitmask_decode")
    cases: list[tuple[str, str, list[int], list[int], list[int]]] = [
        ("mask-short", "a byte of the mask is missing", [5], [1], [9]),
        ("mask-long", "a byte too many", [5, 0, 0], [1], [9]),
        ("mask-empty", "no mask for positions", [], [], [3]),
        ("signs-short", "a byte of signs is missing", [255, 1], [255], [9]),
        ("signs-none", "signs are missing", [5], [], [3]),
        ("signs-long", "a byte of signs too many", [5], [1, 0], [3]),
        ("signs-unasked", "signs without a non-zero", [0], [0], [3]),
        ("mask-padding", "a padding bit of the mask is set", [5, 2], [1], [9]),
        ("mask-padding-last", "the last padding bit is set", [5, 128], [1], [9]),
        ("signs-padding", "a padding bit of the signs is set", [5], [4], [3]),
        ("signs-padding-last", "the last padding bit of the signs is set", [5], [129], [3]),
        ("empty-shape", "bytes for no positions", [0], [], [0]),
    ]
    for name, comment, mask, signs, shape in cases:
        decode.add(
            name,
            comment,
            {"mask": np.array(mask, dtype=np.uint8), "signs": np.array(signs, dtype=np.uint8)},
            error="FormatError",
            shape=shape,
            flags=[f.PADDING_BITS],
        )
    yield decode
