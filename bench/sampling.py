"""Drawing one token from logits: the pinned sampler against the usual PyTorch pipeline.

    penalty, temperature, sort, top-k, softmax, top-p, draw                  logits [1, V]

The usual pipeline (``topk``, ``softmax``, ``multinomial``) draws from the same distribution with other bits: it is the
baseline for time only, and checked for drawing one of the k likeliest.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import normal
from walsh.measure.kernels import own, without_triton

TOP_K, TOP_P, TEMPERATURE = 50, 0.9, 0.8


def usual(logits: Tensor) -> Tensor:
    values, ids = (logits / TEMPERATURE).topk(TOP_K)
    p = values.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p > TOP_P, 0)
    return ids.gather(-1, p.multinomial(1)).squeeze(-1)


def check(inputs: Inputs, output: Tensor, _: int) -> float:
    expected = reference.sample(inputs["logits"].cpu().numpy(), None, TEMPERATURE, TOP_K, TOP_P, 1.0, inputs["seed"], 7)
    return 0.0 if output.tolist() == expected.tolist() else float("inf")


def check_likely(inputs: Inputs, output: Tensor, _: int) -> float:
    return 0.0 if bool((inputs["logits"].topk(TOP_K).indices == output[:, None]).any()) else float("inf")


def cases(setting: Setting) -> Iterable[Case | Absent]:
    v = 8192 if setting.quick else 50257

    def call(function: object, i: Inputs) -> Tensor:
        return function(i["logits"], None, TEMPERATURE, TOP_K, TOP_P, 1.0, i["seed"], 7)  # type: ignore[operator, no-any-return]  # a sampler

    yield Case(
        op="sampling",
        name=f"sampling/top_k_top_p/V{v}/float32",
        shape={"B": 1, "V": v},
        dtype="float32",
        work=Work(0, 4.0 * v),
        fresh=lambda seed: {"logits": normal(seed, setting, 1, v) * 3, "seed": seed},
        check=check,
        providers=(
            Provider("topk, softmax, multinomial", lambda i: usual(i["logits"]), check=check_likely),
            *own(setting, "sample", call),
        ),
        tokens=1,
    )
    yield from without_triton(setting, "sampling/*")
