# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: ARG001, D403
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Drawing the next token, defined to the bit (SPEC.md, section *sampling*).

    l = logits with the repetition penalty;                   temperature 0: the argmax, lowest id first
    l = l / temperature, sorted by (l descending, id ascending), the first top_k kept
    p = exp(l - max) / hsum(exp(l - max))                     hsum over ids 0 .. V-1, +0 where an id was dropped
    cum = running float32 sums of p in sorted order;          the shortest prefix with cum >= top_p kept
    the answer is the first kept id with cum > u * total,     u = uniform(seed, position)

The order is PyTorch's stable device sort, a permutation without arithmetic. The running sum is left to right by
definition, so one program walks a row, and stops where the prefix ends.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from walsh.errors import ShapeError
from walsh.kernels.torch.strict.sampling import _check_arguments, _modulo_2_64
from walsh.kernels.triton._device import divide, strict_exp
from walsh.kernels.triton._launch import (
    INTERPRET,
    cdiv,
    flat_block,
    interpreting,
    launch,
    next_power_of_two,
    recording,
    require_device,
)
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.strict._arithmetic import hsum
from walsh.reference.strict.sampling import check_parameters


@triton.jit
def uniform_kernel(seeds, positions, u, count, BLOCK: tl.constexpr):
    """u = mix(seed + (position + 1) * golden) >> 40, times 2^-24: splitmix64."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    seed = tl.load(seeds + index, mask=inside, other=0).to(tl.uint64, bitcast=True)
    position = tl.load(positions + index, mask=inside, other=0).to(tl.uint64, bitcast=True)
    z = seed + (position + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    tl.store(u + index, (z >> 40).to(tl.int64).to(tl.float32) * 5.9604644775390625e-08, mask=inside)


@triton.jit
def mark_kernel(history, seen, vocabulary, length, BLOCK: tl.constexpr):
    """seen[row, id] = 1 for every id of the row's history; programs that meet the same id write the same byte."""
    row = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(history + row * length + index, mask=index < length, other=-1)
    tl.store(seen + row * vocabulary + token, tl.full((BLOCK,), 1, tl.int8), mask=token >= 0)


