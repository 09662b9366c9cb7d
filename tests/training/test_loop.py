"""Runs: exact resume, interruption, divergence, precision, accumulation, and several processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import make_trainer, tiny_config
from walsh.data import Dataset
from walsh.errors import BackendError, DataError, ParameterError
from walsh.model.checkpoint import load_checkpoint
from walsh.training.distributed import choose_device
from walsh.training.loop import Trainer
from walsh.training.metrics import read_metrics
from walsh.training.state import Progress


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "step"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_repeats_every_bit(dataset: Dataset, tmp_path: Path, dtype: str) -> None:
    config = tiny_config(training={"dtype": dtype})
    whole = make_trainer(config, dataset, tmp_path / "whole")
    outcome = whole.train()
    assert (outcome.reason, outcome.step, outcome.tokens) == ("finished", 8, 8 * 2 * 2 * 16)
    broken = make_trainer(config, dataset, tmp_path / "broken")
    stop_after(broken, 3)
    assert broken.train().reason == "interrupted"
    torch.rand(7)  # whatever happens in between must not matter
    again = make_trainer(config, dataset, tmp_path / "broken", resume=True)
    assert again.progress.step == 3
    assert again.train().reason == "finished"
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    ends = [load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "broken")]
    assert same(dict(ends[0].weights), dict(ends[1].weights))
    assert same(dict(ends[0].optimizer), dict(ends[1].optimizer))
    assert ends[0].state == ends[1].state
    assert {name.partition(".")[0] for name in ends[0].optimizer} == {"exp_avg", "exp_avg_sq", "step", "random"}


def stop_after(trainer: Trainer, steps: int) -> None:
    """Ctrl-C in the middle of a step."""
    original = trainer.compute_gradients

    def interrupted() -> torch.Tensor:
        if trainer.progress.step == steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original()

    trainer.compute_gradients = interrupted  # type: ignore[method-assign]  # a test's seam


def test_the_interrupt_handler_is_given_back(dataset: Dataset, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tiny_config(), dataset, tmp_path / "run")
    stop_after(trainer, 2)
    assert trainer.train().step == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_is_not_overwritten_and_not_mixed_with_another(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_config(training={"steps": 3})
    with pytest.raises(DataError, match="no checkpoint"):
        make_trainer(config, dataset, tmp_path, resume=True)
    make_trainer(config, dataset, tmp_path).train()
    with pytest.raises(ParameterError, match="--resume"):
        make_trainer(config, dataset, tmp_path)
    with pytest.raises(ParameterError, match=r"optimizer\.learning_rate"):
        make_trainer(tiny_config(optimizer={"learning_rate": 0.02}), dataset, tmp_path, resume=True)
    with pytest.raises(ParameterError, match=r"model\.n_layer"):
        make_trainer(tiny_config(model={"n_layer": 2}), dataset, tmp_path, resume=True)
    longer = make_trainer(tiny_config(training={"steps": 5}), dataset, tmp_path, resume=True)
    assert longer.train().step == 5


def test_it_learns_evaluates_and_samples(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_config(training={"steps": 60, "batch_size": 8}, evaluation={"interval": 20})
    outcome = make_trainer(config, dataset, tmp_path).train()
    found = losses(tmp_path)
    assert found[0] == pytest.approx(math.log(257), rel=0.05)
    assert found[-1] < 3.0
    assert outcome.evaluation is not None
    assert outcome.evaluation.bits_per_byte < 4.5
    assert outcome.evaluation.tokens == len(dataset.validation) - 1
    records = read_metrics(tmp_path / "metrics.jsonl")
    samples = [record["text"] for record in records if record["kind"] == "sample"]
    assert len(samples) == 3
    assert all(text.startswith("The ") for text in samples)
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [20, 40, 60]
    assert {path.name for path in tmp_path.iterdir()} == {"best", "checkpoint", "metrics.jsonl", "loss.png"}
    assert load_checkpoint(tmp_path / "best").optimizer == {}


def test_accumulated_gradients_are_those_of_the_whole_batch(dataset: Dataset) -> None:
    grads = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        config = tiny_config(training={"batch_size": batch, "gradient_accumulation": accumulation})
        trainer = make_trainer(config, dataset)
        loss = trainer.compute_gradients()
        grads.append(torch.cat([loss[None], *(p.grad.reshape(-1) for p in trainer.model.parameters())]))
    for other in grads[1:]:
        assert float((other - grads[0]).norm()) <= 1e-6 * float(grads[0].norm())


def test_gradients_are_clipped(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tiny_config(optimizer={"gradient_clip": 0.01}), dataset)
    seen: list[float] = []
    step = trainer.optimizer.step

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.model.parameters())))
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer.optimizer, "step", look)
    trainer.train()
    assert max(seen) == pytest.approx(0.01, rel=1e-3)


def test_float16_has_a_scaler_and_skips_a_step_that_overflows(dataset: Dataset) -> None:
    # Item 12: float16 without a gradient scaler.
    assert not make_trainer(tiny_config(), dataset).scaler.is_enabled()
    trainer = make_trainer(tiny_config(training={"dtype": "float16", "divergence": 0}), dataset)
    assert trainer.scaler.is_enabled()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    trainer._step()
    assert trainer.scaler.get_scale() == 2.0**119
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer._step()
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"steps": 50, "checkpoint_interval": 2, "divergence": 1.5}
    trainer = make_trainer(tiny_config(training=changes), dataset, tmp_path)
    original = trainer.compute_gradients

    def explode() -> torch.Tensor:
        return original() * (1.0 if trainer.progress.step < 4 else math.inf)

    trainer.compute_gradients = explode  # type: ignore[method-assign]  # a test's seam
    outcome = trainer.train()
    assert (outcome.reason, outcome.step, outcome.evaluation) == ("diverged", 5, None)
    assert load_checkpoint(tmp_path / "checkpoint").state["progress"]["step"] == 4


def test_divergence_is_a_multiple_of_the_lowest_average() -> None:
    progress = Progress()
    assert not any(progress.watch(loss, 2.0) for loss in [4.0] * 5 + [1.0] * 200)
    assert progress.lowest == pytest.approx(1.0, abs=0.01)
    assert not progress.watch(10.0, 2.0)  # one bad batch is no divergence
    assert any(progress.watch(10.0, 2.0) for _ in range(5))
    assert Progress().watch(math.nan, 0.0)
    assert Progress.from_dict(json.loads(json.dumps(Progress().to_dict()))) == Progress()


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BackendError, match="--device cpu"):
        choose_device("nonsense")
    assert choose_device("cpu") == torch.device("cpu")


PEAK = """
import sys, torch
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh
def peak():
    # Not ru_maxrss, which a child inherits from a large parent.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
