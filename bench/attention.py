"""Causal attention against ``scaled_dot_product_attention``: a whole prompt, and one new token over a cache.

o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s         4 B H d flops per visible pair; q, k, v, o moved once
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import TOLERANCES, normal, share, to_double
from walsh.measure.kernels import own, without_triton


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's kernel, whose heads come before tokens."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2)


def one(setting: Setting, b: int, t: int, s: int, h: int, d: int) -> Case:
    """T queries over S keys, T = S or 1."""

    def fresh(seed: int) -> dict[str, Tensor]:
        sizes = {"q": t, "k": s, "v": s}
        return {name: normal(seed + i, setting, b, n, h, d) for i, (name, n) in enumerate(sizes.items())}

    def check(inputs: Inputs, output: Tensor, seed: int) -> float:
        row = seed % b
        expected = reference.attention(*(to_double(inputs[name][row : row + 1]) for name in "qkv"))
        return share(output[row : row + 1], expected, TOLERANCES["float32"])

    pairs = t * (t + 1) / 2 if t > 1 else s
    return Case(
        op="attention",
        name=f"attention/{'prompt' if t > 1 else 'decode'}/B{b}-T{t}-S{s}-H{h}-d{d}/float32",
        shape={"B": b, "T": t, "S": s, "H": h, "d": d},
        dtype="float32",
        work=Work(4.0 * b * h * d * pairs, 8.0 * b * h * d * (t + s)),
        fresh=fresh,
        check=check,
        providers=(
            Provider("PyTorch sdpa", lambda i: plain(i["q"], i["k"], i["v"])),
            *own(setting, "attention", lambda f, i: f(i["q"], i["k"], i["v"])),
        ),
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    t = 128 if setting.quick else 512
    yield one(setting, 4, t, t, 8, 64)
    yield one(setting, 1, 1, 2 * t, 8, 64)
    yield from without_triton(setting, "attention/*")
