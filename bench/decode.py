"""One more token, batch 1, over a cache of P tokens, against the same weights as dense matrices in plain PyTorch.

limit: weights and head are read once per token
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting
from walsh.measure.checks import share
from walsh.measure.engine import BACKEND, open_session, pack_model, without_engine
from walsh.measure.kernels import packages, without_triton
from walsh.measure.models import FLOAT_TOLERANCE, INT8_TOLERANCE, Model, choose_model


def plain_provider(model: Model, prompt: Tensor) -> Provider:
    """PyTorch's own choice of threads."""
    cache = model.plain.make_cache(1, prompt.shape[1] + 1)
    model.plain(prompt, cache)

    def run(inputs: Inputs) -> Tensor:
        cache.length = prompt.shape[1]
        return model.plain(inputs["ids"], cache)

    return Provider(
        "plain PyTorch float32",
        run,
        check=check_token(model, prompt, None),
        model_bytes=model.model_bytes(dense=True, bits=32),
    )


def one_thread(provider: Provider) -> Provider:
    """The same on one thread, which is faster where a product is too small to share."""

    def run(inputs: Inputs) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return provider.run(inputs)
        finally:
            torch.set_num_threads(threads)

    # Its bytes are those of the other, which stands there on every machine.
    return replace(provider, name=f"{provider.name}, one thread", run=run, model_bytes=None)


def cacheless_provider(model: Model, prompt: Tensor) -> Provider:
    """The whole prefix again for every token: what a published gain by a cache is measured against."""
    tokens = prompt.shape[1] + 1
    return Provider(
        "plain PyTorch without a cache",
        lambda i: model.plain(torch.cat([prompt, i["ids"]], 1)),
        work=model.work(tokens, dense=True, bits=32),
        check=check_token(model, prompt, None),
        model_bytes=model.model_bytes(dense=True, bits=32),
    )


def check_token(model: Model, prompt: Tensor, bits: int | None) -> Any:
    """Logits of the new token against the definition, which reads the prompt once and keeps its cache."""
    past, logits = prompt.shape[1], model.continue_after(prompt, bits)

    def check(inputs: Inputs, output: Tensor, _: int) -> float:
        return share(output[0, -1], logits(inputs["ids"], past)[0, -1], INT8_TOLERANCE if bits else FLOAT_TOLERANCE)

    return check


def check_strict(model: Model, prompt: Tensor) -> Any:
    """The same of strict arithmetic, to the bit; the definition reads the prompt once and keeps its cache."""
    past, head_dim = prompt.shape[1], model.n_embd // model.n_head
    caches = [reference.strict.Int8KVCache(1, past + 1, model.n_head, head_dim) for _ in range(model.n_layer)]
    reference.strict.forward(prompt.cpu().numpy(), model.exported, model.config, caches)

    def check(inputs: Inputs, output: Tensor, _: int) -> float:
        for cache in caches:
            cache.truncate(np.array([past]))
        expected = reference.strict.forward(inputs["ids"].cpu().numpy(), model.exported, model.config, caches)
        return 0.0 if np.array_equal(output[0, -1].numpy(), expected[0, -1]) else float("inf")

    return check


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


def make_case(setting: Setting, algebra: str, past: int) -> Case:
    """One token of the model of this algebra."""
    model = choose_model(setting, algebra)
    prompt = model.draw(7, 1, past)
    plain = plain_provider(model, prompt)
    others = [one_thread(plain)] if setting.device == "cpu" and torch.get_num_threads() > 1 else []
    own = [own_provider(package, model, prompt) for package in packages(setting)]
    if not without_engine(""):
        own.append(engine_provider(model, prompt))
    return Case(
        op="decode",
        name=f"decode/{algebra}/P{past}-C{model.n_embd}-V{model.vocabulary}",
        shape=model.shape(B=1, P=past),
        dtype="float32",
        work=model.work(1, dense=True, bits=32),
        fresh=lambda seed: {"ids": model.draw(seed, 1, 1)},
        check=check_token(model, prompt, 8),
        providers=(plain, *others, cacheless_provider(model, prompt), *own),
        tokens=1,
        at_least=7,
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    yield from without_engine("decode/*")
    for algebra in ("octonion", "hadamard"):
        yield make_case(setting, algebra, 64 if setting.quick else 128)
    yield from without_triton(setting, "decode/*")
