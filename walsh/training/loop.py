"""The training loop.

    every step:  gradients of one global batch, clipped; AdamW at the scheduled rates; one line of metrics
    sometimes:   evaluation in bits per byte, a sample, a checkpoint

A run is a function of its configuration: resumed from a checkpoint it gives the bits that it would have given without
the interruption (on CPU; GPUs order sums as they like). Ctrl-C finishes the step, saves and stops.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from walsh.data.prepare import Dataset
from walsh.errors import ParameterError
from walsh.model.checkpoint import Checkpoint, load_checkpoint, present, save_checkpoint
from walsh.model.generation import SamplingConfig, generate
from walsh.model.transformer import Walsh
from walsh.training.batches import training_batch
from walsh.training.config import TrainingConfig
from walsh.training.distributed import World, synchronised, whole, wrap
from walsh.training.evaluation import Evaluation, evaluate
from walsh.training.metrics import Metrics, make_progress, plot_loss
from walsh.training.optimizer import make_optimizer, set_rates
from walsh.training.schedule import decays, learning_rate
from walsh.training.state import Progress, changed_keys, gather_optimizer, gather_weights, restore_optimizer


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        reason: ``finished``, ``interrupted`` or ``diverged``.
        step: optimizer steps done in all.
        evaluation: of the whole held-out text, if it finished.
        seconds: of this session.
        tokens: that this session trained on.
    """

    reason: str
    step: int
    evaluation: Evaluation | None
    seconds: float
    tokens: int


