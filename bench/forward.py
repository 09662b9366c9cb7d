"""The whole model in strict arithmetic, equal to the bit everywhere, against the same model in plain PyTorch.

logits [B, T, V]; what the pinned order of additions costs when answers must be verifiable
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting
from walsh.measure.kernels import own, without_triton
from walsh.measure.models import choose_model, move


def cases(setting: Setting) -> Iterable[Case | Absent]:
    model, tokens = choose_model(setting), 32
    strict = move(model.exported, setting.device)

    def check(inputs: Inputs, output: Any, _: int) -> float:
        expected = reference.strict.forward(inputs["ids"].cpu().numpy(), model.exported, model.config)
        found = output.cpu().numpy() if isinstance(output, Tensor) else output
        return 0.0 if np.array_equal(found, expected) else float("inf")

    yield Case(
        op="forward",
        name=f"forward/strict/T{tokens}-C{model.n_embd}-V{model.vocabulary}",
        shape=model.shape(B=1, T=tokens),
        dtype="int8",
        work=model.work(tokens, dense=True, bits=32),
        fresh=lambda seed: {"ids": model.draw(seed, 1, tokens)},
        check=check,
        providers=(
            Provider(
                "plain PyTorch float32, not strict",
                lambda i: model.plain(i["ids"]),
                check=model.check_logits(None),
                model_bytes=model.model_bytes(dense=True, bits=32),
            ),
            *own(
                setting,
                "strict.forward",
                lambda f, i: f(i["ids"], strict, model.config),
                model.work(tokens, dense=False, bits=8),
            ),
        ),
        tokens=tokens,
        at_least=5,
    )
    yield from without_triton(setting, "forward/*")
