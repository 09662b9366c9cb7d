"""Appending one token to a key-value cache, against ``torch.cat`` of everything so far.

keys[b, length_b] = k[b], values likewise          a static buffer moves 4 B H d floats, concatenation the whole cache
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import normal, to_double
from walsh.measure.kernels import packages, without_triton


def cases(setting: Setting) -> Iterable[Case | Absent]:
    b, s, h, d = (1, 256, 8, 64) if setting.quick else (8, 1024, 8, 64)
    old = {name: normal(i, setting, b, s, h, d) for i, name in enumerate("kv")}
    last = [to_double(old[name][:, -1]) for name in "kv"]

    def appended(cache: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
        cache.truncate(filled)
        cache.append(inputs["k"], inputs["v"])
        return cache.keys, cache.values

    def check(inputs: Inputs, output: tuple[Tensor, Tensor], _: int) -> float:
        same = all(
            bool((to_double(found[:, s]) == to_double(inputs[name][:, 0])).all())
            and bool((to_double(found[:, s - 1]) == before).all())
            for found, name, before in zip(output, "kv", last, strict=True)
        )
        return 0.0 if same else float("inf")

    filled = torch.full((b,), s, dtype=torch.int64)
    providers = [Provider("torch.cat", lambda i: tuple(torch.cat([old[name], i[name]], 1) for name in "kv"))]
    for package in packages(setting):
        cache = package.module.KVCache(b, s + 1, h, d, device=setting.device)
        cache.append(old["k"], old["v"])
        run = lambda i, c=cache: appended(c, i)  # noqa: E731  # one of a family that differs in the cache
        providers.append(Provider(package.label, run, package.backend, exact_counts=package.backend == "torch"))
    yield Case(
        op="kv_cache",
        name=f"kv_cache/append/B{b}-S{s}-H{h}-d{d}/float32",
        shape={"B": b, "S": s, "H": h, "d": d},
        dtype="float32",
        work=Work(0, 4.0 * b * h * d * 4),
        fresh=lambda seed: {"k": normal(seed, setting, b, 1, h, d), "v": normal(seed + 1, setting, b, 1, h, d)},
        check=check,
        providers=tuple(providers),
    )
    yield from without_triton(setting, "kv_cache/*")
