"""Configurations, schedules, batches, decay, checkpoints, metrics: each by its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import ALONE, TINY, tiny_config
from walsh.data import ByteTokenizer, Dataset, load_dataset
from walsh.errors import DataError, FormatError, ParameterError
from walsh.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from walsh.model.text import find_checkpoint
from walsh.model.transformer import Walsh
from walsh.training.batches import bytes_per_token, evaluation_batches, training_batch
from walsh.training.config import ScheduleConfig, load_config
from walsh.training.evaluation import evaluate
from walsh.training.metrics import Metrics, plot_loss, read_metrics, smooth
from walsh.training.optimizer import make_optimizer, set_rates, takes_decay
from walsh.training.schedule import decays, learning_rate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainning": {"steps": 3}}, "'trainning'.*'training'"),
        ({"training": {"step": 3}}, r"'training\.step'.*'steps'"),
        ({"model": {"n_embed": 64}}, "'n_embed' is unknown: did you mean 'n_embd'"),
        ({"model": {"head_mixing": True}}, "n_head"),
        ({"model": {"vocab_size": 300}}, "vocab_size.*tokenizer"),
        ({"training": {"steps": 0}}, r"training\.steps is 0"),
        ({"training": {"dtype": "int8"}}, r"training\.dtype is 'int8'"),
        ({"schedule": {"warmup_steps": 8}}, "warmup_steps is 8.*steps, 8"),
        ({"schedule": {"second_peak": 0.5}}, "second_peak has no meaning for kind 'cosine'"),
        ({"optimizer": {"beta1": 1.0}}, r"optimizer\.beta1 is 1\.0"),
        ({"data": {"tokenizer": "bpe"}}, r"data\.tokenizer"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate"),
    ],
)
def test_a_mistake_in_a_configuration_is_named(change: dict[str, Any], message: str) -> None:
    # Item 11: unknown configuration keys silently ignored.
    with pytest.raises(ParameterError, match=message):
        tiny_config(**change)


def test_overrides_and_files(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[training]\nsteps = 500\n", encoding="utf-8")
    config = load_config(path, ["training.steps=700", "data.corpus=file:some text.txt", "model.head_mixing=true"])
    assert (config.training.steps, config.data.corpus) == (700, "file:some text.txt")
    assert config.make_model_config(50).vocab_size == 50
    for override in ("steps=3", "training.steps", "training=3"):
        with pytest.raises(ParameterError, match=r"section\.key=value"):
            load_config(path, [override])
    with pytest.raises(ParameterError, match="configs/"):
        load_config(tmp_path / "none.toml")
    path.write_text("[training\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="not TOML"):
        load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_that_we_ship_are_valid(path: Path) -> None:
    if not path.stem.startswith("ablation"):
        load_config(path)


def test_cosine_schedule() -> None:
    schedule = ScheduleConfig(warmup_steps=10, minimum=0.1)
    assert learning_rate(schedule, 0, 110) == pytest.approx(0.1)
    assert learning_rate(schedule, 9, 110) == learning_rate(schedule, 10, 110) == 1.0
    assert learning_rate(schedule, 60, 110) == pytest.approx((1.0 + 0.1) / 2)
    assert learning_rate(schedule, 110, 110) == pytest.approx(0.1)
    assert all(decays(schedule, step, 110) for step in range(110))


def test_two_stage_schedule() -> None:
    schedule = ScheduleConfig(kind="two_stage", warmup_steps=0, minimum=0.0, second_peak=0.6, second_stage=0.5)
    found = [learning_rate(schedule, step, 100) for step in (0, 25, 49, 50, 75, 100)]
    assert found == pytest.approx([1.0, 0.75, 0.51, 0.6, 0.3, 0.0])
    assert decays(schedule, 49, 100)
    assert not decays(schedule, 50, 100)


def test_a_batch_is_a_function_of_seed_and_step_and_processes_share_it() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    ids, targets = training_batch(tokens, 7, 3, 8, 16)
    assert ids.shape == targets.shape == (8, 16)
    assert torch.equal(targets, ids + 1)
    assert torch.equal(training_batch(tokens, 7, 3, 8, 16)[0], ids)
    assert not torch.equal(training_batch(tokens, 7, 4, 8, 16)[0], ids)
    assert not torch.equal(training_batch(tokens, 8, 3, 8, 16)[0], ids)
    shares = [training_batch(tokens, 7, 3, 8, 16, rank, 4)[0] for rank in range(4)]
    assert torch.equal(torch.stack(shares, dim=1).reshape(8, 16), ids)
    starts = {int(training_batch(tokens, 1, step, 64, 998)[0][0, 0]) for step in range(20)}
    assert starts == {0, 1}  # every place is reached, the last one too
    with pytest.raises(DataError, match=r"16 tokens.*needs 17"):
        training_batch(tokens[:16], 7, 3, 8, 16)


def test_evaluation_covers_every_token_once() -> None:
    tokens = np.arange(101, dtype=np.uint16)
    batches = list(evaluation_batches(tokens, 3, 16))
    seen = torch.cat([targets[targets >= 0] for _, targets in batches])
    assert seen.tolist() == list(range(1, 101))
    assert len(list(evaluation_batches(tokens, 3, 16, limit=2))) == 2
    with pytest.raises(DataError):
        next(evaluation_batches(tokens[:1], 3, 16))


def test_bits_per_byte_is_its_definition(dataset: Dataset) -> None:
    model = Walsh(tiny_config().make_model_config(dataset.tokenizer.vocab_size))
    found = evaluate(model, dataset.validation, dataset.tokenizer, ALONE, 4, 16)
    ids = torch.tensor(dataset.validation.astype(np.int64))
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1])[0].double().log_softmax(-1).detach()
        nats -= float(logits[torch.arange(len(window) - 1), window[1:]].sum())
    volume = len(dataset.tokenizer.decode(dataset.validation[1:]).encode())
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(nats / found.tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / volume, rel=1e-5)


def test_bytes_per_token() -> None:
    assert bytes_per_token(ByteTokenizer()).tolist() == [1] * 256 + [0]


@pytest.mark.parametrize("algebra", ["octonion", "hadamard"])
def test_only_matrices_decay(algebra: str) -> None:
    # Item 17: weight decay on scales.
    changes = {"algebra": algebra, "n_head": 8, "head_mixing": True, "hadamard_size": 8, "hash_embeddings": 2}
    model = Walsh(tiny_config(model=changes).make_model_config(257))
    matrices = {n for n, p in model.named_parameters() if takes_decay(n, p)}
    expected = {n for n, _ in model.named_parameters() if ".tables." in n or n.split(".")[-1] == "weight"}
    assert matrices == {name for name in expected if "norm" not in name}
    optimizer = make_optimizer(model, tiny_config(optimizer={"weight_decay": 0.5}).optimizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rates(optimizer, 0.1, 0.5)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected_value = before[name] * (1 - 0.1 * 0.5) if name in matrices else before[name]
        torch.testing.assert_close(parameter.detach(), expected_value)


def test_a_checkpoint_is_whole_or_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint({"a": torch.arange(4.0)}, {"n": 1}, {"kind": "bytes"}, {"m": torch.ones(2)}, {"step": 5})
    folder = tmp_path / "run" / "checkpoint"
    with pytest.raises(DataError, match="walsh train"):
        load_checkpoint(folder)
    save_checkpoint(folder, checkpoint)
    loaded = load_checkpoint(folder)
    assert torch.equal(loaded.weights["a"], checkpoint.weights["a"])
    assert (loaded.state, loaded.model, loaded.tokenizer) == ({"step": 5}, {"n": 1}, {"kind": "bytes"})
    assert load_checkpoint(folder, optimizer=False).optimizer == {}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FormatError, match="damaged"):
        load_checkpoint(folder)
    weights.unlink()
    with pytest.raises(FormatError, match="missing"):
        load_checkpoint(folder)
    record = folder / "checkpoint.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"version": 1', '"version": 9'), encoding="utf-8")
    with pytest.raises(FormatError, match="version 9"):
        load_checkpoint(folder)
    record.write_text("[]", encoding="utf-8")
    with pytest.raises(FormatError):
        load_checkpoint(folder)


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, Checkpoint({"a": torch.zeros(2)}, {}, {}, state={"step": 1}))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    second = Checkpoint({"a": torch.ones(2)}, {}, {}, state={"step": 2})
    with monkeypatch.context() as patch:
        patch.setattr("walsh.model.checkpoint.json.dumps", broken)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, second)
    assert load_checkpoint(folder).state == {"step": 1}
    save_checkpoint(folder, second)
    assert load_checkpoint(folder).state == {"step": 2}


def test_a_process_that_dies_between_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "checkpoint"
    save_checkpoint(folder, Checkpoint({"a": torch.zeros(2)}, {}, {}, state={"step": 1}))
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if target == folder:
            raise KeyboardInterrupt
        return rename(self, target)

    second = Checkpoint({"a": torch.ones(2)}, {}, {}, state={"step": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, second)
    assert not folder.exists()
    assert load_checkpoint(folder).state == load_checkpoint(find_checkpoint(folder.parent)).state == {"step": 1}
    save_checkpoint(folder, second)
    assert load_checkpoint(folder).state == {"step": 2}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_missing_data_is_an_error_and_never_zeros(tmp_path: Path, dataset: Dataset) -> None:
    # Item 11, second half: missing data that trains on zeros.
    with pytest.raises(DataError, match="walsh data prepare"):
        load_dataset(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(dataset.tokenizer.to_dict()), encoding="utf-8")
    with pytest.raises(DataError, match="train"):
        load_dataset(tmp_path)


def test_metrics_survive_a_crash_and_drop_what_is_repeated(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, tensorboard=False)
    for step in range(4):
        metrics.add("step", step, loss=2.0 - step / 10, learning_rate=0.1)
    metrics.add("evaluation", 4, loss=math.nan, bits_per_byte=1.0)
    metrics.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "st')
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2, 3, 4]
    assert read_metrics(path)[-1]["loss"] is None
    Metrics(tmp_path, 2, tensorboard=False).close()
    assert [r["step"] for r in read_metrics(path)] == [0, 1]
    again = Metrics(tmp_path, 2, tensorboard=False)
    again.add("evaluation", 2, loss=1.5, bits_per_byte=2.0)
    again.add("step", 2, loss=1.0, learning_rate=0.1)
    again.close()
    # What was seen after two steps stays, step 2 itself is done again; a finished run evaluates again, too.
    Metrics(tmp_path, 2, tensorboard=False).close()
    assert [(r["kind"], r["step"]) for r in read_metrics(path)] == [("step", 0), ("step", 1), ("evaluation", 2)]
    Metrics(tmp_path, 2, tensorboard=False, repeated=True).close()
    assert [(r["kind"], r["step"]) for r in read_metrics(path)] == [("step", 0), ("step", 1)]
    path.write_text('nonsense\n{"kind": "step", "step": 1}\n', encoding="utf-8")
    with pytest.raises(FormatError, match="line 1"):
        read_metrics(path)


def test_smoothing_starts_at_the_first_value() -> None:
    assert smooth(np.full(50, 3.0)).tolist() == pytest.approx([3.0] * 50)
    assert smooth(np.array([4.0, 0.0]), keep=0.5).tolist() == pytest.approx([4.0, 4 / 3])


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, tensorboard=True)
    for step in range(4):
        metrics.add("step", step, loss=2.0, learning_rate=0.1)
    metrics.add("evaluation", 4, loss=1.0, bits_per_byte=1.5)
    metrics.add("sample", 4, text="hello")
    metrics.close()
    assert plot_loss(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())


def test_tiny_is_complete() -> None:
    assert tiny_config().training.steps == TINY["training"]["steps"]
