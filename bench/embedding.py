"""Embeddings and heads: rows of one table, of two small hashed tables, and the tied head at batch 1.

e(t) = sum_i importance[t, i] E_i[h_i(t)]                        ids [M], e [M, C]
logits = x table^T                                               x [1, C]: the whole table is read for one token
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Check, Inputs, Provider, Setting
from walsh.measure.checks import TOLERANCES, draw_rows, generator, normal, row_check, share, to_double
from walsh.measure.kernels import own, without_triton


def draw_ids(seed: int, setting: Setting, tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (tokens,), generator=generator(seed, setting), device=setting.device)


def rows_of(setting: Setting, m: int, v: int, c: int) -> Case:
    table = normal(1, setting, v, c)
    return Case(
        op="embedding",
        name=f"embedding/rows/M{m}-V{v}-C{c}/float32",
        shape={"M": m, "V": v, "C": c},
        dtype="float32",
        work=work.elementwise(m * c, 0, 8),
        fresh=lambda seed: {"ids": draw_ids(seed, setting, m, v)},
        check=ids_check(lambda ids: reference.embedding(ids, to_double(table))),
        providers=(
            Provider("PyTorch", lambda i: torch.nn.functional.embedding(i["ids"], table)),
            *own(setting, "embedding", lambda f, i: f(i["ids"], table)),
        ),
    )


def hashed(setting: Setting, m: int, v: int, c: int) -> Case:
    tables = [normal(1, setting, 1021, c), normal(2, setting, (v - 1) // 1021 + 1, c)]
    importance = normal(3, setting, v, 2)
    indices = torch.from_numpy(reference.hash_indices(torch.arange(v).numpy(), 2)).to(setting.device)
    wide = [to_double(table) for table in tables]

    def plain(ids: Tensor) -> Tensor:
        chosen, weights = indices[ids], importance[ids]
        first, second = (weights[:, i, None] * tables[i][chosen[:, i]] for i in range(2))
        return first + second

    return Case(
        op="embedding",
        name=f"embedding/hash/M{m}-V{v}-C{c}/float32",
        shape={"M": m, "V": v, "C": c},
        dtype="float32",
        work=work.elementwise(m * c, 4, 12),
        fresh=lambda seed: {"ids": draw_ids(seed, setting, m, v)},
        check=ids_check(lambda ids: reference.hash_embedding(ids, wide, to_double(importance))),
        providers=(
            Provider("PyTorch", lambda i: plain(i["ids"])),
            *own(setting, "hash_embedding", lambda f, i: f(i["ids"], tables, importance)),
        ),
    )


def ids_check(definition: Callable[..., Any]) -> Check:
    """Rows of the output by their ids."""

    def check(inputs: Inputs, output: Tensor, seed: int) -> float:
        rows = draw_rows(seed, output.shape[0])
        return share(output[rows], definition(inputs["ids"][rows].cpu().numpy()), TOLERANCES["float32"])

    return check


def head(setting: Setting, m: int, v: int, c: int) -> Case:
    table = normal(1, setting, v, c)
    wide = to_double(table)
    return Case(
        op="embedding",
        name=f"embedding/head/M{m}-V{v}-C{c}/float32",
        shape={"M": m, "V": v, "C": c},
        dtype="float32",
        work=work.dense_linear(m, c, v, "float32"),
        fresh=lambda seed: {"x": normal(seed, setting, m, c)},
        check=row_check(["x"], lambda x: reference.lm_head(x, wide), TOLERANCES["float32"]),
        providers=(
            Provider("dense GEMM", lambda i: i["x"] @ table.t()),
            *own(setting, "lm_head", lambda f, i: f(i["x"], table)),
        ),
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, v, c = (1024, 8192, 256) if setting.quick else (8192, 50257, 512)
    yield rows_of(setting, m, v, c)
    yield hashed(setting, m, v, c)
    yield head(setting, 1, v, c)
    yield from without_triton(setting, "embedding/*")
