"""Batches of token windows: which ones, is a function of seed and step alone.

Nothing is remembered between steps, so a resumed run sees what the interrupted one would have seen, and any number of
processes shares one global batch: process r takes every world-th window of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.data.tokenizers import Tokenizer
from walsh.errors import DataError

Tokens = NDArray[np.unsignedinteger]


def training_batch(
    tokens: Tokens, seed: int, step: int, global_batch: int, length: int, rank: int = 0, world: int = 1
) -> tuple[Tensor, Tensor]:
    """Random windows of one optimizer step.

    Args:
        tokens: [count] of the training data.
        seed, step: name the batch.
        global_batch: windows of all processes and micro-batches together, a multiple of ``world``.
        length: T.
        rank, world: this process and how many there are.

    Returns:
        ids and targets int64 [global_batch / world, T]; targets are the ids one place later.

    Raises:
        DataError: if the data are shorter than one window.
    """
    if len(tokens) < length + 1:
        raise DataError(f"{len(tokens)} tokens of training data: one window of {length} needs {length + 1}")
    # Philox is counter-based: the pair (seed, step) is its whole state.
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))
    starts = generator.integers(0, len(tokens) - length, size=global_batch)[rank::world]
    return _windows(tokens, starts, length)


def evaluation_batches(tokens: Tokens, batch: int, length: int, limit: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive windows that cover the data once; the last one is filled up with target -1.

    Args:
        tokens: [count] of the validation data.
        batch: windows at a time.
        length: T.
        limit: batches at most, 0 for all.

    Yields:
        ids and targets int64 [at most batch, T].

    Raises:
        DataError: if there are fewer than two tokens.
    """
    if len(tokens) < 2:
        raise DataError(f"{len(tokens)} tokens of validation data: expected at least 2")
    starts = np.arange(0, len(tokens) - 1, length)
    for number, first in enumerate(range(0, len(starts), batch)):
        if limit and number == limit:
            return
        yield _windows(tokens, starts[first : first + batch], length)


def _windows(tokens: Tokens, starts: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    ids = np.zeros((len(starts), length), dtype=np.int64)
    targets = np.full((len(starts), length), -1, dtype=np.int64)
    for row, start in enumerate(starts):
        window = tokens[start : start + length + 1].astype(np.int64)
        ids[row, : len(window) - 1] = window[:-1]
        targets[row, : len(window) - 1] = window[1:]
    return torch.from_numpy(ids), torch.from_numpy(targets)


def bytes_per_token(tokenizer: Tokenizer) -> Tensor:
    """int64 [V]: how many bytes of text each token stands for, to turn nats per token into bits per byte."""
    sizes = [len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
    return torch.tensor(sizes, dtype=torch.int64)
