"""Vectors of *kv_cache*: scripts of append, truncate, reset, fork and attend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from walsh.suite.catalog import CALLS
from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Bounded, Flag, Group
from walsh.suite.generate.evaluate import attended, evaluate
from walsh.suite.generate.numbers import Draw, filled
from walsh.suite.generate.propagation import BOUNDS
from walsh.suite.tensors import Array

Script = list[list[Any]]


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _exact()
    yield _rounded()
    yield _strict()
    yield from _invalid()


def tensors_of(
    draw: Draw, batch: int, heads: int, width: int, dtype: str = "float32", **tokens: int
) -> dict[str, Array]:
    """k, v and q for every key with its number of tokens; no two rows are alike."""
    return {
        f"{side}.{key}": draw.reals(f"{side}.{key}", (batch, count, heads, width), dtype)
        for key, count in tokens.items()
        for side in "kvq"
    }


def _used(inputs: Mapping[str, Array], script: Script) -> dict[str, Array]:
    """Only what the script names: an input without effect would be a mistake."""
    wanted = {f"{side}.{step[1]}" for step in script if step[0] == "append" for side in "kv"}
    wanted |= {f"q.{step[1]}" for step in script if step[0] == "attend"}
    return {name: array for name, array in inputs.items() if name in wanted}


COPIES: list[tuple[str, str, Script, list[Flag | str]]] = [
    ("append", "one append", [["append", "a", None]], [f.SMOKE]),
    (
        "split",
        "two appends, the second after the first",
        [["append", "a", None], ["append", "b", None]],
        [f.CACHE_SPLIT],
    ),
    (
        "counts",
        "sequences gain different numbers of tokens",
        [["append", "a", [3, 1]], ["append", "b", [0, 2]]],
        [f.CACHE_ROW_0],
    ),
    ("count-0", "an append that adds nothing", [["append", "a", [2, 3]], ["append", "b", [0, 0]]], [f.CACHE_SPLIT]),
    (
        "truncate",
        "truncated, then appended over the old slots",
        [["append", "a", None], ["truncate", [1, 2]], ["append", "b", None]],
        [f.CACHE_STALE],
    ),
    (
        "truncate-0",
        "truncated to nothing",
        [["append", "a", None], ["truncate", [0, 3]], ["append", "b", [1, 2]]],
        [f.CACHE_STALE],
    ),
    (
        "reset-all",
        "all sequences forgotten",
        [["append", "a", None], ["reset", None], ["append", "b", None]],
        [f.CACHE_STALE],
    ),
    (
        "reset-one",
        "one sequence forgotten",
        [["append", "a", None], ["reset", [1]], ["append", "b", None]],
        [f.CACHE_STALE],
    ),
    (
        "fork-swap",
        "sequences exchanged",
        [["append", "a", [3, 2]], ["fork", [1, 0]], ["append", "b", None]],
        [f.CACHE_ROW_0],
    ),
    (
        "fork-copy",
        "two copies of one sequence go separate ways",
        [["append", "a", [1, 3]], ["fork", [1, 1]], ["append", "b", [1, 2]]],
        [f.CACHE_ALIAS],
    ),
    ("full", "exactly up to the capacity", [["append", "a", None], ["append", "b", None], ["append", "c", [1, 1]]], []),
    (
        "one-by-one",
        "token after token",
        [["append", "c", None], ["append", "d", None], ["append", "e", None]],
        [f.CACHE_SPLIT],
    ),
]


def _exact() -> Group:
    group = Group("kv_cache", "exact", "exact", "kv_cache", {"capacity": 6})
    for name, comment, script, marks in COPIES:
        inputs = tensors_of(group.draw(name), 2, 2, 2, a=3, b=2, c=1, d=1, e=1)
        group.add(name, comment, _used(inputs, script), flags=marks, script=script, unproven=True)
    for dtype in ("float64", "bfloat16", "float16"):
        ragged: Script = [["append", "a", [2, 3]], ["append", "b", None]]
        inputs = tensors_of(group.draw(dtype), 2, 1, 2, dtype, a=3, b=2)
        group.add(
            f"dtype-{dtype}", "what is stored is what was given", _used(inputs, ragged), script=ragged, unproven=True
        )
    copied = tensors_of(group.draw("zeros"), 1, 1, 2, a=2)
    copied["k.a"][0, 0, 0, 0], copied["v.a"][0, 1, 0, 1] = -0.0, np.nan
    script = [["append", "a", None]]
    group.add(
        "special",
        "-0 and NaN are copied like any number",
        _used(copied, script),
        script=script,
        unproven=True,
        flags=[f.NEGATIVE_ZERO, f.NAN_ROW],
    )
    script = [["append", "a", None], ["fork", [2, 0, 1, 2]], ["append", "b", [1, 0, 1, 0]]]
    three = tensors_of(group.draw("three"), 3, 1, 2, a=2)
    four = tensors_of(group.draw("four"), 4, 1, 2, b=1)
    group.add(
        "fork-wider",
        "a fork may have more sequences than its origin",
        _used({**three, **four}, script),
        script=script,
        unproven=True,
        flags=[f.CACHE_ALIAS],
    )
    script = [["append", "a", None]]
    group.add(
        "no-tokens",
        "an append of no tokens",
        _used(tensors_of(group.draw("none"), 2, 1, 2, a=0), script),
        script=script,
        unproven=True,
        flags=[f.EMPTY_BATCH],
    )
    return group


ATTENDED: list[tuple[str, str, Script, list[Flag]]] = [
    ("one-pass", "append and attend", [["append", "a", None], ["attend", "a"]], [f.FUTURE]),
    (
        "split",
        "the same in two parts",
        [["append", "a", None], ["attend", "a"], ["append", "b", None], ["attend", "b"]],
        [f.CACHE_SPLIT],
    ),
    (
        "counts",
        "padded tokens attend to nothing",
        [["append", "a", [3, 1]], ["attend", "a"], ["append", "b", [1, 2]], ["attend", "b"]],
        [f.CACHE_ROW_0, f.PADDING],
    ),
    (
        "truncate",
        "stale slots are not seen",
        [["append", "a", None], ["truncate", [1, 0]], ["append", "b", None], ["attend", "b"]],
        [f.CACHE_STALE],
    ),
    (
        "reset",
        "a new sequence in an old slot",
        [["append", "a", None], ["reset", [0]], ["append", "b", [2, 1]], ["attend", "b"]],
        [f.CACHE_STALE],
    ),
    (
        "fork",
        "a fork attends to its own past",
        [["append", "a", [2, 3]], ["fork", [1, 1]], ["append", "b", [1, 2]], ["attend", "b"]],
        [f.CACHE_ALIAS],
    ),
    (
        "one-by-one",
        "generation: one token at a time",
        [
            ["append", "c", None],
            ["attend", "c"],
            ["append", "d", None],
            ["attend", "d"],
            ["append", "e", None],
            ["attend", "e"],
        ],
        [f.CACHE_SPLIT],
    ),
]


def _rounded() -> Group:
    group = Group("kv_cache", "rounded", "rounded", "kv_cache", {"capacity": 6})
    for dtype in ("float32", "float64", "bfloat16"):
        for name, comment, script, marks in ATTENDED:
            if dtype != "float32" and name not in ("split", "counts"):
                continue
            inputs = _used(tensors_of(group.draw(name + dtype), 2, 2, 2, dtype, a=3, b=2, c=1, d=1, e=1), script)
            group.add(
                f"{name}-{dtype}", comment, inputs, flags=marks, bounded=_bounds(inputs, script, 6), script=script
            )
    return group


def _bounds(inputs: Mapping[str, Array], script: Script, capacity: int) -> dict[str, Bounded]:
    """Each attend has attention's own bound at the state of its moment; stored values have none to spare."""
    outputs = evaluate(CALLS["kv_cache"], {"script": script, "capacity": capacity}, inputs)
    bounded = {}
    for key, arguments in attended(script, capacity, inputs).items():
        magnitude, terms = BOUNDS["attention"](arguments, {})["o"]
        bounded[f"o.{key}"] = Bounded(outputs[f"o.{key}"], magnitude, terms)
    for name in ("keys", "values"):
        bounded[name] = Bounded(outputs[name], np.zeros(()), 0)
    return bounded


