"""Strict weights from trained ones (SPEC.md, end of *Strict arithmetic*).

What is exported defines every later bit, so that there is one exporter, in NumPy and float64; this one carries tensors
there and back. bfloat16 and float16 go through float32, which holds them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh.reference.strict.export import export as reference_export


def _to_numpy(x: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    x = x.detach().cpu()
    array: np.ndarray[Any, np.dtype[Any]] = (
        x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x
    ).numpy()
    return array


def export(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Round the weights of a trained model.

    Args:
        weights: by name, as the model's ``forward`` takes them.
        config: the model's configuration.

    Returns:
        Strict weights by name, on the device of the first weight.

    Raises:
        ParameterError: for a missing or superfluous weight, or a configuration that is wrong.
        StrictError: if activation_bits is null or ternary is false.
        DTypeError, ShapeError, NonFiniteError: for a weight that cannot be rounded.
    """
    device = next((w.device for w in weights.values()), torch.device("cpu"))
    strict = reference_export({name: _to_numpy(w) for name, w in weights.items()}, config)
    return {name: torch.from_numpy(w).to(device) for name, w in strict.items()}
