"""Vectors of *embedding*: tables, hash embeddings of several tables, and the heads tied to both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Group, Paint
from walsh.suite.generate.numbers import FLOATS, Draw, filled, listed
from walsh.suite.tensors import DTYPES, Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _gather()
    yield _indices()
    yield _hash_exact()
    yield _head_exact()
    yield _hash_head_exact()
    yield from _rounded()
    yield from _strict()
    yield from _invalid()


def ids_of(values: object, dtype: str = "int64") -> Array:
    """Integers of any shape."""
    return np.array(values, dtype=dtype)


def _gather() -> Group:
    group = Group("embedding", "exact-embedding", "exact", "embedding")
    for dtype in FLOATS:
        table = group.draw(dtype).reals("table", (7, 3), dtype)
        group.add(
            dtype,
            "rows are copied; the last row too",
            {"ids": ids_of([3, 0, 6, 3]), "table": table},
            flags=[f.ROW_OFFSET, *([f.SMOKE] if dtype == "float32" else [])],
        )
    table = group.draw("shapes").reals("table", (5, 2))
    for name, ids in (
        ("batch", [[4, 1, 0], [2, 2, 3]]),
        ("cube", [[[1], [4]]]),
        ("scalar", 2),
        ("empty", np.zeros((2, 0), dtype=np.int64)),
    ):
        mark = f.EMPTY_BATCH if name == "empty" else f.LEADING_AXES
        group.add(f"ids-{name}", "ids of any shape", {"ids": ids_of(ids), "table": table}, flags=[mark])
    for dtype in ("int32", "uint8", "int16"):
        group.add(f"ids-{dtype}", "ids of any integer dtype", {"ids": ids_of([4, 0, 3], dtype), "table": table})
    for tokens in (17, 65, 130):
        ids = group.draw(f"t{tokens}").integers("ids", (tokens,), 0, 4)
        group.add(f"tokens-{tokens}", "tail rows", {"ids": ids, "table": table}, flags=[f.TAIL_ROWS])
    special = listed([[-0.0, np.nan], [np.inf, 2.0**-149], [1.0, -np.inf]])
    group.add(
        "special",
        "-0, NaN, infinities and subnormals are copied",
        {"ids": ids_of([2, 0, 1]), "table": special},
        flags=[f.NEGATIVE_ZERO, f.NAN_ROW, f.SUBNORMAL],
    )
    one = listed([[5.0, -1.0]])
    group.add("one-row", "V = 1", {"ids": ids_of([0, 0]), "table": one})
    tall = Paint("float32", (1000, 1), 389, 7, 1009, 504)
    group.add("tall", "ids past 255", {"ids": ids_of([999, 256, 511, 300]), "table": tall}, flags=[f.ROW_OFFSET])
    return group


def _indices() -> Group:
    group = Group("embedding", "exact-hash-indices", "exact", "hash_indices")
    edges = [0, 1, 1012, 1013, 1018, 1019, 1020, 1021, 1022, 2041, 2042, 50256, 100000, 1021 * 1021 - 1]
    for tables in (2, 3):
        group.add(
            f"edges-{tables}",
            "around the moduli and their multiples",
            {"ids": ids_of(edges)},
            tables=tables,
            flags=[f.HASH_COLLAPSE],
        )
        group.add(
            f"shape-{tables}",
            "ids of two axes",
            {"ids": ids_of([[5, 3000], [0, 77777]], "int32")},
            tables=tables,
            flags=[f.LEADING_AXES],
        )
        group.add(f"empty-{tables}", "no ids", {"ids": ids_of(np.zeros((0, 2)))}, tables=tables, flags=[f.EMPTY_BATCH])
        painted = Paint("int64", (503,), 97, 11, 50257, 0)
        group.add(
            f"vocabulary-{tables}",
            "a sample of a common vocabulary",
            {"ids": painted},
            tables=tables,
            flags=[f.HASH_COLLAPSE],
        )
    return group


def hashed(
    draw: Draw,
    tables: int = 2,
    vocabulary: int = 6,
    width: int = 3,
    dtype: str = "float32",
    reals: bool = False,
    indices: bool = True,
    tokens: int = 7,
) -> dict[str, Array]:
    """ids, tables, importance and, if wanted, explicit indices that reach every row; integers or reals.

    Importance is a power of two among integers. Without indices the tables must be as high as the vocabulary asks for.
    """
    heights = [vocabulary, 3, 5][:tables] if indices else ([vocabulary, 1] if tables == 2 else [vocabulary] * 3)
    # Every id once and some twice: 5 is coprime to the vocabulary of 6.
    result = {"ids": (np.arange(tokens) * 5 + vocabulary - 1) % vocabulary}
    for i, height in enumerate(heights):
        name = f"tables.{i}"
        shape = (height, width)
        result[name] = draw.reals(name, shape, dtype) if reals else draw.integers(name, shape, -31, 31, dtype)
    shape = (vocabulary, tables)
    if reals:
        result["importance"] = draw.reals("importance", shape, dtype, -1, 1)
    else:
        result["importance"] = np.ldexp(1.0, draw.integers("importance", shape, -2, 2)).astype(DTYPES[dtype])
    if indices:
        columns = [(np.arange(vocabulary) * 7 + i) % height for i, height in enumerate(heights)]
        result["indices"] = np.stack(columns, axis=-1).astype(np.int64)
    return result


def without_ids(draw: Draw, **settings: object) -> dict[str, Array]:
    """The tables of :func:`hashed` alone."""
    return {name: array for name, array in hashed(draw, **settings).items() if name != "ids"}  # type: ignore[arg-type]  # handed on


def _hash_exact() -> Group:
    group = Group("embedding", "exact-hash-embedding", "exact", "hash_embedding")
    for tables in (2, 3):
        for dtype in FLOATS:
            group.add(
                f"tables-{tables}-{dtype}",
                "integers; importance a power of two of its own for each id",
                partial(hashed, tables=tables, dtype=dtype),
                flags=[f.IMPORTANCE, f.ROW_OFFSET],
            )
        group.add(
            f"default-{tables}",
            "indices by the hash",
            partial(hashed, tables=tables, indices=False),
            flags=[f.HASH_COLLAPSE],
        )
    group.add("scale", "a scale of the sum", partial(hashed), scale=4.0, flags=[f.SCALE_MISSING])
    group.add(
        "past-1021", "ids past the first modulus use the second table's next row", _tall_tables, flags=[f.HASH_COLLAPSE]
    )
    group.add("empty", "no ids", partial(hashed, tokens=0), flags=[f.EMPTY_BATCH])
    for dtype in ("float32", "float64"):
        group.add(
            f"reach-{dtype}",
            "sums close to what the accumulator holds exactly",
            partial(_reaching_hash, dtype=dtype),
            flags=[f.ACCUMULATOR],
        )
    return group


def _tall_tables(draw: Draw) -> dict[str, Array | Paint]:
    """A vocabulary of 2100 ids over the default indices; painted, so that the file stays small."""
    return {
        "ids": ids_of([0, 1020, 1021, 1022, 2041, 2042, 2099]),
        "tables.0": Paint("float32", (1021, 1), 613, 5, 1031, 515),
        "tables.1": draw.integers("tables.1", (3, 1), 601, 900, "float32") * np.float32(2),
        "importance": Paint("float32", (2100, 2), 7, 1, 16, -1, -2),
    }


def _reaching_hash(draw: Draw, dtype: str) -> dict[str, Array]:
    inputs = hashed(draw, dtype=dtype)
    top = 2.0**52 if dtype == "float64" else 2.0**23
    inputs["importance"][:] = 1.0
    inputs["tables.0"] = (inputs["tables.0"] + top).astype(DTYPES[dtype])
    inputs["tables.1"] = (inputs["tables.1"] * 3 + 1).astype(DTYPES[dtype])
    return inputs


def lm_inputs(
    draw: Draw,
    tokens: tuple[int, ...] = (3,),
    vocabulary: int = 5,
    width: int = 4,
    dtype: str = "float32",
    size: int = 9,
) -> dict[str, Array]:
    """Inputs of lm_head in integers."""
    return {
        "x": draw.integers("x", (*tokens, width), -size, size, dtype),
        "table": draw.integers("table", (vocabulary, width), -size, size, dtype),
    }


def _head_exact() -> Group:
    group = Group("embedding", "exact-lm-head", "exact", "lm_head")
    for dtype in FLOATS:
        group.add(dtype, "integers", partial(lm_inputs, dtype=dtype), flags=[f.TRANSPOSED])
        group.add(
            f"reach-{dtype}",
            "sums close to what the accumulator holds exactly",
            partial(_reaching_head, dtype=dtype),
            flags=[f.ACCUMULATOR],
        )
    for tokens in ((), (2, 2), (0,), (17,), (33,)):
        name = "x".join(map(str, tokens)) or "none"
        mark = f.EMPTY_BATCH if 0 in tokens else (f.TAIL_ROWS if len(tokens) == 1 else f.LEADING_AXES)
        group.add(f"tokens-{name}", "leading axes", partial(lm_inputs, tokens=tokens, size=99), flags=[mark])
    for vocabulary, width in ((1, 1), (33, 3), (3, 33)):
        group.add(
            f"v{vocabulary}-c{width}",
            "sizes past a tile",
            partial(lm_inputs, vocabulary=vocabulary, width=width, size=99),
            flags=[f.TAIL_COLUMNS],
        )
    group.add(
        "square",
        "V = C: a transposed table has the right shape",
        partial(lm_inputs, vocabulary=4),
        flags=[f.TRANSPOSED],
    )
    return group


def _reaching_head(draw: Draw, dtype: str) -> dict[str, Array]:
    wide = dtype == "float64"
    fine = 2.0**-20 if wide else (2.0**-9 if dtype == "float16" else 1.0)
    x = draw.integers("x", (2, 4), 65, 127).astype(np.float64)
    x *= 2.0 ** np.floor(np.log2((2.0**53 if wide else 2.0**24) * fine / (127 * 4)))
    x[:, 0] = fine
    table = np.where(draw.codes("table", (3, 4)) < 0, -1.0, 1.0)
    return {"x": x.astype(DTYPES[dtype]), "table": table.astype(DTYPES[dtype])}


def hash_lm_inputs(draw: Draw, tables: int = 2, dtype: str = "float32", indices: bool = True) -> dict[str, Array]:
    """Two tokens and the tables of a tied hash head, in integers."""
    inputs = without_ids(draw, tables=tables, dtype=dtype, indices=indices)
    return {"x": draw.integers("x", (2, 3), -9, 9, dtype), **inputs}


def _hash_head_exact() -> Group:
    group = Group("embedding", "exact-hash-lm-head", "exact", "hash_lm_head")
    for tables in (2, 3):
        for dtype in FLOATS:
            group.add(
                f"tables-{tables}-{dtype}",
                "integers",
                partial(hash_lm_inputs, tables=tables, dtype=dtype),
                flags=[f.IMPORTANCE],
            )
        group.add(
            f"default-{tables}",
            "indices by the hash",
            partial(hash_lm_inputs, tables=tables, indices=False),
            flags=[f.HASH_COLLAPSE],
        )
    return group


def _rounded() -> Iterator[Group]:
    embedding = Group("embedding", "rounded-hash-embedding", "rounded", "hash_embedding")
    head = Group("embedding", "rounded-lm-head", "rounded", "lm_head")
    tied = Group("embedding", "rounded-hash-lm-head", "rounded", "hash_lm_head")
    for dtype in FLOATS:
        for tables in (2, 3):
            name = f"tables-{tables}-{dtype}"
            embedding.add(
                name, "reals", hashed(embedding.draw(name), tables, dtype=dtype, reals=True), flags=[f.IMPORTANCE]
            )
            inputs = without_ids(tied.draw(name), tables=tables, dtype=dtype, reals=True)
            tied.add(name, "reals", {"x": tied.draw(name).reals("x", (2, 3), dtype), **inputs}, flags=[f.IMPORTANCE])
        draw = head.draw(dtype)
        head.add(dtype, "reals", {"x": draw.reals("x", (3, 7), dtype), "table": draw.reals("table", (5, 7), dtype)})
    inputs = hashed(embedding.draw("scale"), 3, reals=True)
    embedding.add(
        "scale-root",
        "times sqrt(C), as published three-table models have it",
        inputs,
        scale=float(np.sqrt(3)),
        flags=[f.SCALE_MISSING],
    )
    draw = head.draw("unlike")
    unlike = {"x": draw.reals("x", (3, 5)), "table": draw.reals("table", (4, 5))}
    unlike["x"] = np.ldexp(unlike["x"], [[-20], [0], [20]]).astype(np.float32)
    head.add("unlike-rows", "tokens of unlike magnitude", unlike, flags=[f.UNLIKE_ROWS])
    zero = {"x": draw.reals("xz", (3, 5)), "table": draw.reals("tz", (4, 5))}
    zero["x"][1] = 0
    head.add("zero-row", "a token of zeros", zero)
    head.add(
        "sizes",
        "sizes past a tile",
        {"x": draw.reals("xs", (17, 33)), "table": draw.reals("ts", (9, 33))},
        flags=[f.TAIL_ROWS, f.TAIL_COLUMNS],
    )
    yield embedding
    yield head
    yield tied


def strict_tables(
    draw: Draw, tables: int, vocabulary: int = 6, width: int = 5, indices: bool = True
) -> dict[str, Array]:
    """int8 tables with one scale per row, importance and, if wanted, explicit indices."""
    shape = hashed(draw, tables, vocabulary, width, indices=indices)
    result: dict[str, Array] = {}
    for i in range(tables):
        height = shape[f"tables.{i}"].shape[0]
        result[f"tables.{i}"] = draw.integers(f"codes.{i}", (height, width), -127, 127, "int8")
        result[f"scales.{i}"] = draw.positive(f"scales.{i}", (height,)) * np.float32(0.013)
    result["importance"] = draw.reals("importance", (vocabulary, tables), "float32", -1, 1) * np.float32(1.1)
    if indices:
        result["indices"] = shape["indices"]
    return result


def _strict() -> Iterator[Group]:
    plain = Group("embedding", "strict-embedding", "strict", "embedding.strict")
    for vocabulary, width in ((7, 3), (1, 1), (300, 5)):
        draw = plain.draw(f"{vocabulary}x{width}")
        inputs: dict[str, Array | Paint] = {
            "ids": ids_of([vocabulary - 1, 0, vocabulary // 2]),
            "codes": draw.integers("codes", (vocabulary, width), -127, 127, "int8"),
            "scale": draw.positive("scale", (vocabulary,)) * np.float32(0.013),
        }
        if vocabulary > 200:
            inputs["codes"] = Paint("int8", (vocabulary, width), 37, 5, 251, 125)
            inputs["scale"] = Paint("float32", (vocabulary,), 7919, 3, 8191, -1, -20)
        plain.add(f"{vocabulary}x{width}", "codes times the scale of their row", inputs, flags=[f.ROW_OFFSET])
    yield plain
    embedding = Group("embedding", "strict-hash-embedding", "strict", "hash_embedding.strict")
    for tables in (2, 3):
        for explicit in (True, False):
            name = f"tables-{tables}-{'indices' if explicit else 'default'}"
            inputs = {"ids": ids_of([5, 0, 3, 3]), **strict_tables(embedding.draw(name), tables, indices=explicit)}
            embedding.add(name, "summed from left to right", inputs, flags=[f.SUM_ORDER, f.IMPORTANCE])
            embedding.add(
                name + "-scale", "then times the scale", inputs, scale=float(np.sqrt(5)), flags=[f.SCALE_MISSING]
            )
    yield embedding
    head = Group("embedding", "strict-lm-head", "strict", "lm_head.strict")
    for tokens, vocabulary, width in ((1, 1, 1), (3, 5, 7), (17, 3, 4)):
        draw = head.draw(f"{tokens}x{vocabulary}x{width}")
        head.add(
            f"{tokens}x{vocabulary}x{width}",
            "quantised per token, two products",
            {
                "x": draw.reals("x", (tokens, width)) * np.float32(1.3),
                "codes": draw.integers("codes", (vocabulary, width), -127, 127, "int8"),
                "scale": draw.positive("scale", (vocabulary,)) * np.float32(0.013),
            },
            flags=[f.RECIPROCAL],
        )
    yield head
    tied = Group("embedding", "strict-hash-lm-head", "strict", "hash_lm_head.strict")
    for tables in (2, 3):
        for explicit in (True, False):
            name = f"tables-{tables}-{'indices' if explicit else 'default'}"
            draw = tied.draw(name)
            inputs = {"x": draw.reals("x", (2, 5)) * np.float32(1.3), **strict_tables(draw, tables, indices=explicit)}
            tied.add(
                name,
                "per table two products, then summed from left to right",
                inputs,
                flags=[f.SUM_ORDER, f.IMPORTANCE],
            )
    yield tied


def _invalid() -> Iterator[Group]:
    plain = Group("embedding", "invalid-embedding", "invalid", "embedding")
    table = filled((5, 2), 1.0)
    plain.add(
        "id-v", "an id from V up", {"ids": ids_of([0, 5]), "table": table}, error="RangeError", flags=[f.SILENT_DEFAULT]
    )
    plain.add(
        "id-negative",
        "negative ids do not count from the end",
        {"ids": ids_of([0, -1]), "table": table},
        error="RangeError",
        flags=[f.SILENT_DEFAULT],
    )
    plain.add("id-float", "ids are integers", {"ids": filled((2,), 1.0), "table": table}, error="DTypeError")
    plain.add(
        "table-rank", "a table has two axes", {"ids": ids_of([0]), "table": filled((5,), 1.0)}, error="ShapeError"
    )
    plain.add(
        "table-integer",
        "tables are float",
        {"ids": ids_of([0]), "table": filled((5, 2), 1, "int8")},
        error="DTypeError",
    )
    yield plain
    indices = Group("embedding", "invalid-hash-indices", "invalid", "hash_indices")
    for tables in (0, 1, 4):
        indices.add(
            f"tables-{tables}", "two or three tables", {"ids": ids_of([1])}, error="ParameterError", tables=tables
        )
    indices.add("id-float", "ids are integers", {"ids": filled((2,), 1.0)}, error="DTypeError", tables=2)
    yield indices
    embedding = Group("embedding", "invalid-hash-embedding", "invalid", "hash_embedding")
    good = hashed(embedding.draw("good"))
    wrong: list[tuple[str, str, dict[str, Array], str]] = [
        ("id", "an id from V up", {"ids": ids_of([6])}, "RangeError"),
        ("index", "an index past its table", {"indices": good["indices"] + 1}, "RangeError"),
        ("index-negative", "a negative index", {"indices": good["indices"] - 1}, "RangeError"),
        ("importance", "one importance per table", {"importance": filled((6, 3), 1.0)}, "ShapeError"),
        ("importance-shared", "importance is per id", {"importance": filled((1, 2), 1.0)}, "ShapeError"),
        ("width", "tables of different widths", {"tables.1": filled((3, 2), 1.0)}, "ShapeError"),
        ("indices-shape", "indices for every id", {"indices": good["indices"][:3]}, "ShapeError"),
        ("indices-float", "indices are integers", {"indices": filled((6, 2), 0.0)}, "DTypeError"),
    ]
    for case, comment, change, error in wrong:
        embedding.add(case, comment, {**good, **change}, error=error, flags=[f.SILENT_DEFAULT])
    yield embedding
    head = Group("embedding", "invalid-lm-head", "invalid", "lm_head")
    head.add(
        "width", "x has other features than the table", {"x": filled((2, 3), 1.0), "table": table}, error="ShapeError"
    )
    head.add("x-integer", "x is float", {"x": filled((2, 2), 1, "int8"), "table": table}, error="DTypeError")
    yield head
    tied = Group("embedding", "invalid-hash-lm-head", "invalid", "hash_lm_head")
    parts = {name: array for name, array in good.items() if name != "ids"}
    tied.add("width", "x has other features than the tables", {"x": filled((2, 4), 1.0), **parts}, error="ShapeError")
    tied.add(
        "index",
        "an index past its table",
        {"x": filled((2, 3), 1.0), **parts, "indices": good["indices"] + 1},
        error="RangeError",
    )
    yield tied
    strict = Group("embedding", "invalid-strict", "invalid", "embedding.strict")
    sound = {"ids": ids_of([0]), "codes": filled((5, 2), 3, "int8"), "scale": filled((5,), 1.0)}
    strict.add("id", "an id from V up", {**sound, "ids": ids_of([5])}, error="RangeError")
    strict.add(
        "scale", "one scale per row", {**sound, "scale": filled((1,), 1.0)}, error="ShapeError", flags=[f.BROADCAST]
    )
    strict.add("codes", "codes are int8", {**sound, "codes": table}, error="DTypeError")
    yield strict
    head_strict = Group("embedding", "invalid-lm-head-strict", "invalid", "lm_head.strict")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        head_strict.add(
            name,
            "strict arithmetic needs finite rows",
            {
                "x": listed([[1.0, value]]),
                "codes": sound["codes"],
                "scale": sound["scale"],
            },
            error="NonFiniteError",
        )
    yield head_strict
