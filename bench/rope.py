"""Rotary positions against complex multiplication with a table, as published code has it.

y_{2i} = x_{2i} cos - x_{2i+1} sin,  y_{2i+1} = x_{2i} sin + x_{2i+1} cos        x [B, T, H, d]; memory-bound
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting
from walsh.measure.checks import TOLERANCES, draw_rows, normal, share, to_double
from walsh.measure.kernels import own, without_triton


def cases(setting: Setting) -> Iterable[Case | Absent]:
    b, t, h, d = (4, 256, 8, 64) if setting.quick else (8, 1024, 8, 64)
    frequency = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64, device=setting.device) / d)
    angles = torch.arange(t, device=setting.device)[:, None] * frequency
    table = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]

    def plain(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.view(b, t, h, d // 2, 2)) * table).flatten(-2)

    def check(inputs: Inputs, output: Tensor, seed: int) -> float:
        rows = draw_rows(seed, t)
        expected = reference.rope(to_double(inputs["x"][:, rows]), np.array(rows))
        return share(output[:, rows], expected, TOLERANCES["float32"])

    yield Case(
        op="rope",
        name=f"rope/forward/B{b}-T{t}-H{h}-d{d}/float32",
        shape={"B": b, "T": t, "H": h, "d": d},
        dtype="float32",
        work=work.elementwise(b * t * h * d, 3, 8),
        fresh=lambda seed: {"x": normal(seed, setting, b, t, h, d)},
        check=check,
        providers=(
            Provider("complex table", lambda i: plain(i["x"])),
            *own(setting, "rope", lambda f, i: f(i["x"])),
        ),
    )
    yield from without_triton(setting, "rope/*")
