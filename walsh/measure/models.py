"""What the end-to-end jobs share: a model at two sizes, its work, and checks against ``walsh.reference``.

work of T tokens: 2 multiply-adds' flops per weight and token, attention on top; weights read once per pass
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Check, Inputs, Setting, Work
from walsh.measure.checks import generator, share, to_double
from walsh.measure.plain import Plain, Weights, as_codes, densify, make_config, make_weights
from walsh.reference.config import weight_shapes

INT8_TOLERANCE = 0.3
"""Of logits under int8 activations, over their rms: one rounding that falls the other way moves every later one, up to
0.22 in the largest of 50,257 after 256 tokens. One wrong matrix moves them by more than 1.
"""
FLOAT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Model:
    """One model: for walsh as it is, for plain PyTorch as dense matrices."""

    setting: Setting
    n_layer: int
    n_head: int
    n_embd: int
    vocabulary: int
    algebra: str = "octonion"

    @cached_property
    def config(self) -> dict[str, Any]:
        """With int8 activations."""
        return make_config(self.n_layer, self.n_head, self.n_embd, self.vocabulary, algebra=self.algebra)

    @cached_property
    def weights(self) -> Weights:
        """Ternary codes as float32."""
        return make_weights(self.config, 1, self.setting.device)

    @cached_property
    def codes(self) -> Weights:
        """Ternary codes as int8."""
        return as_codes(self.weights)

    @cached_property
    def plain(self) -> Plain:
        """The dense twin in float32."""
        return Plain(densify(self.weights), self.config)

    @cached_property
    def exported(self) -> dict[str, Any]:
        """Strict weights, as NumPy arrays."""
        return dict(reference.strict.export({n: to_double(w).astype(np.float32) for n, w in self.weights.items()},
                                            self.config))  # fmt: skip  # one call, one line of thought

    @cached_property
    def _wide(self) -> dict[str, Any]:
        return {name: to_double(w) if w.ndim < 3 else w.cpu().numpy() for name, w in self.codes.items()}

    def shape(self, **sizes: int) -> dict[str, int]:
        """Letters of the case."""
        return {"layers": self.n_layer, "H": self.n_head, "C": self.n_embd, "V": self.vocabulary, **sizes}

    def draw(self, seed: int, *sizes: int) -> Tensor:
        """Random ids."""
        random = generator(seed, self.setting)
        return torch.randint(0, self.vocabulary, sizes, generator=random, device=self.setting.device)

    def logits(self, ids: Tensor, bits: int | None, probes: dict[str, Any] | None = None) -> Any:
        """Of the definition, in float64."""
        config = {**self.config, "activation_bits": bits}
        return reference.forward(ids.cpu().numpy(), self._wide, config, None, probes)

    def continue_after(self, prompt: Tensor, bits: int | None) -> Callable[[Tensor, int], Any]:
        """The definition with a cache: from ids [1, T] that follow the first ``past`` of the prompt, to logits."""
        config = {**self.config, "activation_bits": bits}
        sizes = (1, self.config["block_size"], self.n_head, self.n_embd // self.n_head)

        @cache
        def read() -> list[Any]:
            caches = [reference.KVCache(*sizes) for _ in range(self.n_layer)]
            reference.forward(prompt.cpu().numpy(), self._wide, config, caches)
            return caches

        def logits(ids: Tensor, past: int) -> Any:
            for one in read():
                one.truncate(np.array([past]))
            return reference.forward(ids.cpu().numpy(), self._wide, config, read())

        return logits

    def check_logits(self, bits: int | None) -> Check:
        """Logits of the last position of one sequence, against the definition with these activations."""
        allowed = INT8_TOLERANCE if bits else FLOAT_TOLERANCE

        def check(inputs: Inputs, output: Tensor, seed: int) -> float:
            row = seed % inputs["ids"].shape[0]
            expected = self.logits(inputs["ids"][row : row + 1], bits)
            return share(output[row, -1], expected[0, -1], allowed)

        return check

    @property
    def blocks(self) -> int:
        """Times fewer weights than the dense twin."""
        return int(self.config["hadamard_size"]) if self.algebra == "hadamard" else 8

    def weights_of(self, dense: bool) -> tuple[float, float]:
        """Multiply-adds per token of the linear layers and of the head."""
        shapes = [shape for shape in weight_shapes(self.config).values() if len(shape) == 3]
        stored, head = float(sum(math.prod(shape) for shape in shapes)), float(self.vocabulary * self.n_embd)
        if dense:
            return self.blocks * stored, head
        if self.algebra == "hadamard":
            # An addition of a butterfly is half a multiply-add.
            transforms = sum(0.5 * math.log2(n) * n * (outputs + inputs) for n, outputs, inputs in shapes)
            return stored + transforms, head
        # Direct octonion products use each weight eight times; the fast ones form 30 block products of 64.
        return 8 * stored * 30 / 64, head

    def work(
        self, tokens: int, dense: bool, bits: float, head_bytes: int = 4, passes: int = 1, heads: int | None = None
    ) -> Work:
        """Of one pass over ``tokens``, the head applied to ``heads`` of them, or to all.

        Weights of the linear layers in ``bits``, those of the head in ``head_bytes``.
        """
        linear, head = self.weights_of(dense=True)
        executed, _ = self.weights_of(dense)
        stored = linear * bits / 8 / (1 if dense else self.blocks)
        head_flops = 2.0 * passes * (tokens if heads is None else heads) * head
        return Work(
            2.0 * passes * tokens * executed + head_flops,
            passes * (stored + head_bytes * head),
            2.0 * passes * tokens * linear + head_flops,
            "float32",
        )

    def model_bytes(self, dense: bool, bits: float) -> int:
        """Bytes of the weights that a provider holds."""
        linear, head = self.weights_of(dense=True)
        scales = sum(
            math.prod(shape)
            for name, shape in weight_shapes(self.config).items()
            if len(shape) == 1 or name.endswith((".alpha", ".beta"))
        )
        return math.ceil(linear * bits / 8 / (1 if dense else self.blocks) + 4 * (head + scales))


def choose_model(setting: Setting, algebra: str = "octonion") -> Model:
    """Small for a quick run; else the published shapes, of 29M (octonion) and 27M (Hadamard) parameters."""
    if setting.quick:
        return Model(setting, 2, 8, 256, 4096, algebra)
    return Model(setting, 8, 32 if algebra == "hadamard" else 8, 512, 50257, algebra)


def move(weights: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    """NumPy arrays to tensors."""
    return {name: torch.as_tensor(np.asarray(value), device=device) for name, value in weights.items()}
