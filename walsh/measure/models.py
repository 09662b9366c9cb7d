"""What the end-to-end jobs share: a model at two sizes, its work, and checks against ``walsh.reference``.

work of T tokens: 2 multiply-adds' flops per weight and token, attention on top; weights read once per pass
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Check, Inputs, Setting, Work
from walsh.measure.checks import generator, share, to_double
from walsh.measure.plain import Plain, Weights, as_codes, densify, make_config, make_weights
from walsh.reference.config import weight_shapes

INT8_TOLERANCE = 0.2
"""Of logits under int8 activations: one rounding that falls the other way moves every later one."""
FLOAT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Model:
    """One octonion model: for walsh as it is, for plain PyTorch as dense matrices."""

    setting: Setting
    n_layer: int
    n_head: int
    n_embd: int
    vocabulary: int

    @cached_property
    def config(self) -> dict[str, Any]:
        """With int8 activations."""
        return make_config(self.n_layer, self.n_head, self.n_embd, self.vocabulary)

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

    def check_logits(self, bits: int | None, tolerance: float | None = None) -> Check:
        """Logits of the last position of one sequence, against the definition with these activations."""
        allowed = tolerance or (INT8_TOLERANCE if bits else FLOAT_TOLERANCE)

        def check(inputs: Inputs, output: Tensor, seed: int) -> float:
            row = seed % inputs["ids"].shape[0]
            expected = self.logits(inputs["ids"][row : row + 1], bits)
            return share(output[row, -1], expected[0, -1], allowed)

        return check

    def weights_of(self, dense: bool) -> tuple[float, float]:
        """Multiply-adds per token of the linear layers and of the head."""
        linear = sum(math.prod(s) for s in weight_shapes(self.config).values() if len(s) == 3)
        # Direct octonion products use each weight eight times: as many multiply-adds as the dense layer.
        return 8.0 * linear if dense else 8.0 * linear * 30 / 64, float(self.vocabulary * self.n_embd)

    def work(self, tokens: int, dense: bool, bits: float, head_bytes: int = 4, passes: int = 1) -> Work:
        """Of one pass over ``tokens``: weights of the linear layers in ``bits``, the head in ``head_bytes`` each."""
        linear, head = self.weights_of(dense=True)
        executed, _ = self.weights_of(dense)
        stored = linear * bits / 8 / (1 if dense else 8)
        flops = 2.0 * passes * (tokens * executed + tokens * head)
        return Work(
            flops, passes * (stored + head_bytes * head), 2.0 * passes * (tokens * linear + tokens * head), "float32"
        )

    def model_bytes(self, dense: bool, bits: float) -> int:
        """Bytes of the weights that a provider holds."""
        linear, head = self.weights_of(dense=True)
        scales = sum(math.prod(s) for s in weight_shapes(self.config).values() if len(s) == 1)
        return math.ceil(linear * bits / 8 / (1 if dense else 8) + 4 * (head + scales))


def choose_model(setting: Setting) -> Model:
    """Small for a quick run; else the published 26M octonion shape."""
    if setting.quick:
        return Model(setting, 2, 8, 256, 4096)
    return Model(setting, 8, 8, 512, 50257)


def move(weights: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    """NumPy arrays to tensors."""
    return {name: torch.as_tensor(np.asarray(value), device=device) for name, value in weights.items()}
