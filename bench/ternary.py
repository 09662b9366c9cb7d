"""Rounding weights to {-1, 0, 1}, against the same in a few PyTorch calls; and packing four to a byte.

gamma = mean(abs(w)) + 1e-8,  q = clip(rint(w / gamma), -1, 1)         two readings of w, one writing
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting
from walsh.measure.checks import codes, exact_check, normal, to_double
from walsh.measure.kernels import own, without_triton

THRESHOLD_SHARE = 1e-5
"""Weights may lie so close to a threshold that the mean's last bits decide: this share of them may differ."""


def plain(w: Tensor) -> tuple[Tensor, Tensor]:
    gamma = w.abs().mean() + 1e-8
    return (w / gamma).round().clamp(-1, 1).to(torch.int8), gamma


def check(inputs: Inputs, output: tuple[Tensor, Tensor], _: int) -> float:
    q, gamma = reference.ternary(to_double(inputs["w"]))
    differ = float(np.mean(output[0].cpu().numpy() != q)) / THRESHOLD_SHARE
    return max(differ, abs(float(output[1]) / float(gamma) - 1) / 1e-5)


def table_packing(q: Tensor) -> Tensor:
    """The same bytes by shifts and sums over [..., 4]."""
    shifted = (q + 1).to(torch.uint8).view(*q.shape[:-1], -1, 4) << torch.arange(0, 8, 2, device=q.device)
    return shifted.sum(-1).to(torch.uint8)


def cases(setting: Setting) -> Iterable[Case | Absent]:
    n, k = (128, 128) if setting.quick else (512, 512)
    weights = 8 * n * k
    yield Case(
        op="ternary",
        name=f"ternary/absmean/P{weights}/float32",
        shape={"P": weights},
        dtype="float32",
        work=work.ternary(weights),
        fresh=lambda seed: {"w": normal(seed, setting, 8, n, k)},
        check=check,
        providers=(Provider("PyTorch", lambda i: plain(i["w"])), *own(setting, "ternary", lambda f, i: f(i["w"]))),
    )
    yield Case(
        op="ternary",
        name=f"ternary/pack/P{weights}/int8",
        shape={"P": weights},
        dtype="int8",
        work=work.elementwise(weights, 0, 1.25, "int8"),
        fresh=lambda seed: {"q": codes(seed, setting, 8, n, k)},
        check=exact_check(lambda i: reference.pack_ternary(i["q"].cpu().numpy())),
        providers=(
            Provider("shifts and sums", lambda i: table_packing(i["q"])),
            *own(setting, "pack_ternary", lambda f, i: f(i["q"])),
        ),
    )
    yield from without_triton(setting, "ternary/*")