class Trainer:
    """One run.

    Args:
        config: all of it.
        dataset: tokens to train on and to hold out.
        folder: for checkpoints and metrics; None keeps nothing.
        world: the processes.
        console: to talk to.
        resume: go on from the checkpoint in the folder.
        quiet: print nothing.

    Raises:
        ParameterError: a resumed run with another configuration, or a folder in use without ``resume``.
        DataError, FormatError: no checkpoint to resume, or a damaged one.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        folder: Path | None,
        world: World,
        console: Console | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        self.config, self.dataset, self.folder, self.world = config, dataset, folder, world
        self.console = console or Console(stderr=True)
        self.quiet = quiet or not world.main
        run = config.training
        torch.manual_seed(run.seed)
        self.progress = Progress()
        checkpoint = self._open_checkpoint(resume)
        model_config = config.make_model_config(dataset.tokenizer.vocab_size)
        weights = checkpoint.weights if checkpoint else None
        self.model = Walsh(model_config, seed=run.seed, weights=weights).to(world.device)
        self.model.activation_checkpointing = run.activation_checkpointing
        self.model.chunk_size = run.chunk_size
        if run.compile:
            for block in self.model.blocks:
                block.compile()
        self.module = wrap(self.model, world, run.shard)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.dtype = None if run.dtype == "float32" else getattr(torch, run.dtype)
        # float16 loses small gradients without a scaler; the other dtypes have the range of float32.
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)
        if checkpoint:
            restore_optimizer(self.model, self.optimizer, world.device, checkpoint.optimizer)
            self.scaler.load_state_dict(checkpoint.state["scaler"])
            self.progress = Progress.from_dict(checkpoint.state["progress"])
        self.metrics: Metrics | None = None
        self._stop = False

    def train(self) -> Outcome:
        """Train until the configured number of steps, an interruption or divergence."""
        run, began, first = self.config.training, time.perf_counter(), self.progress.step
        keep = self.folder if self.world.main else None
        self.metrics = Metrics(keep, first, run.tensorboard, repeated=first >= run.steps)
        reason = "finished"
        try:
            with make_progress(self.console, self.quiet) as bar, self._catch_interrupts():
                task = bar.add_task("", total=run.steps, completed=first, loss=math.nan, rate=0.0)
                while self.progress.step < run.steps:
                    loss, rate = self._step()
                    bar.update(task, completed=self.progress.step, loss=loss, rate=rate)
                    if self.progress.watch(loss, run.divergence):
                        reason = "diverged"
                        break
                    self._look()
                    if self._interrupted():
                        reason = "interrupted"
                        break
                    if self.progress.step % run.checkpoint_interval == 0:
                        self._save("checkpoint")
            # What diverged is not worth keeping; the checkpoint before it is.
            if reason != "diverged":
                self._save("checkpoint")
            final = self._evaluate(0) if reason == "finished" else None
            if final is not None:
                self.metrics.add("evaluation", self.progress.step, loss=final.loss, bits_per_byte=final.bits_per_byte)
                self._show_sample()
        finally:
            self.metrics.close()
        if keep is not None and self.progress.step:
            plot_loss(keep)
        done = (self.progress.step - first) * self.global_batch * self.length
        return Outcome(reason, self.progress.step, final, time.perf_counter() - began, done)

    @property
    def global_batch(self) -> int:
        """Windows per optimizer step, over micro-batches and processes."""
        run = self.config.training
        return run.batch_size * run.gradient_accumulation * self.world.size

    @property
    def length(self) -> int:
        """T: tokens of a window."""
        return self.model.config.block_size

    def compute_gradients(self) -> Tensor:
        """Leave the gradients of the present step's global batch in the parameters; its mean loss."""
        run, world = self.config.training, self.world
        ids, targets = training_batch(
            self.dataset.train, run.seed, self.progress.step, self.global_batch, self.length, world.rank, world.size
        )
        total = torch.zeros((), device=world.device)
        parts = zip(torch.split(ids, run.batch_size), torch.split(targets, run.batch_size), strict=True)
        for number, (some_ids, some_targets) in enumerate(parts, start=1):
            with synchronised(self.module, number == run.gradient_accumulation):
                with torch.autocast(world.device.type, self.dtype, enabled=self.dtype is not None):
                    loss = self.module(some_ids.to(world.device), some_targets.to(world.device))
                loss = loss / run.gradient_accumulation
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return world.sum(total) / world.size

    def _step(self) -> tuple[float, float]:
        """One optimizer step; its loss and tokens per second."""
        began = time.perf_counter()
        run, step, rates = self.config.training, self.progress.step, self.config.optimizer
        share = learning_rate(self.config.schedule, step, run.steps)
        decay = rates.weight_decay if decays(self.config.schedule, step, run.steps) else 0.0
        set_rates(self.optimizer, rates.learning_rate * share, decay)
        loss = float(self.compute_gradients())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), rates.gradient_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        rate = self.global_batch * self.length / (time.perf_counter() - began)
        if self.metrics is not None:
            self.metrics.add(
                "step",
                step,
                loss=loss,
                learning_rate=rates.learning_rate * share,
                gradient_norm=float(whole(norm)),
                tokens_per_second=round(rate, 1),
            )
        self.progress.step += 1
        return loss, rate

    def _look(self) -> None:
        """Evaluate and draw a sample, if it is time."""
        looks, step = self.config.evaluation, self.progress.step
        if step % looks.interval or step == self.config.training.steps:
            return
        found = self._evaluate(looks.batches)
        assert self.metrics is not None  # ``train`` made it
        self.metrics.add("evaluation", step, loss=found.loss, bits_per_byte=found.bits_per_byte)
        self._say(
            f"step {step:>6}  training loss {self.progress.smoothed or math.nan:.3f}  held out {found.loss:.3f} nats a "
            f"token, {found.bits_per_byte:.3f} bits a byte"
        )
        if found.loss < self.progress.best:
            self.progress.best = found.loss
            self._save("best")
        self._show_sample()

    def _show_sample(self) -> None:
        if self.config.evaluation.sample_tokens:
            text = self._sample()
            assert self.metrics is not None  # ``train`` made it
            self.metrics.add("sample", self.progress.step, text=text)
            self._say(f"[dim]{escape(text)}[/dim]")

    def _evaluate(self, limit: int) -> Evaluation:
        batch = self.config.training.batch_size
        tokens, tokenizer = self.dataset.validation, self.dataset.tokenizer
        with torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype is not None):
            return evaluate(self.module, tokens, tokenizer, self.world, batch, self.length, limit)

    def _sample(self) -> str:
        """A continuation of the configured prompt; every process draws the same, as a sharded model needs them all."""
        looks, tokenizer = self.config.evaluation, self.dataset.tokenizer
        prompt = tokenizer.encode(looks.prompt).tolist() or [tokenizer.end_token]
        sampling = SamplingConfig(temperature=looks.temperature, seed=self.config.training.seed)
        (tokens,) = generate(self.model, [prompt], looks.sample_tokens, sampling)
        return tokenizer.decode([*prompt, *tokens])

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False)

    def _interrupted(self) -> bool:
        """Whether any process was asked to stop; all learn it at the same step."""
        return bool(self.world.sum(torch.tensor(float(self._stop), device=self.world.device)) > 0)

    @contextmanager
    def _catch_interrupts(self) -> Iterator[None]:
        """Ctrl-C (or SIGTERM) asks for a stop after the step; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def ask(number: int, _frame: object) -> None:
            self._stop = True
            self._say("stopping after this step; again to stop at once")
            signal.signal(number, before[number])

        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _open_checkpoint(self, resume: bool) -> Checkpoint | None:
        there = self.folder is not None and (present(self.folder / "checkpoint") / "checkpoint.json").exists()
        if not resume:
            if there:
                raise ParameterError(f"{self.folder}: holds a run already; go on with --resume, or choose another")
            return None
        if self.folder is None:
            raise ParameterError("resume without a folder: expected the folder of the run")
        checkpoint = load_checkpoint(self.folder / "checkpoint")
        changed = changed_keys(self.config, self.global_batch, checkpoint.state)
        if changed or checkpoint.tokenizer != self.dataset.tokenizer.to_dict():
            raise ParameterError(
                f"{self.folder}: was begun with another {', '.join(changed) or 'tokenizer'}; resume with its "
                "configuration, or begin a new run elsewhere"
            )
        return checkpoint

    def _save(self, name: str) -> None:
        """Write ``checkpoint`` (everything) or ``best`` (weights for inference); all processes call it together."""
        if self.folder is None:
            return
        weights = gather_weights(self.model)
        everything = name == "checkpoint"
        moments = gather_optimizer(self.model, self.optimizer, self.world.device) if everything else {}
        if self.world.main:
            state = {
                "config": self.config.model_dump(mode="json"),
                "global_batch": self.global_batch,
                "progress": self.progress.to_dict(),
                "scaler": self.scaler.state_dict(),
            }
            model, tokenizer = self.model.config.to_dict(), self.dataset.tokenizer.to_dict()
            save_checkpoint(self.folder / name, Checkpoint(weights, model, tokenizer, moments, state))
        self.world.wait()