@triton.jit
def penalize_kernel(logits, seen, out, count, penalty, temperature, HEAT: tl.constexpr, BLOCK: tl.constexpr):
    """out = logits with the penalty where seen, divided by the temperature if HEAT, + 0 (one key for -0 and +0)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(logits + index, mask=inside, other=0.0)
    punished = tl.where(value > 0.0, divide(value, value * 0.0 + penalty), value * penalty)
    value = tl.where(tl.load(seen + index, mask=inside, other=0) == 1, punished, value)
    if HEAT:
        value = divide(value, value * 0.0 + temperature)
    tl.store(out + index, value + 0.0, mask=inside)


@triton.jit
def argmax_kernel(values, ids, vocabulary, BLOCK: tl.constexpr):
    """The lowest id among the largest values of one row."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full((), float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(values + row * vocabulary + index, mask=index < vocabulary, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(value, 0))
    best = tl.zeros((), tl.int32) + vocabulary
    for start in range(0, vocabulary, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(values + row * vocabulary + index, mask=index < vocabulary, other=float("-inf"))
        hit = (value == largest) & (index < vocabulary)
        best = tl.minimum(best, tl.min(tl.where(hit, index, vocabulary), 0))
    tl.store(ids + row, best.to(tl.int64))


@triton.jit
def exponentials_kernel(values, order, e, by_id, vocabulary, kept, BLOCK: tl.constexpr):
    """e [rows, V] = exp(value - first) in sorted order, the same at its id in ``by_id``; +0 past the first ``kept``."""
    row = tl.program_id(1).to(tl.int64) * vocabulary
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < vocabulary
    value = tl.load(values + row + index, mask=inside, other=0.0)
    power = tl.where(index < kept, strict_exp(value - tl.load(values + row)), 0.0)
    tl.store(e + row + index, power, mask=inside)
    tl.store(by_id + row + tl.load(order + row + index, mask=inside, other=0), power, mask=inside)


@triton.jit
def draw_kernel(e, sums, order, u, ids, vocabulary, kept, top_p):
    """Walk one row: first to the end of its prefix, then to the first running sum above u * total."""
    row = tl.program_id(0).to(tl.int64)
    denominator = tl.load(sums + row)
    base = e + row * vocabulary
    total = tl.full((), 0.0, tl.float32)
    last = tl.full((), -1, tl.int32)
    while (last + 1 < kept) & ((last < 0) | (total < top_p)):
        last += 1
        total = total + tl.div_rn(tl.load(base + last), denominator)
    threshold = tl.load(u + row) * total
    running = tl.div_rn(tl.load(base), denominator) + 0.0
    place = tl.full((), 0, tl.int32)
    while (place < last) & (running <= threshold):
        place += 1
        running = running + tl.div_rn(tl.load(base + place), denominator)
    tl.store(ids + row, tl.load(order + row * vocabulary + place))


def _words(seed: Any, position: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """seed and position modulo 2^64, in int64 of one shape."""
    pair = torch.broadcast_tensors(_modulo_2_64("seed", seed).to(device), _modulo_2_64("position", position).to(device))
    return pair[0].contiguous(), pair[1].contiguous()


def _home(*values: Any) -> torch.device:
    """Where numbers that no tensor ties to a device are drawn: the GPU, unless kernels are interpreted."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu" if INTERPRET or recording() else "cuda")


def uniform(seed: Any, position: Any) -> Tensor:
    """A uniform number per seed and position.

    Args:
        seed, position: integers of any size, or integer tensors that broadcast; taken modulo 2^64.

    Returns:
        float32 of the broadcast shape, multiples of 2^-24 in [0, 1).

    Raises:
        DTypeError: one is not integer. BackendError: no machine for Triton.
    """
    u: Tensor = _uniform(*_words(seed, position, _home(seed, position)))
    return u


def _fake_uniform(seeds, positions):
    return seeds.new_empty(seeds.shape, dtype=torch.float32)


@operation("strict_uniform", _fake_uniform)
def _uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """:func:`uniform` of int64 words of one shape."""
    require_device(seeds, positions)
    u = torch.empty(seeds.shape, dtype=torch.float32, device=seeds.device)
    block = flat_block(max(1, u.numel()))
    launch(uniform_kernel, (cdiv(u.numel(), block),), seeds, positions, u, u.numel(), fusion=False, BLOCK=block)
    return u


def _fake_penalized(logits, history, penalty, heat):
    return logits.new_empty(logits.shape)


@operation("strict_penalize", _fake_penalized)
def _penalized(logits: Tensor, history: Tensor, penalty: float, heat: float) -> Tensor:
    """Logits after penalty and temperature: two launches."""
    require_device(logits, history)
    logits = logits.contiguous()
    batch, vocabulary = logits.shape
    seen = torch.zeros((batch, vocabulary), dtype=torch.int8, device=logits.device)
    length = history.shape[1]
    block = min(1024, next_power_of_two(length))
    launch(mark_kernel, (cdiv(length, block), batch), history.contiguous(), seen, vocabulary, length, BLOCK=block)
    out = torch.empty_like(logits)
    block = flat_block(logits.numel())
    args = (logits, seen, out, logits.numel(), float(penalty), float(heat))
    launch(penalize_kernel, (cdiv(logits.numel(), block),), *args, fusion=False, HEAT=heat != 0, BLOCK=block)
    return out


def _fake_ids(values):
    return values.new_empty((values.shape[0],), dtype=torch.int64)


def _fake_draw(values, kept, top_p, u):
    return _fake_ids(values)


@operation("strict_draw", _fake_draw)
def _draw(values: Tensor, kept: int, top_p: float, u: Tensor) -> Tensor:
    """One id per row of the logits [B, V], after penalty and temperature."""
    require_device(values, u)
    batch, vocabulary = values.shape
    values, order = torch.sort(values, dim=1, descending=True, stable=True)
    e, by_id = torch.empty_like(values), torch.empty_like(values)
    block = min(next_power_of_two(vocabulary), 1 << 14 if interpreting() else 1024)
    grid = (cdiv(vocabulary, block), batch)
    launch(exponentials_kernel, grid, values, order, e, by_id, vocabulary, kept, fusion=False, BLOCK=block)
    ids = torch.empty((batch,), dtype=torch.int64, device=values.device)
    args = (e, hsum(by_id), order, u.contiguous(), ids, vocabulary, kept, float(top_p))
    launch(draw_kernel, (batch,), *args, warps=1, fusion=False)
    return ids


@operation("strict_argmax", _fake_ids)
def _greedy(values: Tensor) -> Tensor:
    """The argmax of every row, lowest id first."""
    require_device(values)
    batch, vocabulary = values.shape
    ids = torch.empty((batch,), dtype=torch.int64, device=values.device)
    block = min(next_power_of_two(vocabulary), 1 << 14 if interpreting() else 1024)
    launch(argmax_kernel, (batch,), values, ids, vocabulary, BLOCK=block)
    return ids


@torch.no_grad()
def sample(
    logits: Tensor,
    history: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: Any = 0,
    position: Any = 0,
) -> Tensor:
    """Draw one token per sequence.

    Args:
        logits: float32 [B, V], finite.
        history: integers [B, P], tokens whose repetition is penalised, -1 where unused.
        temperature: 0 for the argmax.
        top_k: how many of the likeliest ids are kept; 0 or more than V: all.
        top_p: the probability at which the kept prefix ends.
        repetition_penalty: above 1 makes ids of the history less likely.
        seed: integer or integers [B], modulo 2^64.
        position: integer or integers [B], the absolute index of the token that is drawn.

    Returns:
        int64 [B].

    Raises:
        DTypeError, ShapeError, NonFiniteError (logits), ParameterError, RangeError (history), BackendError.
    """
    history = _check_arguments(logits, history)
    check_parameters(temperature, top_k, top_p, repetition_penalty)
    require_device(logits)
    batch, vocabulary = logits.shape
    seeds, positions = _words(seed, position, logits.device)
    if tuple(seeds.shape) not in {(), (batch,)}:
        raise ShapeError(f"seed and position give shape {list(seeds.shape)}: expected integers or [B] = [{batch}]")
    heat, threshold, penalty = torch.tensor([temperature, top_p, repetition_penalty], dtype=torch.float32).tolist()
    values = _penalized(logits, history, penalty, heat)
    if heat == 0:
        best: Tensor = _greedy(values)
        return best
    kept = min(int(top_k), vocabulary) if top_k else vocabulary
    u = _uniform(seeds.expand(batch).contiguous(), positions.expand(batch).contiguous())
    drawn: Tensor = _draw(values, kept, threshold, u)
    return drawn
