"""What the algebra does inside a trained model, measured on a text.

energy[l, j]     mean over tokens of |component j of x.l|^2 / mean over components     x.l the stream after l blocks
zeros[l, name]   fraction of zeros among the ternary weights of a linear layer
mixer[l, j]      ||W_j - W_j at first||_F / ||I||_F                                    the first is I for j = 0 or 0;
                                                                                       for Hadamard I for all j
norms[l]         quantiles over tokens of the root mean square of x.l
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.errors import ParameterError
from walsh.kernels import torch as kernels
from walsh.model.transformer import Walsh
from walsh.reference.config import LINEARS

QUANTILES = (0.05, 0.5, 0.95)

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Analysis:
    """See the module; L blocks, n components.

    Attributes:
        energy: [L + 1, n].
        zeros: [L, 7], in the order of ``LINEARS``; NaN if the model is not ternary.
        mixer: [L, n], or None without head mixing.
        norms: [L + 1, 3], at ``QUANTILES``.
        tokens: how many were looked at.
    """

    energy: Table
    zeros: Table
    mixer: Table | None
    norms: Table
    tokens: int


@torch.no_grad()
def analyse(model: Walsh, ids: Sequence[int]) -> Analysis:
    """Measure a model on a text.

    Args:
        model: any.
        ids: tokens of the text; as many windows of the context as they fill, and the rest.

    Raises:
        ParameterError: no tokens.
    """
    if not len(ids):
        raise ParameterError("no tokens to look at: give a text")
    length = model.config.block_size
    streams: list[list[Tensor]] = []
    for start in range(0, len(ids), length):
        probes: dict[str, Tensor] = {}
        window = torch.tensor([list(ids[start : start + length])], device=model.device)
        model.features(window, probes=probes)
        streams.append([probe[0].double().cpu() for probe in probes.values()])
    stream = [torch.cat(parts) for parts in zip(*streams, strict=True)]
    n = model.config.dimension
    power = torch.stack([x.unflatten(1, (n, -1)).square().mean(dim=(0, 2)) for x in stream])  # type: ignore[no-untyped-call]  # torch's own
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    norms = torch.stack([x.square().mean(dim=1).sqrt().quantile(levels) for x in stream])
    return Analysis(
        energy=(power / power.mean(dim=1, keepdim=True)).numpy(),
        zeros=_zeros(model),
        mixer=_mixer(model) if model.config.head_mixing else None,
        norms=norms.numpy(),
        tokens=len(ids),
    )


def _zeros(model: Walsh) -> Table:
    config, weights = model.config, model.state_dict()
    result = np.full((config.n_layer, len(LINEARS)), np.nan)
    for layer in range(config.n_layer):
        for column, name in enumerate(LINEARS):
            w = weights[f"blocks.{layer}.{name}.weight"]
            if config.ternary and w.is_floating_point():
                w = kernels.ternary(w, config.rule)[0]
            elif w.dtype == torch.uint8:
                inputs = config.ffn_hidden if name == "ffn.down" else config.n_embd
                assert inputs is not None  # a complete configuration has a width
                w = kernels.unpack_ternary(w, inputs // config.dimension)
            if not w.is_floating_point():
                result[layer, column] = float((w == 0).double().mean())
    return result


def _mixer(model: Walsh) -> Table:
    config, weights = model.config, model.state_dict()
    d = config.head_dim
    first = torch.zeros(config.dimension, d, d)
    first[slice(None) if config.algebra == "hadamard" else 0] = torch.eye(d)
    moved = [weights[f"blocks.{layer}.mixer.weight"].cpu().float() - first for layer in range(config.n_layer)]
    rows = [change.flatten(1).norm(dim=1).double().numpy() / d**0.5 for change in moved]
    return np.array(rows).reshape(config.n_layer, config.dimension)
