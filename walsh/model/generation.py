"""Generation: batches of prompts, token by token, over a cache.

Each sequence has its own length, seed and end; a batch gives what its sequences would give one by one. A context that
is full keeps its last half: the tokens are fed anew and generation goes on.

Sampling is SPEC.md's: a function of logits, seed and position, so it can be repeated and resumed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from walsh.errors import ParameterError
from walsh.kernels import torch as kernels
from walsh.model.transformer import Walsh


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; see SPEC.md, section *sampling*.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: choose among so many; 0 for all.
        top_p: choose among the fewest with this much probability.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before; 1 for none.
        seed: of the first sequence; sequence b uses seed + b.
        stop: tokens that end a sequence; they are not part of it.
        vocabulary: draw only among the first so many ids, where a model has more than its tokenizer; 0 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()
    vocabulary: int = 0


@dataclass(frozen=True)
class Step:
    """One new token.

    Attributes:
        sequence: which prompt it continues.
        token: its id.
    """

    sequence: int
    token: int


class _Batch:
    """Sequences that have not ended, and a cache with one row for each that holds a window of it."""

    def __init__(self, model: Walsh, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.model = model
        self.tokens = {number: list(prompt) for number, prompt in enumerate(prompts)}
        self.window = model.config.block_size
        self.capacity = min(self.window, max(map(len, prompts)) + room)
        self.cache = model.make_cache(0, self.capacity, growing=True)

    def begin(self) -> Tensor:
        """Feed all prompts, as much of their ends as the context holds; the logits [B, V] after them."""
        logits, self.cache = self._feed([tokens[-self.window :] for tokens in self.tokens.values()])
        return logits

    def keep(self, numbers: Sequence[int]) -> None:
        """Forget the sequences that have ended."""
        if len(numbers) < len(self.tokens):
            rows = [row for row, number in enumerate(self.tokens) if number in numbers]
            self.cache = [layer.fork(rows) for layer in self.cache]
            self.tokens = {number: self.tokens[number] for number in numbers}

    def advance(self) -> Tensor:
        """Feed the newest token of each sequence; the logits [B, V] after it."""
        sequences = list(self.tokens.values())
        full = (self.cache[0].lengths >= self.window).nonzero().squeeze(1).tolist() if self.cache else []
        if not full:
            return self._next(sequences, self.cache)
        going = [row for row in range(len(sequences)) if row not in full]
        parts = [layer.fork(going) for layer in self.cache]
        logits = [self._next([sequences[row] for row in going], parts)] if going else []
        # The latest half of a full context is fed anew, at positions from 0 on.
        again, anew = self._feed([sequences[row][-max(self.window // 2, 1) :] for row in full])
        order = torch.tensor([*going, *full], device=self.model.device).argsort()
        self.cache = [_join(*pair, order) for pair in zip(parts, anew, strict=True)]
        return torch.cat([*logits, again])[order]

    def _next(self, sequences: Sequence[list[int]], cache: list[kernels.KVCache]) -> Tensor:
        ids = torch.tensor([[tokens[-1]] for tokens in sequences], device=self.model.device)
        return self.model.logits(self.model.features(ids, cache=cache)[:, -1])

    def _feed(self, parts: Sequence[Sequence[int]]) -> tuple[Tensor, list[kernels.KVCache]]:
        """A new cache with these tokens, and the logits after the last of each."""
        lengths = torch.tensor([len(part) for part in parts], device=self.model.device)
        ids = torch.zeros(len(parts), int(lengths.max()), dtype=torch.int64)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = torch.tensor(part)
        cache = self.model.make_cache(len(parts), self.capacity, growing=True)
        features = self.model.features(ids.to(self.model.device), cache=cache)
        for layer in cache:
            # What was padded on the right came after each prompt, so no prompt saw it; it only has to be forgotten.
            layer.truncate(lengths)
        return self.model.logits(features[torch.arange(len(parts), device=lengths.device), lengths - 1]), cache


def _join(first: kernels.KVCache, second: kernels.KVCache, order: Tensor) -> kernels.KVCache:
    """One cache with the rows of two, in another order."""
    storage = max(first.keys.shape[1], second.keys.shape[1])
    for part in (first, second):
        missing = (0, 0, 0, 0, 0, storage - part.keys.shape[1])
        part.keys, part.values = pad(part.keys, missing), pad(part.values, missing)
    joined = first.fork([])
    joined.keys, joined.values, joined.lengths = (
        torch.cat([getattr(part, name) for part in (first, second)])[order] for name in ("keys", "values", "lengths")
    )
    return joined


@torch.no_grad()
def stream(
    model: Walsh,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    notify: Callable[[str], None] | None = None,
) -> Iterator[list[Step]]:
    """Generate step by step.

    Args:
        model: in evaluation, on any device.
        prompts: token ids, at least one each; lengths may differ. One longer than the context loses its beginning.
        max_new_tokens: per sequence; 0 gives nothing.
        sampling: how tokens are chosen; defaults if None.
        notify: told in one sentence when a prompt does not fit the context.

    Yields:
        the new tokens of one step, one for each sequence that has not ended.

    Raises:
        ParameterError: an empty prompt, negative max_new_tokens, or sampling parameters out of range.
    """
    sampling = sampling or SamplingConfig()
    if max_new_tokens < 0:
        raise ParameterError(f"max_new_tokens is {max_new_tokens}: expected at least 0")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ParameterError(f"prompt {number} is empty: begin with at least one token, such as the end token")
        if len(prompt) > model.config.block_size and notify is not None:
            notify(
                f"prompt {number} has {len(prompt)} tokens, the context {model.config.block_size}: "
                f"only the last {model.config.block_size} are seen"
            )
    if max_new_tokens == 0 or not prompts:
        return
    batch = _Batch(model, prompts, max_new_tokens)
    logits = batch.begin()
    for number in range(max_new_tokens):
        if number:
            logits = batch.advance()
        chosen = _choose(logits, batch.tokens, sampling)
        steps = [Step(*pair) for pair in zip(batch.tokens, chosen, strict=True) if pair[1] not in sampling.stop]
        if not steps:
            return
        batch.keep([step.sequence for step in steps])
        for step in steps:
            batch.tokens[step.sequence].append(step.token)
        yield steps


def _choose(logits: Tensor, tokens: Mapping[int, Sequence[int]], sampling: SamplingConfig) -> list[int]:
    """One token for each sequence, drawn by its own seed and position."""
    history = torch.full((len(tokens), max(map(len, tokens.values()))), -1, dtype=torch.int64)
    for row, seen in enumerate(tokens.values()):
        history[row, : len(seen)] = torch.tensor(seen)
    ids = kernels.sample(
        logits[:, : sampling.vocabulary or None].float(),
        history.to(logits.device),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        # Seeds count modulo 2^64; a tensor holds them with a sign.
        seed=torch.tensor([(sampling.seed + number + 2**63) % 2**64 - 2**63 for number in tokens]),
        position=torch.tensor([len(seen) for seen in tokens.values()]),
    )
    return [int(token) for token in ids]


def generate(
    model: Walsh,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    notify: Callable[[str], None] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, stop tokens excluded; arguments as for :func:`stream`."""
    result: list[list[int]] = [[] for _ in prompts]
    for steps in stream(model, prompts, max_new_tokens, sampling, notify):
        for step in steps:
            result[step.sequence].append(step.token)
    return result
