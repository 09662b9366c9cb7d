"""One training step: loss, all gradients, clipping, AdamW; against the dense model of equal width.

The dense twin has eight times the linear weights and, at these weights, the same loss with float activations. The
learning rate is 0: the optimizer does all its work and the weights stay, so that every step can be checked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from walsh import reference
from walsh.measure.case import Absent, Case, Check, Inputs, Provider, Setting
from walsh.measure.checks import share
from walsh.measure.models import Model, choose_model
from walsh.measure.plain import Plain

Step = Callable[[Inputs], tuple[Tensor, Tensor]]


def make_step(loss: Callable[[Tensor, Tensor], Tensor], parameters: dict[str, Tensor]) -> Step:
    """From ids and targets to the loss and the gradient of the last norm's weight."""
    trained = list(parameters.values())
    optimizer = torch.optim.AdamW(trained, lr=0.0, foreach=True)

    def step(inputs: Inputs) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        value = loss(inputs["ids"], inputs["targets"])
        torch.autograd.backward(value)
        gradient = parameters["norm.weight"].grad
        assert gradient is not None
        kept = gradient.clone()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return value.detach(), kept

    return step


def check_step(model: Model, bits: int | None) -> Check:
    """Loss, and the gradient of the last norm from the definition's features and logits."""

    def check(inputs: Inputs, output: tuple[Tensor, Tensor], _: int) -> float:
        probes: dict[str, Any] = {}
        logits = model.logits(inputs["ids"], bits, probes)
        targets = inputs["targets"].cpu().numpy()
        loss = reference.cross_entropy(logits, targets)
        dlogits = reference.cross_entropy_backward(logits, targets, 1.0)[0]
        table, last = (model.weights[name].double().cpu().numpy() for name in ("embedding.weight", "norm.weight"))
        dweight = reference.rms_norm_backward(probes[f"x.{model.n_layer}"], last, dlogits @ table)[1]
        # One int8 rounding that falls the other way moves a gradient by far more than float32 does.
        allowed = (1e-3, 0.1) if bits else (1e-5, 1e-2)
        return max(abs(float(output[0]) / float(loss) - 1) / allowed[0], share(output[1], dweight, allowed[1]))

    return check


WIDTHS = (64, 128, 256, 512, 1024)
"""Of two layers with a vocabulary of bytes: from which width on is a hyper-complex step faster than a dense one?"""


def make_case(name: str, setting: Setting, model: Model, batch: int, tokens: int) -> Case:
    """A step of ``walsh.model`` against the dense twin, at one size."""
    walsh = importlib.import_module("walsh.model.transformer").Walsh
    made = importlib.import_module("walsh.model.config").WalshConfig.from_dict(model.config)
    mine = walsh(made, weights=model.weights).to(setting.device)
    dense = {name: w.clone().requires_grad_() for name, w in model.plain.weights.items()}
    twin = Plain(dense, model.config)

    def fresh(seed: int) -> dict[str, Tensor]:
        ids = model.draw(seed, batch, tokens + 1)
        return {"ids": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}

    total = batch * tokens
    return Case(
        op="train_step",
        name=name,
        shape=model.shape(B=batch, T=tokens),
        dtype="float32",
        work=model.work(total, dense=True, bits=32, passes=3),
        fresh=fresh,
        check=check_step(model, 8),
        providers=(
            Provider("dense, plain PyTorch float32", make_step(twin.loss, dense), check=check_step(model, None)),
            Provider(
                "walsh.model",
                make_step(mine, dict(mine.named_parameters())),
                "torch",
                model.work(total, dense=False, bits=32, passes=3),
            ),
        ),
        tokens=total,
        at_least=5,
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    model = choose_model(setting)
    batch, tokens = (2, 64) if setting.quick else (4, 128)
    yield make_case(f"train_step/B{batch}-T{tokens}-C{model.n_embd}-V{model.vocabulary}", setting, model, batch, tokens)
    for width in () if setting.quick else WIDTHS:
        yield make_case(f"train_step/width/C{width}", setting, Model(setting, 2, 8, width, 257), 8, 128)
