"""Vectors of *sampling*: the uniform number of a position, and the token that is drawn. All to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from walsh import reference
from walsh.errors import VectorError
from walsh.suite.generate import flags as f
from walsh.suite.generate.build import Flag, Group
from walsh.suite.generate.numbers import Draw, filled, listed
from walsh.suite.tensors import Array


def groups() -> Iterator[Group]:
    """All vector files of this op."""
    yield _uniform()
    yield _greedy()
    yield _sampled()
    yield _filtered()
    yield _penalised()
    yield from _invalid()


def _of(values: object, dtype: str = "int64") -> Array:
    return np.array(values, dtype=dtype)


def _uniform() -> Group:
    group = Group("sampling", "exact-uniform", "exact", "uniform")
    seeds = [0, 1, 2, 42, 2**31, 2**32, 2**53 + 1, 2**63 - 1]
    group.add(
        "seeds",
        "seeds up to 2^63 - 1 at position 0",
        {"seed": _of(seeds), "position": _of([0] * 8)},
        flags=[f.SEED_64, f.SMOKE],
        unproven=True,
    )
    group.add(
        "negative",
        "negative seeds are taken modulo 2^64",
        {"seed": _of([-1, -2, -(2**63)]), "position": _of([0, 1, 2])},
        flags=[f.SEED_64],
        unproven=True,
    )
    group.add(
        "unsigned",
        "seeds past 2^63",
        {"seed": _of([2**64 - 1, 2**63, 2**63 + 5], "uint64"), "position": _of([3, 4, 5])},
        flags=[f.SEED_64],
        unproven=True,
    )
    positions = [0, 1, 2, 3, 100, 4095, 4096, 2**31, 2**32, 2**40]
    group.add(
        "positions",
        "positions past 2^32",
        {"seed": _of([7] * 10), "position": _of(positions)},
        flags=[f.SEED_64],
        unproven=True,
    )
    group.add("many", "a sequence of draws", {"seed": _of([12345] * 64), "position": np.arange(64)}, unproven=True)
    group.add("scalar", "one seed and one position", {"seed": _of(9), "position": _of(10)}, unproven=True)
    return group


def _batch(batch: int) -> dict[str, Array]:
    """Seeds and positions that differ between sequences."""
    return {"seed": np.arange(batch, dtype=np.int64) * 1000003 + 17, "position": np.arange(batch, dtype=np.int64) * 3}


def _greedy() -> Group:
    group = Group("sampling", "strict-greedy", "strict", "sample", {"temperature": 0.0})
    draw = group.draw("reals")
    group.add("reals", "the argmax", {"logits": draw.reals("logits", (4, 9))}, flags=[f.TOP_EDGES, f.SMOKE])
    ties = listed([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -2.0, -1.0]])
    group.add("ties", "the lowest id of equal logits", {"logits": ties}, flags=[f.LOWEST_ID])
    group.add(
        "zeros",
        "+0 and -0 are equal",
        {"logits": listed([[-0.0, 0.0], [0.0, -0.0], [-1.0, -0.0]])},
        flags=[f.LOWEST_ID, f.NEGATIVE_ZERO],
    )
    group.add("one-id", "V = 1", {"logits": listed([[3.0], [-5.0]])})
    group.add("last", "the last id of 130", {"logits": np.eye(1, 130, 129, dtype=np.float32)}, flags=[f.TAIL_COLUMNS])
    near = np.array([[1.0, np.nextafter(np.float32(1), np.float32(2)), 1.0]], dtype=np.float32)
    group.add("one-ulp", "one unit in the last place ahead", {"logits": near})
    group.add(
        "filters",
        "top_k and top_p do not matter",
        {"logits": draw.reals("l2", (2, 5))},
        top_k=1,
        top_p=0.01,
        flags=[f.TOP_EDGES],
    )
    group.add("no-sequences", "B = 0", {"logits": filled((0, 4), 0.0)}, flags=[f.EMPTY_BATCH])
    return group


def _sampled() -> Group:
    group = Group("sampling", "strict-sample", "strict", "sample")
    for vocabulary in (1, 2, 7, 33, 64, 130):
        name = f"v{vocabulary}"
        logits = group.draw(name).reals("logits", (6, vocabulary), "float32", -3, 1)
        group.add(
            name,
            "plain sampling from every sequence's own stream",
            {"logits": logits, **_batch(6)},
            flags=[f.SEED_64, f.SUM_ORDER],
        )
    for temperature in (0.1, 0.7, 1.5, 100.0):
        logits = group.draw(f"t{temperature}").reals("logits", (5, 11), "float32", -2, 2)
        group.add(
            f"temperature-{temperature:g}",
            "logits divided by the temperature",
            {"logits": logits, **_batch(5)},
            temperature=temperature,
            flags=[f.RECIPROCAL],
        )
    same = np.tile(group.draw("same").reals("logits", (1, 9)), (8, 1))
    group.add(
        "seeds",
        "the same logits, eight seeds",
        {
            "logits": same,
            "seed": _of([0, 1, 2, 2**32, 2**63 - 1, -1, -5, 99]),
            "position": _of([0] * 8),
        },
        flags=[f.SEED_64],
    )
    group.add(
        "positions",
        "the same logits, eight positions",
        {"logits": same, "seed": _of(3), "position": np.arange(8) * 1000},
        flags=[f.SEED_64],
    )
    ties = filled((6, 5), 0.25)
    group.add("ties", "equal logits are sorted by id", {"logits": ties, **_batch(6)}, flags=[f.LOWEST_ID])
    group.add(
        "on-the-border",
        "a cumulative probability that equals the threshold is passed over: uniform(seed, 0) is one half",
        {"logits": filled((2, 4), 0.25), "seed": _of([0x2FEDF1EFCE1D5545] * 2), "position": _of([0, 1])},
        flags=[f.THRESHOLD, f.SEED_64],
    )
    steep = listed([[0.0, -200.0, -1000.0], [-90.0, 0.0, -86.0]])
    group.add("vanishing", "probabilities that are +0", {"logits": steep, **_batch(2)}, flags=[f.SUBNORMAL])
    return group


def _on_the_edge(draw: Draw) -> tuple[Array, float, int]:
    """Logits [1, 9], a top_p and a seed at which a sum of e over sorted places instead of ids draws another token.

    The token drawn is the last that is kept; with the other sum its cumulative probability is one unit below top_p, so
    one more is kept and the draw falls on that.
    """
    strict = reference.strict
    for number in range(1000):
        logits = Draw(f"{draw.label}#{number}").reals("logits", (1, 9), "float32", -2, 0)
        order = np.argsort(-logits[0], kind="stable")
        e = strict.exp(logits[0] - logits[0, order[0]])
        cums = [np.cumsum((e / total)[order], dtype=np.float32) for total in (strict.hsum(e), strict.hsum(e[order]))]
        lower = np.flatnonzero(cums[1] < cums[0])
        lower = lower[lower < 7]
        if not lower.size:
            continue
        last = int(lower[-1])
        top_p = float(cums[0][last])
        for seed in range(64):
            if strict.uniform(seed, 0) * cums[1][last + 1] >= cums[1][last]:
                return logits, top_p, seed
    raise VectorError("sampling: no logits at which the order of the sum shows; draw more of them")


def _filtered() -> Group:
    group = Group("sampling", "strict-filters", "strict", "sample")
    logits = group.draw("logits").reals("logits", (8, 9), "float32", -2, 1)
    inputs = {"logits": logits, **_batch(8)}
    for top_k in (0, 1, 2, 5, 9, 10, 1000):
        group.add(f"top-k-{top_k}", "0 and more than V mean all", inputs, top_k=top_k, flags=[f.TOP_EDGES])
    for top_p in (1e-6, 0.1, 0.5, 0.9, 0.999999, 1.0):
        group.add(
            f"top-p-{top_p:g}",
            "the shortest prefix that reaches it",
            inputs,
            top_p=top_p,
            flags=[f.TOP_EDGES, f.SUM_ORDER],
        )
    group.add(
        "both",
        "top_k first, then top_p of what is left, renormalised",
        inputs,
        top_k=4,
        top_p=0.7,
        temperature=0.8,
        flags=[f.TOP_EDGES],
    )
    edge, top_p, seed = _on_the_edge(group.draw("edge"))
    group.add(
        "sum-over-ids",
        "top_p is a cumulative probability to the bit, and the sum in another order misses it: one id more is kept",
        {"logits": edge, "seed": _of([seed]), "position": _of([0])},
        top_p=top_p,
        flags=[f.TOP_EDGES, f.SUM_ORDER],
    )
    quarter = {"logits": filled((6, 4), 1.0), **_batch(6)}
    for top_p in (0.25, 0.5, 0.75):
        group.add(
            f"exact-p-{top_p:g}",
            "the cumulative sum equals top_p exactly: it is reached",
            quarter,
            top_p=top_p,
            flags=[f.TOP_EDGES, f.THRESHOLD],
        )
    tied = {"logits": listed([[2.0, 1.0, 1.0, 1.0, 1.0]] * 5), **_batch(5)}
    group.add(
        "ties-at-k",
        "of equal logits at the edge the lowest ids are kept",
        tied,
        top_k=3,
        flags=[f.LOWEST_ID, f.TOP_EDGES],
    )
    return group


def _penalised() -> Group:
    group = Group("sampling", "strict-penalty", "strict", "sample", {"repetition_penalty": 1.5})
    logits = listed([[3.0, 2.5, 1.0], [-1.0, -1.2, -3.0], [2.0, 1.9, 0.0]])
    cases: list[tuple[str, str, Any, dict[str, Any], list[Flag]]] = [
        ("once", "the best id loses its lead", [[0], [0], [0]], {}, []),
        ("duplicates", "an id three times is penalised once", [[0, 0, 0], [0, 0, 0], [0, 0, 1]], {}, [f.PENALTY_TWICE]),
        ("unused", "-1 is no id", [[-1, -1], [0, -1], [-1, 2]], {}, [f.PENALTY_TWICE]),
        ("empty", "no history", np.zeros((3, 0), dtype=np.int64), {}, [f.EMPTY_BATCH]),
        (
            "reward",
            "a penalty below 1 rewards",
            [[2, 2], [2, 1], [2, 0]],
            {"repetition_penalty": 0.25},
            [f.PENALTY_TWICE],
        ),
    ]
    for name, comment, history, params, marks in cases:
        for temperature in (0.0, 0.9):
            inputs = {"logits": logits, "history": _of(history), **_batch(3)}
            if temperature == 0:
                inputs = {"logits": logits, "history": _of(history)}
            group.add(
                f"{name}-{'greedy' if temperature == 0 else 'sampled'}",
                comment,
                inputs,
                flags=marks,
                temperature=temperature,
                **params,
            )
    wide = group.draw("wide").reals("logits", (4, 17), "float32", -2, 1)
    history = group.draw("wide").integers("history", (4, 9), -1, 16)
    group.add(
        "everything",
        "penalty, temperature, top_k and top_p together",
        {"logits": wide, "history": history, **_batch(4)},
        temperature=0.8,
        top_k=10,
        top_p=0.9,
        flags=[f.PENALTY_TWICE, f.TOP_EDGES],
    )
    return group


def _invalid() -> Iterator[Group]:
    group = Group("sampling", "invalid", "invalid", "sample")
    good = {"logits": filled((2, 3), 1.0)}
    params: list[tuple[str, str, dict[str, Any]]] = [
        ("temperature", "negative", {"temperature": -0.5}),
        ("temperature-nan", "NaN", {"temperature": "nan"}),
        ("top-k", "negative", {"top_k": -1}),
        ("top-p-0", "nothing would be kept", {"top_p": 0.0}),
        ("top-p-2", "above 1", {"top_p": 1.5}),
        ("top-p-nan", "NaN", {"top_p": "nan"}),
        ("penalty-0", "division by zero", {"repetition_penalty": 0.0}),
        ("penalty-negative", "negative", {"repetition_penalty": -1.0}),
        ("penalty-nan", "NaN", {"repetition_penalty": "nan"}),
    ]
    for name, comment, change in params:
        group.add(name, comment, good, error="ParameterError", flags=[f.SILENT_DEFAULT], **change)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        group.add(
            f"logits-{name}",
            "logits are finite",
            {"logits": listed([[0.0, value]])},
            error="NonFiniteError",
            flags=[f.NAN_ROW],
        )
    group.add("history-v", "an id from V up", {**good, "history": _of([[0], [3]])}, error="RangeError")
    group.add(
        "history-rows",
        "a history for each sequence",
        {**good, "history": _of([[0]])},
        error="ShapeError",
        flags=[f.BROADCAST],
    )
    group.add("float64", "logits are float32", {"logits": filled((2, 3), 1.0, "float64")}, error="DTypeError")
    group.add("rank", "logits are [B, V]", {"logits": filled((3,), 1.0)}, error="ShapeError")
    yield group
