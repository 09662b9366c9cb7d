"""One more token, batch 1, over a cache of P tokens, against the same weights as dense matrices in plain PyTorch.

limit: weights and head are read once per token

llama.cpp on these dense matrices is a peer where it is installed, with the tolerances of its formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from walsh.measure import llama_cpp
from walsh.measure.case import Absent, Case, Check, Inputs, Provider, Setting
from walsh.measure.continuation import check_strict, token_checks
from walsh.measure.engine import BACKEND, open_session, pack_model, without_engine
from walsh.measure.kernels import packages, without_triton
from walsh.measure.models import FLOAT_TOLERANCE, INT8_TOLERANCE, Model, choose_model
from walsh.measure.threads import each_way


def plain_provider(model: Model, prompt: Tensor, check: Check) -> Provider:
    """PyTorch's own choice of threads."""
    cache = model.plain.make_cache(1, prompt.shape[1] + 1)
    model.plain(prompt, cache)

    def run(inputs: Inputs) -> Tensor:
        cache.length = prompt.shape[1]
        return model.plain(inputs["ids"], cache)

    return Provider(
        "plain PyTorch float32",
        run,
        check=check,
        model_bytes=model.model_bytes(dense=True, bits=32),
    )


def cacheless_provider(model: Model, prompt: Tensor, check: Check) -> Provider:
    """The whole prefix again for every token: what a published gain by a cache is measured against."""
    tokens = prompt.shape[1] + 1
    return Provider(
        "plain PyTorch without a cache",
        lambda i: model.plain(torch.cat([prompt, i["ids"]], 1)),
        work=model.work(tokens, dense=True, bits=32),
        check=check,
        model_bytes=model.model_bytes(dense=True, bits=32),
    )


def own_provider(package: Any, model: Model, prompt: Tensor) -> Provider:
    past, head_dim = prompt.shape[1], model.n_embd // model.n_head
    make = package.module.KVCache
    caches = [make(1, past + 1, model.n_head, head_dim, device=model.setting.device) for _ in range(model.n_layer)]
    package.module.forward(prompt, model.codes, model.config, caches)
    lengths = torch.tensor([past])

    def run(inputs: Inputs) -> Any:
        for cache in caches:
            cache.truncate(lengths)
        return package.module.forward(inputs["ids"], model.codes, model.config, caches)

    return Provider(
        package.label,
        run,
        package.backend,
        model.work(1, dense=False, bits=8),
        exact_counts=package.backend == "torch",
        model_bytes=model.model_bytes(dense=False, bits=8),
    )


def engine_provider(model: Model, prompt: Tensor) -> Provider:
    """The engine under wasmtime, one thread, strict; a file of packed weights."""
    past = prompt.shape[1]
    session = open_session(model, capacity=past + 1)
    session.prefill(prompt[0].cpu().numpy())

    def run(inputs: Inputs) -> Tensor:
        session.truncate(past)
        session.step(int(inputs["ids"]))
        return torch.from_numpy(session.logits)[None, None]

    return Provider(
        "walsh engine (Wasm)",
        run,
        BACKEND,
        replace(model.work(1, dense=False, bits=2, head_bytes=1), peak="wasm"),
        check=check_strict(model, prompt),
        model_bytes=len(pack_model(model)),
    )


def make_case(setting: Setting, algebra: str, past: int) -> Iterable[Case | Absent]:
    """One token of the model of this algebra, and the peers that refused it."""
    model = choose_model(setting, algebra)
    name = f"decode/{algebra}/P{past}-C{model.n_embd}-V{model.vocabulary}"
    prompt = model.draw(7, 1, past)
    checks = token_checks(model, prompt, None)
    peers, refused = llama_cpp.providers(name, model, 1, prompt, checks)
    peers = each_way(setting, [plain_provider(model, prompt, checks(FLOAT_TOLERANCE)), *peers])
    own = each_way(setting, [own_provider(package, model, prompt) for package in packages(setting)])
    if not without_engine(""):
        own.append(engine_provider(model, prompt))
    yield Case(
        op="decode",
        name=name,
        shape=model.shape(B=1, P=past),
        dtype="float32",
        work=model.work(1, dense=True, bits=32),
        fresh=lambda seed: {"ids": model.draw(seed, 1, 1)},
        check=token_checks(model, prompt, 8)(INT8_TOLERANCE),
        providers=(*peers, cacheless_provider(model, prompt, checks(FLOAT_TOLERANCE)), *own),
        tokens=1,
        at_least=7,
    )
    yield from refused


def cases(setting: Setting) -> Iterable[Case | Absent]:
    yield from without_engine("decode/*")
    for algebra in ("octonion", "hadamard"):
        yield from make_case(setting, algebra, 64 if setting.quick else 128)
    yield from llama_cpp.without_llama_cpp(setting, "decode/*")
    yield from without_triton(setting, "decode/*")
