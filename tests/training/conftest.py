"""A corpus of a few kilobytes and a model that learns it in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from walsh.data import Dataset, open_corpus, prepare
from walsh.training.config import TrainingConfig, parse_config
from walsh.training.distributed import World
from walsh.training.loop import Trainer

ALONE = World(0, 1, torch.device("cpu"))

TINY: dict[str, Any] = {
    "model": {"algebra": "octonion", "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16},
    "optimizer": {"learning_rate": 0.01},
    "schedule": {"warmup_steps": 2},
    "training": {"steps": 8, "batch_size": 2, "gradient_accumulation": 2, "tensorboard": False, "seed": 3},
    "evaluation": {"interval": 4, "batches": 1, "sample_tokens": 3},
}


def tiny_config(**changes: dict[str, Any]) -> TrainingConfig:
    return parse_config({s: {**TINY.get(s, {}), **changes.get(s, {})} for s in {**TINY, **changes}}, "test")


def make_trainer(config: TrainingConfig, dataset: Dataset, folder: Path | None = None, **more: Any) -> Trainer:
    return Trainer(config, dataset, folder, ALONE, Console(quiet=True), quiet=True, **more)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.txt"
    text.write_text("".join(f"{i} times {i} is {i * i}, naïve as that may be.\n" for i in range(150)), encoding="utf-8")
    return prepare(open_corpus(f"file:{text}"), folder / "tokens")
