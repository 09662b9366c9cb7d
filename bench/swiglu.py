"""SwiGLU against two PyTorch calls.

h = silu(gate) * up         [M, F]; memory-bound: 12 bytes per element in float32
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Setting
from walsh.measure.kernels import without_triton
from walsh.measure.rowwise import rowwise


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, f = (512, 1368) if setting.quick else (4096, 2736)
    yield rowwise(
        setting,
        "swiglu",
        "forward",
        {"M": m, "F": f},
        work.elementwise(m * f, 5, 12),
        {"gate": (m, f), "up": (m, f)},
        reference.swiglu,
        lambda gate, up: torch.nn.functional.silu(gate) * up,
        "swiglu",
        lambda function, i: function(i["gate"], i["up"]),
    )
    yield from without_triton(setting, "swiglu/*")
