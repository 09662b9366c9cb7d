"""What the writer and the reader of ``.walsh`` files share: names, limits, and what a tensor in a file is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.data.tokenizers import Tokenizer

Array = NDArray[Any]

FORMAT, VERSION = "walsh", 1
TOKENS = "tokenizer.tokens"
"""The tensor that holds a byte-pair tokenizer's tokens."""

MAX_HEADER = 16 << 20
MAX_ELEMENTS = 1 << 30
MOST_PER_BYTE = 5 * 1040  # deflate makes at most 1,032 bytes of one, base 3 five weights of each

DTYPES = {"I8": np.int8, "U8": np.uint8, "F32": np.float32, "F64": np.float64, "I64": np.int64}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ORDER = {"F64": 1, "I64": 2, "F32": 3, "I8": 4, "U8": 5}


@dataclass(frozen=True)
class Stored:
    """One tensor as the file has it.

    Attributes:
        packing: ``raw``, a packing of ``walsh.codec.packings``, or ``deflate``.
        shape: of the tensor.
        data: what is stored.
        considered: bytes of every packing that the writer compared; empty where it had no choice, and when reading.
    """

    packing: str
    shape: tuple[int, ...]
    data: Array
    considered: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WalshFile:
    """A file that was read.

    Attributes:
        weights: strict weights by name; empty in an outline.
        config: the model's configuration.
        tokenizer: or None.
        stored: packing, shape and bytes per tensor.
        tokens: a byte-pair tokenizer's tokens by id; empty for other kinds.
        size: bytes of the file.
    """

    weights: dict[str, Array]
    config: dict[str, Any]
    tokenizer: Tokenizer | None
    stored: dict[str, Stored] = field(repr=False)
    tokens: tuple[bytes, ...] = field(repr=False)
    size: int


def strict_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration under which a file's tensors are strict weights.

    A model with float activations (``activation_bits`` null, as published ones) is stored as if it had int8 ones: the
    tensors are the same, and only what computes with them differs.
    """
    return {**config, "activation_bits": 8} if config.get("activation_bits", 8) is None else dict(config)
