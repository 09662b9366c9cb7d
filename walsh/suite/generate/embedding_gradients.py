"""Vectors of *embedding*, gradients: of tables, importance and features."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group
from walsh.suite.generate.embedding import hash_lm_inputs, hashed, ids_of, lm_inputs, without_ids
from walsh.suite.generate.numbers import FLOATS, Draw
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op's gradients."""
    yield from _gradients_exact()
    yield from _gradients_rounded()


def _with_de(draw: Draw, make: object, width: int, dtype: str) -> dict[str, Array]:
    inputs: dict[str, Array] = make(draw)  # type: ignore[operator]  # a partial of one of the makers above
    return {**inputs, "de": draw.nonzero("de", (*inputs["ids"].shape, width), 9, dtype)}


def _plain_gradient(draw: Draw, ids: object, dtype: str = "float32") -> dict[str, Array]:
    given = ids_of(ids)
    return {
        "ids": given,
        "table": draw.reals("table", (7, 3), dtype),
        "de": draw.nonzero("de", (*given.shape, 3), 9, dtype),
    }


def _head_gradient(draw: Draw, dtype: str = "float32", tokens: int = 3) -> dict[str, Array]:
    return {**lm_inputs(draw, (tokens,), dtype=dtype), "dlogits": draw.nonzero("dlogits", (tokens, 5), 9, dtype)}


def _hash_head_gradient(draw: Draw, tables: int, dtype: str = "float32", indices: bool = True) -> dict[str, Array]:
    return {**hash_lm_inputs(draw, tables, dtype, indices), "dlogits": draw.nonzero("dlogits", (2, 6), 9, dtype)}


def _gradients_exact() -> Iterator[Group]:
    plain = Group("embedding", "gradient-embedding", "gradient", "embedding.backward", exact=True)
    for dtype in FLOATS:
        plain.add(
            f"{dtype}-duplicates",
            "an id three times, others never",
            _plain_gradient(plain.draw(dtype), [2, 0, 2, 2, 4], dtype),
            flags=[f.DUPLICATE_IDS, f.ROW_OFFSET],
        )
    plain.add(
        "batch",
        "duplicates across sequences",
        _plain_gradient(plain.draw("batch"), [[1, 1], [3, 1]]),
        flags=[f.DUPLICATE_IDS],
    )
    plain.add(
        "tokens-65",
        "many duplicates",
        _plain_gradient(plain.draw("65"), plain.draw("65").integers("ids", (65,), 0, 4)),
        flags=[f.DUPLICATE_IDS, f.TAIL_ROWS],
    )
    for dtype, count in (("bfloat16", 600), ("float16", 4104)):
        many = _plain_gradient(plain.draw(f"many-{dtype}"), np.arange(count) % 3 // 2, dtype)
        many["de"] = np.ones((count, 3), dtype=many["table"].dtype)
        plain.add(
            f"{dtype}-frequent",
            "an id so frequent that a 16-bit sum stops growing",
            many,
            flags=[f.ACCUMULATOR, f.DUPLICATE_IDS],
        )
    reach = _plain_gradient(plain.draw("reach"), [1, 1, 1])
    reach["de"] = np.array([[2.0**23 - 1, 5, 1], [3, 2.0**22, 2.0**23], [1, 7, 2.0**22]], dtype=np.float32)
    plain.add("reach", "sums close to 2^24", reach, flags=[f.ACCUMULATOR, f.DUPLICATE_IDS])
    yield plain
    embedding = Group("embedding", "gradient-hash-embedding", "gradient", "hash_embedding.backward", exact=True)
    for tables in (2, 3):
        for dtype in FLOATS:
            make = partial(hashed, tables=tables, dtype=dtype)
            embedding.add(
                f"tables-{tables}-{dtype}",
                "every table's rows and the importance of each id",
                partial(_with_de, make=make, width=3, dtype=dtype),
                flags=[f.DUPLICATE_IDS, f.IMPORTANCE],
            )
    make = partial(hashed, tables=3, indices=False)
    embedding.add(
        "default-3",
        "indices by the hash",
        partial(_with_de, make=make, width=3, dtype="float32"),
        flags=[f.HASH_COLLAPSE],
    )
    embedding.add(
        "scale",
        "the scale is in every gradient",
        partial(_with_de, make=partial(hashed), width=3, dtype="float32"),
        flags=[f.SCALE_MISSING],
        scale=0.5,
    )
    yield embedding
    head = Group("embedding", "gradient-lm-head", "gradient", "lm_head.backward", exact=True)
    for dtype in FLOATS:
        head.add(dtype, "dx and dtable", partial(_head_gradient, dtype=dtype), flags=[f.TRANSPOSED])
    head.add("tokens-17", "dtable sums over all tokens", partial(_head_gradient, tokens=17), flags=[f.TAIL_ROWS])
    yield head
    tied = Group("embedding", "gradient-hash-lm-head", "gradient", "hash_lm_head.backward", exact=True)
    for tables in (2, 3):
        for dtype in FLOATS:
            tied.add(
                f"tables-{tables}-{dtype}",
                "dx, every table and the importance",
                partial(_hash_head_gradient, tables=tables, dtype=dtype),
                flags=[f.IMPORTANCE],
            )
    tied.add(
        "default-2",
        "indices by the hash",
        partial(_hash_head_gradient, tables=2, indices=False),
        flags=[f.HASH_COLLAPSE],
    )
    yield tied


def _gradients_rounded() -> Iterator[Group]:
    embedding = Group("embedding", "gradient-rounded-hash-embedding", "gradient", "hash_embedding.backward")
    head = Group("embedding", "gradient-rounded-lm-head", "gradient", "lm_head.backward")
    tied = Group("embedding", "gradient-rounded-hash-lm-head", "gradient", "hash_lm_head.backward")
    for dtype in FLOATS:
        draw = embedding.draw(dtype)
        inputs = hashed(draw, 3, dtype=dtype, reals=True)
        embedding.add(
            dtype,
            "reals",
            {**inputs, "de": draw.reals("de", (7, 3), dtype)},
            scale=float(np.sqrt(3)),
            flags=[f.DUPLICATE_IDS],
        )
        draw = head.draw(dtype)
        head.add(
            dtype,
            "reals",
            {
                "x": draw.reals("x", (3, 4), dtype),
                "table": draw.reals("table", (5, 4), dtype),
                "dlogits": draw.reals("dlogits", (3, 5), dtype),
            },
        )
        draw = tied.draw(dtype)
        inputs = without_ids(draw, tables=2, dtype=dtype, reals=True)
        tied.add(
            dtype,
            "reals",
            {"x": draw.reals("x", (3, 3), dtype), **inputs, "dlogits": draw.reals("dlogits", (3, 6), dtype)},
            flags=[f.IMPORTANCE],
        )
    yield embedding
    yield head
    yield tied
