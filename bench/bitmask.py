"""The bitmask codec against ``numpy.packbits`` of the same two bit streams.

mask: one bit per weight, signs: one per non-zero          codec's traffic: int8 side + packed side
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import generator
from walsh.measure.kernels import own, without_triton

ZEROS = 0.5


def draw(seed: int, setting: Setting, total: int) -> Tensor:
    """Codes with half of them zero, as trained models have about."""
    random = generator(seed, setting)
    signs = torch.randint(0, 2, (total,), generator=random, device=setting.device, dtype=torch.int8) * 2 - 1
    return signs * (torch.rand(total, generator=random, device=setting.device) >= ZEROS)


def packbits(q: Tensor) -> tuple[Any, Any]:
    flat = q.cpu().numpy()
    mask = flat != 0
    return np.packbits(mask, bitorder="little"), np.packbits(flat[mask] > 0, bitorder="little")


def check(inputs: Inputs, output: tuple[Any, Any], _: int) -> float:
    expected = reference.bitmask_encode(inputs["q"].cpu().numpy())
    found = [part.cpu().numpy() if isinstance(part, Tensor) else part for part in output]
    return 0.0 if all(map(np.array_equal, found, expected)) else float("inf")


def cases(setting: Setting) -> Iterable[Case | Absent]:
    total = 1 << (17 if setting.quick else 21)
    sample = draw(0, setting, total).cpu().numpy()
    mask, signs = (torch.from_numpy(part).to(setting.device) for part in reference.bitmask_encode(sample))

    def check_decoded(inputs: Inputs, output: Any, _: int) -> float:
        found = output.cpu().numpy() if isinstance(output, Tensor) else output
        expected = reference.bitmask_decode(inputs["mask"].cpu().numpy(), inputs["signs"].cpu().numpy(), (total,))
        return 0.0 if np.array_equal(found, expected) else float("inf")

    def fresh_packed(seed: int) -> dict[str, Tensor]:
        parts = reference.bitmask_encode(draw(seed, setting, total).cpu().numpy())
        return dict(zip(("mask", "signs"), (torch.from_numpy(p).to(setting.device) for p in parts), strict=True))

    def unpackbits(inputs: Inputs) -> Any:
        bits = np.unpackbits(inputs["mask"].cpu().numpy(), count=total, bitorder="little").astype(np.int8)
        plus = np.unpackbits(inputs["signs"].cpu().numpy(), count=int(bits.sum()), bitorder="little").astype(np.int8)
        bits[bits == 1] = 2 * plus - 1
        return bits

    traffic = total + mask.numel() + signs.numel()
    yield Case(
        op="bitmask",
        name=f"bitmask/encode/P{total}/int8",
        shape={"P": total},
        dtype="int8",
        work=Work(0, traffic, None, "int8"),
        fresh=lambda seed: {"q": draw(seed, setting, total)},
        check=check,
        providers=(
            Provider("numpy.packbits", lambda i: packbits(i["q"])),
            *own(setting, "bitmask_encode", lambda f, i: f(i["q"])),
        ),
    )
    yield Case(
        op="bitmask",
        name=f"bitmask/decode/P{total}/int8",
        shape={"P": total},
        dtype="int8",
        work=Work(0, traffic, None, "int8"),
        fresh=fresh_packed,
        check=check_decoded,
        providers=(
            Provider("numpy.unpackbits", unpackbits),
            *own(setting, "bitmask_decode", lambda f, i: f(i["mask"], i["signs"], (total,))),
        ),
    )
    yield from without_triton(setting, "bitmask/*")
