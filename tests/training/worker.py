"""One of two processes: the gradients of a first step, then a whole run. Started by torchrun in test_loop.py."""

import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from tests.training.conftest import tiny_config
from walsh.data import load_dataset
from walsh.training.distributed import open_world, whole
from walsh.training.loop import Trainer

shard, folder = sys.argv[1], Path(sys.argv[2])
config = tiny_config(training={"batch_size": 2, "shard": shard})
data = load_dataset(Path(os.environ["TOKENS"]))
with open_world("cpu") as world:
    trainer = Trainer(config, data, None, world, Console(quiet=True))
    trainer.compute_gradients()
    gradients = {name: whole(parameter.grad) for name, parameter in trainer.model.named_parameters()}
    if world.main:
        torch.save(gradients, folder / "gradients.pt")
    Trainer(config, data, folder / "run", world, Console(quiet=True)).train()