model = Walsh(WalshConfig(n_layer=0, n_head=1, n_embd=16, block_size=1024, vocab_size=16384))
ids = torch.zeros(2, 1024, dtype=torch.int64)
model.chunk_size = 64
model(ids[:1, :1], ids[:1, :1])
before = peak()
loss = model(ids, ids) if sys.argv[1] == "chunked" else kernels.cross_entropy(model(ids), ids)
loss.backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_peak_memory_of_the_chunked_loss_against_the_plain_one() -> None:
    peaks = {
        kind: float(
            subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, check=True, text=True).stdout
        )
        for kind in ("chunked", "plain")
    }
    logits = 2048 * 16384 * 4 / 2**20  # MiB
    assert peaks["plain"] > 1.5 * logits  # the logits and what their gradient is made from
    # One chunk of logits is 1/32 of them; weights' gradients, copies and PyTorch's own pages come on top.
    assert peaks["chunked"] < peaks["plain"] / 5


def test_tensor_names_do_not_depend_on_compiling(dataset: Dataset, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_config(training={"compile": True}), dataset, tmp_path)
    assert set(trainer.model.state_dict()) == set(trainer.model.config.weight_shapes())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_follows_the_eager_one(dataset: Dataset, tmp_path: Path) -> None:
    for on in (False, True):
        config = tiny_config(training={"compile": on, "steps": 3})
        make_trainer(config, dataset, tmp_path / str(on)).train()
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_processes_give_the_gradients_of_one(dataset: Dataset, tmp_path: Path, shard: str) -> None:
    worker = Path(__file__).with_name("worker.py")
    alone = make_trainer(tiny_config(training={"batch_size": 4}), dataset, tmp_path / "alone")
    alone.compute_gradients()
    expected = {name: parameter.grad.clone() for name, parameter in alone.model.named_parameters()}
    alone.train()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(worker), shard, str(tmp_path)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "TOKENS": str(tmp_path / "tokens")}
    save_tokens(dataset, tmp_path / "tokens")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert set(found) == set(expected)
    errors = {name: float((found[name] - gradient).norm() / gradient.norm()) for name, gradient in expected.items()}
    assert max(errors.values()) <= 1e-5, errors  # a gradient of four numbers has no room to average its roundings
    whole = [torch.cat([tensors[name].reshape(-1) for name in expected]) for tensors in (found, expected)]
    assert float((whole[0] - whole[1]).norm()) <= 1e-6 * float(whole[1].norm())
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    # Interrupted with two processes, resumed with one.
    config = tiny_config(training={"batch_size": 4, "shard": shard, "steps": 10})
    assert load_checkpoint(tmp_path / "run" / "checkpoint").state["progress"]["step"] == 8
    ours = make_trainer(config, dataset, tmp_path / "run", resume=True)
    theirs = make_trainer(
        tiny_config(training={"batch_size": 4, "steps": 10}), dataset, tmp_path / "alone", resume=True
    )
    for trainer in (ours, theirs):
        assert trainer.train().step == 10
    assert losses(tmp_path / "run")[8:] == pytest.approx(losses(tmp_path / "alone")[8:], rel=1e-4)


def save_tokens(dataset: Dataset, folder: Path) -> None:
    from walsh.data import write_tokens

    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(dataset.tokenizer.to_dict()), encoding="utf-8")
    for name, tokens in (("train", dataset.train), ("validation", dataset.validation)):
        # One document without its end token, which the file adds again.
        write_tokens(folder / f"{name}.tokens", [tokens[:-1].astype("int64")], dataset.tokenizer)
