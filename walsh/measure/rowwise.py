"""Cases over rows of features, for ops that read and write each element about once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from walsh.measure.case import Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import TOLERANCES, normal, row_check
from walsh.measure.kernels import own


def rowwise(
    setting: Setting,
    op: str,
    what: str,
    shape: Mapping[str, int],
    work: Work,
    inputs: Mapping[str, tuple[int, ...]],
    definition: Callable[..., Any],
    baseline: Callable[..., Tensor],
    function: str,
    call: Callable[[Any, Inputs], Any],
    baseline_name: str = "PyTorch",
) -> Case:
    """A case of float32 inputs, drawn anew each round, its outputs checked by rows.

    Args:
        setting: of the run.
        op, what, shape: of the case's name.
        work: of every provider.
        inputs: shape by name, rows first.
        definition: float64 rows of all inputs, in order, to rows of the output.
        baseline: the same on tensors.
        function, call: see ``walsh.measure.kernels.own``.
        baseline_name: what the baseline is.
    """

    def fresh(seed: int) -> dict[str, Tensor]:
        return {name: normal(seed + i, setting, *sizes) for i, (name, sizes) in enumerate(inputs.items())}

    providers = [Provider(baseline_name, lambda i: baseline(*(i[name] for name in inputs)))]
    if not setting.quick:
        # A compiler takes half a minute for each; a quick run is without.
        fused = torch.compile(baseline, dynamic=False)
        providers.append(Provider("torch.compile", lambda i: fused(*(i[name] for name in inputs))))
    return Case(
        op=op,
        name=f"{op}/{what}/{'-'.join(f'{letter}{size}' for letter, size in shape.items())}/float32",
        shape=dict(shape),
        dtype="float32",
        work=work,
        fresh=fresh,
        check=row_check(list(inputs), definition, TOLERANCES["float32"]),
        providers=(*providers, *own(setting, function, call)),
    )
