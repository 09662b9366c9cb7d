"""Inputs made from a seed, and checks of timed outputs against the definition.

Full references of large products would take longer than the benchmark, so a check draws what it looks at *after* the
clock has stopped: some rows of an output that has independent rows, and for gradients of weights a product with a
random vector (Freivalds, 1977), which depends on every element.

    error = max abs(found - expected) / rms(expected);    its share of a tolerance is what a check returns
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.measure.case import Check, Inputs, Setting

Floats = NDArray[np.float64]

TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2, "int8": 1e-3}
"""Largest error over rms that a correct kernel of a dtype may have here; conformance has the sharp bounds."""


def generator(seed: int, setting: Setting) -> torch.Generator:
    """A generator on the run's device."""
    return torch.Generator(device=setting.device).manual_seed(seed)


def normal(seed: int, setting: Setting, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=generator(seed, setting), device=setting.device).to(dtype)


def codes(seed: int, setting: Setting, *shape: int, largest: int = 1) -> Tensor:
    """int8 codes, uniform in -largest .. largest."""
    return torch.randint(
        -largest, largest + 1, shape, generator=generator(seed, setting), device=setting.device, dtype=torch.int8
    )


def to_double(tensor: Tensor) -> Floats:
    """As float64 on the host, which holds every value of the dtypes here."""
    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())


def share(found: Any, expected: Any, tolerance: float) -> float:
    """Largest error relative to the rms of what was expected, as a share of the tolerance; NaN stays NaN."""
    found = to_double(found) if isinstance(found, Tensor) else np.asarray(found, np.float64)
    expected = np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return float("nan")
    scale = float(np.sqrt(np.mean(expected * expected))) if expected.size else 0.0
    worst = np.abs(found - expected).max(initial=0.0)
    return float(worst / (tolerance * (scale or 1.0)))


def draw_rows(seed: int, total: int, wanted: int = 3) -> list[int]:
    """Distinct rows, the last one among them: tails are where kernels go wrong."""
    chance = np.random.default_rng(seed)
    rows = {total - 1, *chance.integers(0, total, wanted - 1).tolist()}
    return sorted(rows)


def row_check(names: Sequence[str], definition: Callable[..., Any], tolerance: float) -> Check:
    """A check for functions of independent rows.

    Args:
        names: inputs [M, ...] whose rows go to ``definition``.
        definition: from those rows as float64 arrays to the rows of the output.
        tolerance: see the module.
    """

    def check(inputs: Inputs, output: Any, seed: int) -> float:
        rows = draw_rows(seed, output.shape[0])
        expected = definition(*(to_double(inputs[name][rows]) for name in names))
        return share(output[rows], expected, tolerance)

    return check


def exact_check(definition: Callable[[Inputs], Any]) -> Check:
    """A check that wants equality of everything."""

    def check(inputs: Inputs, output: Any, _: int) -> float:
        expected = np.asarray(definition(inputs))
        found = output.cpu().numpy() if isinstance(output, Tensor) else np.asarray(output)
        return 0.0 if found.shape == expected.shape and bool((found == expected).all()) else float("inf")

    return check
