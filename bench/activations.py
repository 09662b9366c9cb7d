"""Rounding activations to int8 with one scale per token, against the same in a few PyTorch calls.

scale = 127 / max(absmax(x), 1e-5),  a = clip(rint(x * scale), -128, 127)        x [M, C] -> int8; memory-bound
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting
from walsh.measure.checks import draw_rows, normal, share, to_double
from walsh.measure.kernels import own, without_triton


def plain(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127).to(torch.int8), scale


def check(inputs: Inputs, output: tuple[Tensor, Tensor], seed: int) -> float:
    """Codes within one step, since float32 may round a tie of float64 the other way; scales to 1e-6."""
    a, scale = output
    rows = draw_rows(seed, a.shape[0], 8)
    codes, scales = reference.quantize_activations(to_double(inputs["x"][rows]))
    step = float(np.abs(to_double(a[rows]) - codes).max()) if a.shape == inputs["x"].shape else float("nan")
    return max(step, share(scale[rows], scales, 1e-6))


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, c = (1024, 512) if setting.quick else (8192, 1024)
    yield Case(
        op="activations",
        name=f"activations/quantize/M{m}-C{c}/float32",
        shape={"M": m, "C": c},
        dtype="float32",
        work=work.elementwise(m * c, 4, 5),
        fresh=lambda seed: {"x": normal(seed, setting, m, c)},
        check=check,
        providers=(
            Provider("PyTorch", lambda i: plain(i["x"])),
            *own(setting, "quantize_activations", lambda f, i: f(i["x"])),
        ),
    )
    yield from without_triton(setting, "activations/*")
