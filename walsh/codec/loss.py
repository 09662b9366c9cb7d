"""What rounding costs: the loss of a text under a checkpoint and under the files made of it.

loss = mean over tokens t >= 1 of -log softmax(logits(t - 1))[token t]                  windows of the context

python -m walsh.codec.loss CHECKPOINT TEXT [WINDOWS]     as trained; strict with int8 rows; strict with int4 rows
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from walsh.codec.sources import read_source, strict_form_of, without_unused_rows
from walsh.errors import ParameterError
from walsh.model.packed import PackedModel
from walsh.model.text import load_model


@dataclass(frozen=True)
class Loss:
    """Of one form of a model.

    Attributes:
        form: ``trained``, ``int8 rows`` or ``int4 rows``.
        nats: mean loss per token.
        tokens: how many were predicted.
    """

    form: str
    nats: float
    tokens: int


def _windows(ids: Sequence[int], length: int, most: int) -> Iterator[list[int]]:
    """Consecutive windows, each with the token that comes after it."""
    for start in range(0, min(len(ids) - 1, most * length), length):
        yield list(ids[start : start + length + 1])


def mean_loss(form: str, logits: Callable[[list[int]], Tensor], windows: Sequence[list[int]]) -> Loss:
    """The loss of windows; ``logits`` gives float [T, V] of T ids."""
    total, count = 0.0, 0
    for window in windows:
        predicted = torch.log_softmax(logits(window[:-1]).double(), dim=-1)
        total -= float(predicted.gather(1, torch.tensor(window[1:])[:, None]).sum())
        count += len(window) - 1
    return Loss(form, total / count, count)


@torch.no_grad()
def losses(checkpoint: Path, text: str, windows: int = 20) -> Iterator[Loss]:
    """The three losses, one after the other.

    Raises:
        ParameterError: a text of fewer than two tokens.
    """
    model, tokenizer = load_model(checkpoint)
    ids = [int(token) for token in tokenizer.encode(text)]
    if len(ids) < 2:
        raise ParameterError("a text of fewer than two tokens: give a longer one")
    parts = list(_windows(ids, model.config.block_size, windows))
    height = min(tokenizer.vocab_size, model.config.vocab_size)
    yield mean_loss("trained", lambda part: model(torch.tensor([part]))[0, :, :height], parts)
    source = without_unused_rows(read_source(checkpoint))
    for rows in (8, 4):
        packed = PackedModel(strict_form_of(source, rows), source.config.to_dict())
        yield mean_loss(f"int{rows} rows", lambda part, packed=packed: packed.logits(part, last_only=False), parts)  # type: ignore[misc]  # mypy cannot type the default


if __name__ == "__main__":
    first = None
    for found in losses(Path(sys.argv[1]), Path(sys.argv[2]).read_text("utf-8"), int(([*sys.argv, "20"])[3])):
        first = found.nats if first is None else first
        print(f"{found.form:<10} {found.nats:.5f} nats, {found.nats - first:+.5f}, over {found.tokens:,} tokens")
