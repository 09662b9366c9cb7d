"""What a file consists of, by kind of tensor: packing, bytes, bits a weight, and why the packing was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from walsh.codec.layout import TOKENS, Stored
from walsh.codec.packings import SPEED, TERNARY

KINDS = ("embedding", "head", "attention", "ffn", "mixer", "scales and norms", "tokenizer")


@dataclass(frozen=True)
class Row:
    """Tensors of one kind and packing.

    Attributes:
        kind: one of ``KINDS``.
        packing: theirs.
        tensors, values, bytes: how many, together.
        considered: bytes of every packing that was compared, together.
    """

    kind: str
    packing: str
    tensors: int
    values: int
    bytes: int
    considered: Mapping[str, int]

    @property
    def bits(self) -> float:
        """Bits a value."""
        return 8 * self.bytes / max(self.values, 1)

    @property
    def reason(self) -> str:
        """Why this packing."""
        if self.considered:
            others = ", ".join(
                f"{name} {8 * size / max(self.values, 1):.2f}"
                for name, size in sorted(self.considered.items(), key=lambda item: (item[1], item[0]))
                if name != self.packing
            )
            return f"smallest; bits of others: {others}"
        if self.packing == SPEED[0]:
            return "decoded fastest"
        if self.packing in TERNARY:
            return "as the file has it"
        known = {
            "int4": "rows of 4-bit codes, two a byte",
            "deflate": "tokens repeat each other",
        }
        if self.packing in known:
            return known[self.packing]
        return "rows of int8 codes" if self.kind in ("embedding", "head") else "not ternary"


def kind_of(name: str) -> str:
    """The kind of a tensor by its name."""
    if name == TOKENS:
        return "tokenizer"
    if not name.endswith(".codes"):
        return "scales and norms"
    if name.startswith(("embedding", "head")):
        return name.partition(".")[0]
    return next(kind for kind in ("mixer", "attention", "ffn") if f".{kind}." in name)


def rows(stored: Mapping[str, Stored]) -> list[Row]:
    """One row for each kind and packing, in the order of ``KINDS``."""
    groups: dict[tuple[str, str], list[Stored]] = {}
    for name, item in stored.items():
        groups.setdefault((kind_of(name), item.packing), []).append(item)
    result = []
    for (kind, packing), items in sorted(groups.items(), key=lambda group: (KINDS.index(group[0][0]), group[0][1])):
        values = sum(math.prod(item.shape) for item in items)
        compared = items[0].considered
        considered = {name: sum(item.considered.get(name, 0) for item in items) for name in compared}
        size = sum(int(item.data.nbytes) for item in items)
        result.append(Row(kind, packing, len(items), values, size, considered))
    return result
