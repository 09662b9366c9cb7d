"""Reading a prompt: logits of T tokens at once, against the same weights as dense matrices in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from walsh.measure.case import Absent, Case, Provider, Setting
from walsh.measure.kernels import own, without_triton
from walsh.measure.models import choose_model
from walsh.measure.plain import Plain


def cases(setting: Setting) -> Iterable[Case | Absent]:
    model, tokens = choose_model(setting), 64 if setting.quick else 256
    half = Plain({name: w.bfloat16() for name, w in model.plain.weights.items()}, model.config)
    yield Case(
        op="prefill",
        name=f"prefill/T{tokens}-C{model.n_embd}-V{model.vocabulary}",
        shape=model.shape(B=1, T=tokens),
        dtype="float32",
        work=model.work(tokens, dense=True, bits=32),
        fresh=lambda seed: {"ids": model.draw(seed, 1, tokens)},
        check=model.check_logits(8),
        providers=(
            Provider(
                "plain PyTorch float32",
                lambda i: model.plain(i["ids"]),
                check=model.check_logits(None),
                model_bytes=model.model_bytes(dense=True, bits=32),
            ),
            Provider(
                "plain PyTorch bfloat16",
                lambda i: half(i["ids"]),
                work=replace(model.work(tokens, dense=True, bits=16), peak="bfloat16"),
                check=model.check_logits(None, 0.3),
            ),
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
    yield from without_triton(setting, "prefill/*")
