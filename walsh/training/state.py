"""The state of a run beyond its weights: counters, Adam's moments, random states, as checkpoints keep them.

Moments are named ``exp_avg.NAME``, ``exp_avg_sq.NAME`` and ``step.NAME``; sharded ones are gathered first and
distributed again, so that a run may be resumed by another number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from walsh.training.config import TrainingConfig

SMOOTHING = 0.95
"""Of the loss that is watched for divergence."""

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

_FREE = {
    "data": ("folder",),
    "training": (
        "steps",  # stretches the schedule
        "batch_size",  # the product of the next two and of the number of processes is what counts
        "gradient_accumulation",
        "shard",
        "activation_checkpointing",
        "compile",
        "checkpoint_interval",
        "divergence",
        "tensorboard",
    ),
}
"""Keys that a resumed run may have otherwise, besides all of ``evaluation``."""


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        step: optimizer steps done.
        smoothed: average loss, None at first.
        lowest: of it so far.
        best: lowest loss on held-out text so far.
    """

    step: int = 0
    smoothed: float | None = None
    lowest: float = math.inf
    best: float = math.inf

    def watch(self, loss: float, limit: float) -> bool:
        """Take in the loss of a step; whether it has diverged: not finite, or ``limit`` times the lowest average."""
        if not math.isfinite(loss):
            return True
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = min(self.lowest, self.smoothed)
        return limit > 0 and self.smoothed > limit * self.lowest

    def to_dict(self) -> dict[str, Any]:
        """As JSON; infinity, which JSON lacks, becomes null."""
        return {key: None if value == math.inf else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Progress:
        """What :meth:`to_dict` described."""
        known: dict[str, Any] = {key: value for key, value in record.items() if value is not None}
        return cls(**known)


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU of the first process; every process calls this."""
    weights: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    return weights


def gather_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Tensor]:
    """Moments (in the first process) and random states; every process calls this."""
    states: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE).get("state", {})
    tensors = {f"{kind}.{name}": tensor for name, moments in states.items() for kind, tensor in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, saved: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`gather_optimizer` returned."""
    tensors = dict(saved)
    torch.set_rng_state(tensors.pop("random.cpu"))
    if (state := tensors.pop("random.cuda", None)) is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    states: dict[str, Any] = {}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition(".")
        states.setdefault(parameter, {})[kind] = tensor
    # Every process has read the whole file, so each needs the whole record and takes its own shard.
    everywhere = StateDictOptions(full_state_dict=True)
    record: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer, options=everywhere))
    set_optimizer_state_dict(model, optimizer, record | {"state": states}, options=everywhere)


def changed_keys(config: TrainingConfig, global_batch: int, state: Mapping[str, Any]) -> list[str]:
    """Keys that make a resumed run another run, as ``section.key``.

    Args:
        config: of the resumed run.
        global_batch: its windows per step.
        state: of the interrupted run's checkpoint.
    """
    before = state["config"]
    after = config.model_dump(mode="json")
    after.pop("evaluation")
    batch = [] if state["global_batch"] == global_batch else ["training.batch_size (times accumulation and processes)"]
    return batch + [
        f"{section}.{key}"
        for section, values in after.items()
        for key in {**values, **before.get(section, {})}
        if key not in _FREE.get(section, ()) and values.get(key) != before.get(section, {}).get(key)
    ]
