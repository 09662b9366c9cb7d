"""RMSNorm against PyTorch's own.

y = x / sqrt(mean(x^2) + eps) * weight         x [M, C]; memory-bound: 8 bytes per element in float32
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Setting
from walsh.measure.checks import normal, to_double
from walsh.measure.kernels import without_triton
from walsh.measure.rowwise import rowwise


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, c = (1024, 512) if setting.quick else (8192, 1024)
    weight = normal(1, setting, c)
    wide = to_double(weight)
    yield rowwise(
        setting,
        "rms_norm",
        "forward",
        {"M": m, "C": c},
        work.elementwise(m * c, 4, 8),
        {"x": (m, c)},
        lambda x: reference.rms_norm(x, wide),
        lambda x: torch.nn.functional.rms_norm(x, (c,), weight, 1e-6),
        "rms_norm",
        lambda f, i: f(i["x"], weight),
    )
    yield from without_triton(setting, "rms_norm/*")
