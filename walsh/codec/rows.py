"""Rows of int8 or int4 codes with one float32 scale per row: embeddings and heads.

    scale = f32(absmax(row) / q),   codes = clip(rint(row / scale), -q, q),   q = 127 or 7;   a row of zeros has scale 0

Eight bits are what ``walsh.reference.strict.export`` makes. Four halve the file once more; what that costs in loss is
measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import ParameterError

LIMIT = {8: 127, 4: 7}
"""Largest code by bits."""


def quantise_rows(weight: NDArray[Any], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales of a table.

    Args:
        weight: float [V, C], finite.
        bits: 8 or 4.

    Returns:
        (codes int8 [V, C], scale float32 [V]).

    Raises:
        ParameterError: for other bits.
    """
    if bits not in LIMIT:
        raise ParameterError(f"bits {bits!r}: expected 8 or 4")
    wide = np.asarray(weight, dtype=np.float64)
    limit = LIMIT[bits]
    scale = (np.abs(wide).max(axis=1, initial=0.0) / limit).astype(np.float32)
    divisor = np.where(scale == 0, 1.0, scale.astype(np.float64))[:, None]
    codes = np.clip(np.rint(wide / divisor), -limit, limit)
    return np.where(scale[:, None] == 0, 0.0, codes).astype(np.int8), scale


def table_stems(config: Mapping[str, Any]) -> list[str]:
    """The tables of a configuration: ``{stem}.codes`` and ``{stem}.scale`` among strict weights."""
    hashes = int(config.get("hash_embeddings", 0))
    stems = [f"embedding.tables.{i}" for i in range(hashes)] or ["embedding"]
    return stems if config.get("tied_head", True) else [*stems, "head"]


def four_bit_rows(
    strict: Mapping[str, NDArray[Any]], config: Mapping[str, Any], trained: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """Strict weights whose tables hold four-bit codes.

    Args:
        strict: as ``export`` makes them.
        config: the configuration.
        trained: the weights before ``export``, to round once; without them the int8 rows are rounded again.

    Returns:
        A new mapping; other weights are shared.
    """
    result = dict(strict)
    for stem in table_stems(config):
        source = stem if stem.startswith("embedding.tables.") else f"{stem}.weight"
        if trained is not None:
            table = np.asarray(trained[source], dtype=np.float64)
        else:
            table = strict[f"{stem}.codes"].astype(np.float64) * strict[f"{stem}.scale"].astype(np.float64)[:, None]
        result[f"{stem}.codes"], result[f"{stem}.scale"] = quantise_rows(table, 4)
    return result
