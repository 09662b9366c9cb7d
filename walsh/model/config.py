"""The configuration of a Walsh model: names of the published one, every key checked.

A :class:`WalshConfig` is the complete configuration of SPEC.md, section *forward*, as an immutable object. The rules
are those of ``walsh.reference.config``: one place decides what is valid for every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from walsh.algebra import DIMENSIONS
from walsh.reference.config import complete_config, weight_shapes


@dataclass(frozen=True)
class WalshConfig:
    """Shape and arithmetic of a model; validated when it is made.

    Attributes:
        n_layer, n_head, n_embd: blocks, attention heads H and features C.
        block_size: the most tokens of a sequence.
        vocab_size: V.
        algebra: ``dense``, ``complex``, ``quaternion``, ``octonion``, ``sedenion`` or ``hadamard``.
        head_mixing: mix heads by the algebra after attention; H must be a multiple of its dimension.
        hash_embeddings: 0 for one table of V rows, or 2 or 3 small tables.
        hash_scale: multiply hash embeddings by sqrt(C), as published models with three tables do.
        tied_head: the head shares the embedding.
        ternary: round weights to {-1, 0, 1}; False trains them in float.
        rule: of that rounding, ``absmean`` or ``round``.
        ste_clip: no gradient for latent weights larger than this; None for no limit.
        activation_bits: 8, or None for float activations (published models).
        hadamard_size: n of the Hadamard algebra, a power of two.
        ffn_hidden: width inside the feed-forward; None for int(8 C / 3) rounded up to the algebra's dimension.

    Raises:
        ParameterError: for a value that is wrong or contradicts another; names the key.
    """

    n_layer: int = 8
    n_head: int = 8
    n_embd: int = 512
    block_size: int = 1024
    vocab_size: int = 50257
    algebra: str = "octonion"
    head_mixing: bool = False
    hash_embeddings: int = 0
    hash_scale: bool = False
    tied_head: bool = True
    ternary: bool = True
    rule: str = "absmean"
    ste_clip: float | None = None
    activation_bits: int | None = 8
    hadamard_size: int = 32
    ffn_hidden: int | None = None

    def __post_init__(self) -> None:
        # Frozen: the resolved values (the hidden width) are put in the way the dataclass itself does it.
        for name, value in complete_config(asdict(self)).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> WalshConfig:
        """The configuration of these keys; absent ones take their defaults.

        Raises:
            ParameterError: for an unknown key, naming the nearest valid one, or a wrong value.
        """
        known = {field.name: field.default for field in fields(cls)}
        # Unknown keys go through too, so that the one place that knows all rules refuses them.
        complete_config({**known, **record})
        return cls(**dict(record))

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, as JSON has them."""
        return asdict(self)

    @property
    def dimension(self) -> int:
        """n: blocks of a feature axis."""
        return self.hadamard_size if self.algebra == "hadamard" else DIMENSIONS[self.algebra]

    @property
    def head_dim(self) -> int:
        """d: features of one head."""
        return self.n_embd // self.n_head

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name."""
        return weight_shapes(self.to_dict())
