"""The loss of a tied head without its logits, forward and both gradients, against plain PyTorch.

    loss = mean(log sum exp(x table^T) - logit of the target)        x [M, C], table [V, C]: 6 M C V flops

The gain is memory: the plain loss holds [M, V] logits and their gradient, the chunked one [chunk, V]; bytes that were
alive at once are counted exactly (``walsh bench counts``). Liger-Kernel and cut-cross-entropy are peers on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import TOLERANCES, generator, normal, share, to_double
from walsh.measure.kernels import own, peer, without_triton

PEERS = (("Liger-Kernel", "liger-kernel"), ("cut-cross-entropy", "cut-cross-entropy"))


def plain(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(x @ table.t(), targets, ignore_index=-1)


def pull(loss: Any, inputs: Inputs, table: Tensor) -> tuple[Tensor, ...]:
    x, weights = inputs["x"].detach().requires_grad_(), table.detach().requires_grad_()
    value = loss(x, weights, inputs["targets"])
    return (value.detach(), *torch.autograd.grad(value, (x, weights)))


def other_packages(setting: Setting, table: Tensor) -> list[Provider]:
    found = []
    if peer("", "", "liger-kernel", setting, gpu_only=True) is None:
        fused = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(ignore_index=-1)
        found.append(Provider("Liger-Kernel", lambda i: pull(lambda x, w, t: fused(w, x, t), i, table)))
    if table.dtype != torch.float32 and peer("", "", "cut-cross-entropy", setting, gpu_only=True) is None:
        cut = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        found.append(
            Provider("cut-cross-entropy", lambda i: pull(lambda x, w, t: cut(x, w, t, ignore_index=-1), i, table))
        )
    return found


def one(setting: Setting, m: int, v: int, c: int, dtype: torch.dtype = torch.float32) -> Case:
    table = (normal(1, setting, v, c) * c**-0.5).to(dtype)
    wide, name = to_double(table), str(dtype).removeprefix("torch.")
    # Plain PyTorch rounds 16-bit logits, and the loss itself to 8 bits.
    loss_tolerance, sum_tolerance = (1e-5, 1e-3) if dtype == torch.float32 else (1e-2, 5e-2)

    def fresh(seed: int) -> dict[str, Tensor]:
        targets = torch.randint(-1, v, (m,), generator=generator(seed, setting), device=setting.device)
        return {"x": normal(seed, setting, m, c).to(dtype), "targets": targets}

    def check(inputs: Inputs, output: tuple[Tensor, ...], seed: int) -> float:
        targets = inputs["targets"].cpu().numpy()
        x = to_double(inputs["x"])
        rows = sorted({int(seed % m), m - 1})
        loss = reference.linear_cross_entropy(x, wide, targets)
        logits = x[rows] @ wide.T
        soft = torch.softmax(torch.from_numpy(logits), 1).numpy()
        soft[range(len(rows)), targets[rows]] -= 1
        soft[targets[rows] < 0] = 0
        dx = soft @ wide / (targets >= 0).sum()
        return max(
            abs(float(output[0]) / float(loss) - 1) / loss_tolerance,
            share(output[1][rows], dx, 10 * TOLERANCES[name]),
            # Softmax and one-hot both sum to 1 over the vocabulary: columns of dtable cancel.
            float(output[2].float().sum(0).abs().max()) / sum_tolerance,
        )

    plain_bytes = float(table.element_size() * (2 * m * c + 2 * v * c))
    return Case(
        op="cross_entropy",
        name=f"cross_entropy/linear/M{m}-V{v}-C{c}/{name}",
        shape={"M": m, "V": v, "C": c},
        dtype=name,
        work=Work(6.0 * m * v * c, plain_bytes, None, name),
        fresh=fresh,
        check=check,
        providers=(
            Provider("PyTorch", lambda i: pull(plain, i, table), exact_counts=setting.device == "cpu"),
            *other_packages(setting, table),
            *own(setting, "linear_cross_entropy", lambda f, i: pull(f, i, table)),
        ),
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, v, c = (256, 8192, 256) if setting.quick else (1024, 50257, 512)
    yield one(setting, m, v, c)
    if setting.device != "cpu":
        # What cut-cross-entropy takes: its backward refuses float32.
        yield one(setting, m, v, c, torch.bfloat16)
    for name, package in PEERS:
        missing = peer("cross_entropy/linear*", name, package, setting, gpu_only=True)
        if missing:
            yield missing
    yield from without_triton(setting, "cross_entropy/*")
