"""What a model consists of: parameters and bytes, by part, from its configuration alone.

Ternary weights are counted at the 2 bits of ``pack_ternary`` and, for comparison, at 1.6 bits (five trits to a byte)
and 32 (the checkpoint); rows of the embedding at 32, 8 and 4 bits with one float32 scale each. Optimizer state is no
part of a model and is never counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from walsh.model.config import WalshConfig
from walsh.reference.embedding import MODULI

Shapes = Mapping[str, tuple[int, ...]]

PARTS = ("embedding", "head", "attention", "mixer", "ffn", "norms")
"""In the order of reports."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part of a model.

    Attributes:
        name: one of ``PARTS``.
        parameters: all of them.
        ternary: those that are rounded to {-1, 0, 1}.
        rows: rows of embedding tables among the tensors, each with one scale when packed.
        scales: float32 parameters that stay as they are: beta, alpha, importance, norms.
    """

    name: str
    parameters: int
    ternary: int
    rows: int
    scales: int


def part_of(name: str) -> str:
    """The part that a weight belongs to, by its name in SPEC.md."""
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("head."):
        return "head"
    if ".mixer." in name:
        return "mixer"
    if "norm" in name:
        return "norms"
    return "attention" if ".attention." in name else "ffn"


def published_shapes(config: WalshConfig) -> dict[str, tuple[int, ...]]:
    """Shapes as published models have them: two hash tables of 1021 rows each.

    ``hash_indices`` reaches only the first ``ceil(V / 1021)`` rows of the second one, which is all that we keep.
    """
    shapes = config.weight_shapes()
    if config.hash_embeddings == 2:
        shapes["embedding.tables.1"] = (MODULI[0], config.n_embd)
    return shapes


def count_parts(config: WalshConfig, shapes: Shapes | None = None) -> list[Part]:
    """The parts of a model that have parameters, in the order of ``PARTS``.

    Args:
        config: of the model.
        shapes: of its weights, where they are not those of the configuration (:func:`published_shapes`, a converted
            model).
    """
    shapes = config.weight_shapes() if shapes is None else shapes
    parts = []
    for part in PARTS:
        mine = {name: shape for name, shape in shapes.items() if part_of(name) == part}
        if not mine:
            continue
        total = sum(map(math.prod, mine.values()))
        linear = sum(math.prod(shape) for name, shape in mine.items() if name.endswith(".weight") and len(shape) == 3)
        ternary = linear if config.ternary and part in ("attention", "ffn") else 0
        tables = [s for n, s in mine.items() if part in ("embedding", "head") and len(s) == 2 and "importance" not in n]
        held = sum(map(math.prod, tables)) + linear
        parts.append(Part(part, total, ternary, sum(shape[0] for shape in tables), total - held))
    return parts


def count_parameters(config: WalshConfig, shapes: Shapes | None = None) -> int:
    """All parameters of a model; tied ones once; arguments as for :func:`count_parts`."""
    return sum(part.parameters for part in count_parts(config, shapes))


def count_multiplications(config: WalshConfig) -> int:
    """Multiply-accumulates of one token in the dense-equivalent sense: every entry of every expanded matrix once.

    Attention over earlier tokens is not counted; it is the same for all algebras of one width.
    """
    total = config.n_embd * config.vocab_size
    for name, shape in config.weight_shapes().items():
        if len(shape) == 3 and ".mixer." not in name:
            total += math.prod(shape) * (1 if config.algebra == "hadamard" else shape[0])
        elif len(shape) == 3:
            groups = config.n_head // shape[0]
            total += groups * math.prod(shape) * (1 if config.algebra == "hadamard" else shape[0])
    return total


def checkpoint_bytes(config: WalshConfig) -> int:
    """Bytes of the float32 weights, without optimizer state."""
    return 4 * count_parameters(config)


def packed_bytes(config: WalshConfig, ternary_bits: float = 2.0, row_bits: int = 8) -> int:
    """Bytes of the tensors when packed, container and tokenizer not counted.

    Args:
        config: of the model.
        ternary_bits: per ternary weight.
        row_bits: per entry of an embedding row: 32, 8 or 4; with fewer than 32 each row has a float32 scale. Weights
            that are not ternary (mixers) take 8 bits with a float32 scale per column.
    """
    rows: Callable[[Part, int], float] = lambda part, values: (  # noqa: E731  # used once, reads as the rule
        values * row_bits / 8 + (4 * part.rows if row_bits < 32 else 0)
    )
    total = 0.0
    for part in count_parts(config):
        rest = part.parameters - part.ternary - part.scales
        total += part.ternary * ternary_bits / 8 + 4 * part.scales
        total += rows(part, rest) if part.rows else rest * (1 if part.name == "mixer" else 4)
    if config.head_mixing:
        total += 4 * config.head_dim * config.n_layer  # one scale per column of each mixer
    return math.ceil(total)
