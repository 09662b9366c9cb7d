"""Reading a prompt of T tokens, against the same weights as dense matrices in plain PyTorch.

    prefill/T...                logits of all T tokens at once
    prefill/first-token/...     logits of the last one, keys and values of all: the wait for the first new token

llama.cpp on these dense matrices is a peer where it is installed, and computes what the case asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from walsh.measure import llama_cpp
from walsh.measure.case import Absent, Case, Check, Inputs, Provider, Setting
from walsh.measure.checks import share
from walsh.measure.continuation import check_strict, token_checks
from walsh.measure.engine import BACKEND, open_session, pack_model, without_engine
from walsh.measure.kernels import own, without_triton
from walsh.measure.models import FLOAT_TOLERANCE, INT8_TOLERANCE, Model, choose_model
from walsh.measure.plain import Plain
from walsh.measure.threads import each_way
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh

NEW = 4
"""Last tokens of a prompt, drawn for every round; those before them are the same in all, so that the definition reads
them once. A provider reads every token every time.
"""


def float_checks(model: Model) -> Callable[[float], Check]:
    """Checks, by tolerance, of the last token's logits against the definition with float activations, computed once."""

    @lru_cache(maxsize=1)
    def expect(ids: tuple[int, ...]) -> Any:
        return model.logits(torch.tensor([ids]), None)[0, -1]

    def checks(tolerance: float) -> Check:
        return lambda inputs, output, _: share(output[0, -1], expect(tuple(inputs["ids"][0].tolist())), tolerance)

    return checks


def to_bfloat16(model: Model) -> Plain:
    """The dense twin in half the bytes."""
    return Plain({name: w.bfloat16() for name, w in model.plain.weights.items()}, model.config)


def all_logits(setting: Setting, model: Model, tokens: int) -> Iterable[Case | Absent]:
    name, checks = f"prefill/T{tokens}-C{model.n_embd}-V{model.vocabulary}", float_checks(model)
    peers, refused = llama_cpp.providers(name, model, tokens, None, checks)
    half = to_bfloat16(model)
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


def read_plain(plain: Plain, tokens: int) -> Callable[[Inputs], Tensor]:
    """The prompt into an empty cache, the head on its last token."""
    cache = plain.make_cache(1, tokens)

    def run(inputs: Inputs) -> Tensor:
        cache.length = 0
        return plain(inputs["ids"], cache, last=True)

    return run


def module_provider(model: Model, tokens: int) -> Provider:
    """The model as generation runs it; ``walsh.kernels.torch.forward`` has no head on the last token alone."""
    walsh = Walsh(WalshConfig.from_dict(model.config), weights=model.codes).requires_grad_(False)
    cache = walsh.make_cache(1, tokens)

    def run(inputs: Inputs) -> Tensor:
        for layer in cache:
            layer.reset()
        return walsh.logits(walsh.features(inputs["ids"], cache)[:, -1:])

    return Provider(
        "walsh.model",
        run,
        "torch",
        model.work(tokens, dense=False, bits=8, heads=1),
        exact_counts=model.setting.device == "cpu",
        model_bytes=model.model_bytes(dense=False, bits=8),
    )


def engine_provider(model: Model, tokens: int, check: Check) -> Provider:
    """The engine under wasmtime, one thread, strict; a file of packed weights."""
    session = open_session(model, capacity=tokens)

    def run(inputs: Inputs) -> Tensor:
        session.truncate(0)
        session.prefill(inputs["ids"][0].cpu().numpy())
        return torch.from_numpy(session.logits)[None, None]

    return Provider(
        "walsh engine (Wasm)",
        run,
        BACKEND,
        replace(model.work(tokens, dense=False, bits=2, head_bytes=1, heads=1), peak="wasm"),
        check=check,
        model_bytes=len(pack_model(model)),
    )


def first_token(setting: Setting, model: Model, tokens: int) -> Iterable[Case | Absent]:
    name = f"prefill/first-token/{model.algebra}/T{tokens}-C{model.n_embd}-V{model.vocabulary}"
    beginning = model.draw(7, 1, tokens - NEW)
    checks = token_checks(model, beginning, None, NEW)
    peers, refused = llama_cpp.providers(name, model, tokens, None, checks, last=True)
    plain = Provider(
        "plain PyTorch float32",
        read_plain(model.plain, tokens),
        check=checks(FLOAT_TOLERANCE),
        model_bytes=model.model_bytes(dense=True, bits=32),
    )
    half = Provider(
        "plain PyTorch bfloat16",
        read_plain(to_bfloat16(model), tokens),
        work=replace(model.work(tokens, dense=True, bits=16, heads=1), peak="bfloat16"),
        check=checks(0.3),
    )
    providers = each_way(setting, [plain, half, *peers, module_provider(model, tokens)])
    if not without_engine(""):
        providers.append(engine_provider(model, tokens, check_strict(model, beginning, NEW)))
    yield Case(
        op="prefill",
        name=name,
        shape=model.shape(B=1, T=tokens),
        dtype="float32",
        work=model.work(tokens, dense=True, bits=32, heads=1),
        fresh=lambda seed: {"ids": torch.cat([beginning, model.draw(seed, 1, NEW)], 1)},
        check=token_checks(model, beginning, 8, NEW)(INT8_TOLERANCE),
        providers=tuple(providers),
        tokens=tokens,
        at_least=5,
    )
    yield from refused


def cases(setting: Setting) -> Iterable[Case | Absent]:
    model, tokens = choose_model(setting), 64 if setting.quick else 256
    yield from all_logits(setting, model, tokens)
    yield from without_engine("prefill/first-token/*")
    for one in (model, choose_model(setting, "hadamard")):
        yield from first_token(setting, one, tokens)
    yield from llama_cpp.without_llama_cpp(setting, "prefill/*")
    missing = without_triton(setting, "prefill/*")
    yield from missing or [Absent("prefill/first-token/*", "walsh triton", "computes the logits of all tokens")]