def _strict() -> Group:
    group = Group("kv_cache", "strict", "strict", "kv_cache.strict", {"capacity": 6})
    for name, comment, script, marks in ATTENDED:
        inputs = _used(tensors_of(group.draw(name), 2, 2, 2, a=3, b=2, c=1, d=1, e=1), script)
        group.add(name, comment, inputs, flags=marks, script=script)
    script = [["append", "a", None], ["attend", "a"], ["append", "b", None], ["attend", "b"]]
    long = _used(tensors_of(group.draw("long"), 1, 1, 2, a=30, b=7), script)
    group.add(
        "blocks",
        "an append that crosses a block of 32 positions",
        long,
        flags=[f.SUM_ORDER, f.CACHE_SPLIT],
        script=script,
        capacity=40,
    )
    return group


def _invalid() -> Iterator[Group]:
    for call in ("kv_cache", "kv_cache.strict"):
        group = Group("kv_cache", "invalid" + call[8:].replace(".", "-"), "invalid", call, {"capacity": 4})
        cases: list[tuple[str, str, Script, str]] = [
            ("capacity", "a token too many", [["append", "a", None], ["append", "b", None]], "CapacityError"),
            (
                "capacity-one",
                "a token too many in one sequence only",
                [["append", "a", [3, 2]], ["append", "b", [2, 2]]],
                "CapacityError",
            ),
            ("truncate-longer", "longer than it is", [["append", "a", [2, 3]], ["truncate", [3, 3]]], "RangeError"),
            ("truncate-negative", "a negative length", [["append", "a", None], ["truncate", [-1, 0]]], "RangeError"),
            ("reset-row", "no such sequence", [["append", "a", None], ["reset", [2]]], "RangeError"),
            ("fork-row", "no such sequence", [["append", "a", None], ["fork", [0, -1]]], "RangeError"),
            ("counts-more", "more tokens than there are", [["append", "a", [4, 1]]], "RangeError"),
            ("counts-length", "a count for each sequence", [["append", "a", [1]]], "ShapeError"),
            (
                "attend-past-length",
                "positions that one sequence no longer has",
                [["append", "a", None], ["truncate", [3, 2]], ["attend", "a"]],
                "RangeError",
            ),
        ]
        for name, comment, script, error in cases:
            inputs = _used(tensors_of(group.draw(name), 2, 1, 2, a=3, b=2), script)
            group.add(name, comment, inputs, error=error, script=script, flags=[f.SILENT_DEFAULT])
        wrong = tensors_of(group.draw("wrong"), 2, 1, 2, a=3)
        wrong["v.a"] = filled((2, 3, 1, 3), 1.0)
        script = [["append", "a", None]]
        group.add(
            "shapes", "v has another head dimension than k", _used(wrong, script), error="ShapeError", script=script
        )
        yield group
