"""Reading a prompt: logits of T tokens at once, against the same weights as dense matrices in plain PyTorch.

llama.cpp on these dense matrices is a peer where it is installed; it, too, computes the logits of all T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from walsh.measure import llama_cpp
from walsh.measure.case import Absent, Case, Check, Provider, Setting
from walsh.measure.checks import share
from walsh.measure.kernels import own, without_triton
from walsh.measure.models import FLOAT_TOLERANCE, Model, choose_model
from walsh.measure.plain import Plain


def float_checks(model: Model) -> Callable[[float], Check]:
    """Checks, by tolerance, of the last token's logits against the definition with float activations, computed once."""

    @lru_cache(maxsize=1)
    def expect(ids: tuple[int, ...]) -> Any:
        return model.logits(torch.tensor([ids]), None)[0, -1]

    def checks(tolerance: float) -> Check:
        return lambda inputs, output, _: share(output[0, -1], expect(tuple(inputs["ids"][0].tolist())), tolerance)

    return checks


def cases(setting: Setting) -> Iterable[Case | Absent]:
    model, tokens = choose_model(setting), 64 if setting.quick else 256
    name, checks = f"prefill/T{tokens}-C{model.n_embd}-V{model.vocabulary}", float_checks(model)
    peers, refused = llama_cpp.providers(name, model, tokens, None, checks)
    half = Plain({name: w.bfloat16() for name, w in model.plain.weights.items()}, model.config)
    yield Case(
        op="prefill",
        name=name,
        shape=model.shape(B=1, T=tokens),
        dtype="float32",
        work=model.work(tokens, dense=True, bits=32),
        fresh=lambda seed: {"ids": model.draw(seed, 1, tokens)},
        check=model.check_logits(8),
        providers=(
            Provider(
                "plain PyTorch float32",
                lambda i: model.plain(i["ids"]),
                check=checks(FLOAT_TOLERANCE),
                model_bytes=model.model_bytes(dense=True, bits=32),
            ),
            Provider(
                "plain PyTorch bfloat16",
                lambda i: half(i["ids"]),
                work=replace(model.work(tokens, dense=True, bits=16), peak="bfloat16"),
                check=checks(0.3),
            ),
            *peers,
            *own(
                setting,
                "forward",
                lambda f, i: f(i["ids"], model.codes, model.config),
                model.work(tokens, dense=False, bits=8),
            ),
        ),
        tokens=tokens,
        at_least=5,
    )
    yield from refused
    yield from llama_cpp.without_llama_cpp(setting, "prefill/*")
    yield from without_triton(setting, "prefill/*")
