"""AdamW with decay where decay belongs: on weight matrices, never on scales, norms or importance.

beta, alpha and the weights of norms set the scale of what passes through them; decaying them would shrink the signal of
every layer a little at each step, which a ternary layer cannot make up for, since its weights have no scale of their
own.
"""

from __future__ import annotations

import torch
from torch import nn

from walsh.training.config import OptimizerConfig


def takes_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of weights: embeddings, linear layers and mixers are, scales are not."""
    leaf = name.rpartition(".")[2]
    return parameter.ndim >= 2 and leaf not in ("alpha", "beta", "importance")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, in two groups: with decay and without.

    Args:
        model: whose parameters; their names decide, see :func:`takes_decay`.
        config: rates.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for name, parameter in named if takes_decay(name, parameter) is decay],
            "weight_decay": config.weight_decay if decay else 0.0,
            "decays": decay,
        }
        for decay in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        foreach=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set both for the step to come; groups without decay keep none."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
