"""What a run records: JSON lines, TensorBoard events, a plot of the loss, a progress bar.

``metrics.jsonl`` has one object per line with ``kind``: ``step`` (loss in nats per token, learning_rate, gradient_norm,
tokens_per_second), ``evaluation`` (loss, bits_per_byte) or ``sample`` (text). A resumed run drops what the interrupted
one wrote after its checkpoint, so that a file never has a step twice. Step s is the one that s steps came before;
evaluations and samples at s were made when s steps were done.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from walsh.errors import BackendError, FormatError

Record = dict[str, Any]


class Metrics:
    """The record of one run; only the main process has one that writes.

    Args:
        folder: of the run; None writes nothing.
        first_step: steps that were done when this session began; records of what came after are dropped.
        tensorboard: also write TensorBoard events.
        repeated: all steps are done and the last evaluation will be made again; it is dropped too.

    Raises:
        BackendError: if TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, first_step: int, tensorboard: bool, repeated: bool = False) -> None:
        self._file = None
        self._events: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        old = read_metrics(path) if path.exists() else []
        seen = [r for r in old if r["step"] == first_step and r["kind"] != "step" and not repeated]
        kept = [r for r in old if r["step"] < first_step] + seen
        self._file = path.open("w", encoding="utf-8")
        for record in kept:
            self._write(record)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError:
                raise BackendError(
                    "TensorBoard is not installed: pip install 'walsh[train]', or set training.tensorboard=false"
                ) from None
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
            for record in seen:  # which TensorBoard purges with the step of this number
                self._draw(**record)

    def add(self, kind: Literal["step", "evaluation", "sample"], step: int, **values: float | str) -> None:
        """Record what was seen at a step."""
        self._write({"kind": kind, "step": step, **values})
        self._draw(kind, step, **values)

    def _draw(self, kind: str, step: int, **values: float | str | None) -> None:
        if self._events is None:
            return
        for name, value in values.items():
            if isinstance(value, str):
                self._events.add_text(kind, value, step)
            elif value is not None:
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def _write(self, record: Record) -> None:
        if self._file is not None:
            # JSON has no NaN; a diverged loss is null.
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()


def read_metrics(path: Path) -> list[Record]:
    """The records of a run; a half-written last line of a killed one is left out.

    Raises:
        FormatError: if another line is not a record.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["kind"], record["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise FormatError(f"{path}: line {number} is not a record of a run; remove the file") from None
        records.append(record)
    return records


def plot_loss(folder: Path) -> Path:
    """Draw ``loss.png`` from the metrics of a run: training and validation loss, learning rate below.

    Returns:
        its path.
    """
    from matplotlib.figure import Figure

    records = read_metrics(folder / "metrics.jsonl")
    steps = [r for r in records if r["kind"] == "step" and r["loss"] is not None]
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    x, loss = np.array([r["step"] for r in steps]), np.array([r["loss"] for r in steps])
    upper.plot(x, loss, color="#9db8d9", linewidth=0.7, label="training, each step")
    upper.plot(x, smooth(loss), color="#1f5fa8", linewidth=1.6, label="training, smoothed")
    if evaluations:
        at, held_out = [r["step"] for r in evaluations], [r["loss"] for r in evaluations]
        upper.plot(at, held_out, "o-", color="#c8501e", markersize=4, label="held out")
        last = evaluations[-1]
        upper.set_title(f"{folder.name}: {last['bits_per_byte']:.3f} bits per byte held out at step {last['step']}")
    upper.set_ylabel("loss in nats per token")
    upper.legend(frameon=False)
    upper.grid(alpha=0.25)
    lower.plot(x, [r["learning_rate"] for r in steps], color="#555555", linewidth=1.2)
    lower.set_ylabel("learning rate")
    lower.set_xlabel("step")
    lower.grid(alpha=0.25)
    path = folder / "loss.png"
    figure.savefig(path, dpi=130)
    return path


def smooth(values: np.ndarray[Any, np.dtype[np.float64]], keep: float = 0.95) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Exponential average [steps] with the bias of its beginning removed."""
    average, total = 0.0, 0.0
    result = np.empty(len(values))
    for i, value in enumerate(values):
        average = keep * average + (1 - keep) * float(value)
        total = keep * total + (1 - keep)
        result[i] = average / total
    return result


def make_progress(console: Console, quiet: bool) -> Progress:
    """A bar with loss, tokens per second and time left; ``task.fields`` are ``loss`` and ``rate``."""
    return Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
