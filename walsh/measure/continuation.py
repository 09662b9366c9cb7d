"""Checks of the logits of the last token, where all rounds begin with the same tokens.

    ids = beginning [P], read by the definition once, when it is first needed; then t new ones in every round

The definition of a large model takes seconds for a long prompt. It may read it in parts: logits depend on a token and
those before it, not on how many came at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from walsh import reference
from walsh.measure.case import Check, Inputs
from walsh.measure.checks import share
from walsh.measure.models import Model


def token_checks(model: Model, beginning: Tensor, bits: int | None, new: int = 1) -> Callable[[float], Check]:
    """From a tolerance to a check against the definition with these activations.

    Args:
        model: whose logits they are.
        beginning: ids [1, P].
        bits: of activations, or None for float ones.
        new: how many tokens follow; they are the last of ``inputs["ids"]`` [1, ...].
    """
    past, logits = beginning.shape[1], model.continue_after(beginning, bits)

    @lru_cache(maxsize=1)
    def expect(ids: tuple[int, ...]) -> Any:
        return logits(beginning.new_tensor([ids]), past)[0, -1]

    def checks(tolerance: float) -> Check:
        return lambda inputs, output, _: share(
            output[0, -1], expect(tuple(inputs["ids"][0, -new:].tolist())), tolerance
        )

    return checks


def check_strict(model: Model, beginning: Tensor, new: int = 1) -> Check:
    """The same of strict arithmetic, to the bit."""
    past, head_dim = beginning.shape[1], model.n_embd // model.n_head

    @cache
    def read() -> list[reference.strict.Int8KVCache]:
        sizes = (1, past + new, model.n_head, head_dim)
        caches = [reference.strict.Int8KVCache(*sizes) for _ in range(model.n_layer)]
        reference.strict.forward(beginning.cpu().numpy(), model.exported, model.config, caches)
        return caches

    def check(inputs: Inputs, output: Tensor, _: int) -> float:
        for layer in read():
            layer.truncate(np.array([past]))
        ids = inputs["ids"][:, -new:].cpu().numpy()
        expected = reference.strict.forward(ids, model.exported, model.config, read())
        return 0.0 if np.array_equal(output[0, -1].numpy(), expected[0, -1]) else float("inf")

    return check
