"""Drawing the next token, defined to the bit (SPEC.md, *sampling*).

    l = logits with the repetition penalty;                   temperature 0: the argmax, lowest id first
    l = l / temperature, sorted by (l descending, id ascending), the first top_k kept
    p = exp(l - max) / hsum(exp(l - max))                     hsum over ids 0 .. V-1, +0 where an id was dropped
    cum = running float32 sums of p in sorted order;          the shortest prefix with cum >= top_p kept
    the answer is the first kept id with cum > u * total,     u = uniform(seed, position)

``uniform`` is a pure function of seed and position (splitmix64, Steele, Lea and Flood 2014). Its 64-bit words are kept
in int64, whose products and sums wrap alike; only right shifts need the sign bits masked away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from walsh.errors import DTypeError, NonFiniteError, ShapeError
from walsh.kernels.torch._check import INTEGERS, all_finite, require_range, require_shape
from walsh.kernels.torch.strict._arithmetic import divide, exp, hsum
from walsh.kernels.torch.strict._check import as_integers, require_float32, require_last_axis
from walsh.reference.strict.sampling import check_parameters

FEW = 1024
"""Candidates to try first for a prefix of the whole vocabulary; a full sort costs as much as ten of these."""


def _signed(word: int) -> int:
    """The residue of ``word`` modulo 2^64, as int64 writes it."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GOLDEN, _MIX_1, _MIX_2 = (_signed(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _modulo_2_64(name: str, value: Any) -> Tensor:
    """An integer of any size, or integers of any shape, modulo 2^64 in int64."""
    if isinstance(value, Tensor) and value.dtype in (*INTEGERS, torch.uint16, torch.uint32, torch.uint64):
        return value.to(torch.int64)
    words = np.asarray(value, dtype=object)  # NumPy makes a list of large integers float
    if all(isinstance(word, int | np.integer) for word in words.flat):
        return torch.tensor([_signed(int(w)) for w in words.flat], dtype=torch.int64).reshape(words.shape)
    raise DTypeError(f"{name} {value!r}: expected an integer or integers [B]")


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """The splitmix64 finaliser, int64 [...] to int64 [...]."""
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def uniform(seed: Any, position: Any) -> Tensor:
    """A uniform number per seed and position: mix(seed + (position + 1) * golden) >> 40, times 2^-24.

    Args:
        seed, position: integers of any size, or integer tensors that broadcast; taken modulo 2^64.

    Returns:
        float32 of the broadcast shape, multiples of 2^-24 in [0, 1).

    Raises:
        DTypeError: if one is not integer.
    """
    state = _modulo_2_64("seed", seed) + (_modulo_2_64("position", position) + 1) * _GOLDEN
    return _shifted(mix(state), 40).to(torch.float32) * 2.0**-24


def _check_arguments(logits: Tensor, history: Tensor | None) -> Tensor:
    """The history, int64 [B, P], once it and the logits are known to be good."""
    require_float32(logits=logits)
    require_shape("logits", logits, (None, None), "[B, V]")
    require_last_axis("logits", logits, "V")
    if not all_finite(logits):
        raise NonFiniteError(f"logits hold {logits[~torch.isfinite(logits)][0].item()}: expected finite numbers")
    batch, vocabulary = logits.shape
    if history is None:
        return torch.empty(batch, 0, dtype=torch.int64, device=logits.device)
    history = as_integers("history", history, logits.device)
    require_shape("history", history, (batch, None), "[B, P]")
    require_range("history", history, -1, vocabulary, "-1 marks unused places")
    return history


def _penalised(l: Tensor, history: Tensor, penalty: float) -> Tensor:  # noqa: E741 - l is the letter of SPEC.md
    """Once per distinct id; unused places mark one column more than there are ids."""
    batch, vocabulary = l.shape
    seen = torch.zeros(batch, vocabulary + 1, dtype=torch.bool, device=l.device)
    seen = seen.scatter(1, torch.where(history < 0, vocabulary, history), True)[:, :vocabulary]
    return torch.where(seen, torch.where(l > 0, divide(l, torch.full_like(l, penalty)), l * penalty), l)


def _likeliest(l: Tensor, count: int) -> Tensor:  # noqa: E741 - as above
    """The first ids by (l descending, id ascending), int64 [B, count], for 0 < count <= V."""
    if 4 * count > l.shape[1]:
        # + 0 makes -0 and +0 one key.
        return torch.sort(l + 0.0, dim=1, descending=True, stable=True).indices[:, :count]
    values, ids = torch.topk(l, count, dim=1)
    # Among equals topk takes any. Everything from the last value up is a candidate: more than ``count`` at a tie.
    candidates = int(torch.count_nonzero(l >= values[:, -1:], dim=1).max()) if l.shape[0] else count
    if candidates > count:
        return _among(l, torch.topk(l, candidates, dim=1).indices)[:, :count]
    return _among(l, ids)


def _among(l: Tensor, ids: Tensor) -> Tensor:  # noqa: E741 - as above
    """These ids [B, .] of the logits [B, V] by (l descending, id ascending)."""
    ids = torch.sort(ids, dim=1).values
    return ids.gather(1, torch.sort(l.gather(1, ids) + 0.0, dim=1, descending=True, stable=True).indices)


def _running_sums(p: Tensor) -> Tensor:
    """On the host, because NumPy accumulates strictly left to right, which no PyTorch scan promises."""
    return torch.from_numpy(np.add.accumulate(p.cpu().numpy(), axis=1)).to(p.device)


def _draw(l: Tensor, top_k: int, top_p: float, u: Tensor) -> Tensor:  # noqa: E741 - as above
    """One token per row of the logits [B, V], after penalty and temperature."""
    vocabulary = l.shape[1]
    kept = min(top_k, vocabulary) if top_k else vocabulary
    largest = torch.amax(l, dim=1, keepdim=True)
    if kept < vocabulary:
        order = _likeliest(l, kept)
        e = exp(l.gather(1, order) - largest)
        # As wide as hsum would make it, so that it need not be copied.
        by_id = l.new_zeros(l.shape[0], 1 << (vocabulary - 1).bit_length()).scatter_(1, order, e)
        return _choose(order, _running_sums(divide(e, hsum(by_id)[:, None].expand_as(e))), top_p, u)
    e = exp(l - largest)
    p = divide(e, hsum(e)[:, None].expand_as(e))
    for count in (FEW, vocabulary):
        # A prefix that reaches top_p in every row holds all that is kept.
        order = _likeliest(l, min(count, vocabulary))
        cum = _running_sums(p.gather(1, order))
        if bool((cum[:, -1] >= top_p).all()):
            break
    return _choose(order, cum, top_p, u)


def _choose(order: Tensor, cum: Tensor, top_p: float, u: Tensor) -> Tensor:
    """The id [B] that u [B] falls on, among ids [B, .] with these running sums."""
    places = torch.arange(cum.shape[1], device=cum.device)
    last = torch.amin(torch.where(cum >= top_p, places, cum.shape[1] - 1), dim=1, keepdim=True)
    above = (cum > u[:, None] * cum.gather(1, last)) & (places <= last)
    first = torch.amin(torch.where(above, places, last), dim=1, keepdim=True)
    return order.gather(1, first)[:, 0]


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
        DTypeError, ShapeError, NonFiniteError (logits), ParameterError, RangeError (history).
    """
    history = _check_arguments(logits, history)
    check_parameters(temperature, top_k, top_p, repetition_penalty)
    batch, vocabulary = logits.shape
    u = uniform(seed, position).to(logits.device)
    if u.shape not in ((), (batch,)):
        raise ShapeError(f"seed and position give shape {list(u.shape)}: expected integers or [B] = [{batch}]")
    heat, threshold, penalty = torch.tensor([temperature, top_p, repetition_penalty], dtype=torch.float32).tolist()
    l = _penalised(logits, history, penalty) if history.shape[1] else logits  # noqa: E741 - as above
    if heat == 0:
        ids = torch.arange(vocabulary, device=l.device)
        return torch.amin(torch.where(l == torch.amax(l, dim=1, keepdim=True), ids, vocabulary), dim=1)
    return _draw(divide(l, torch.full_like(l, heat)), int(top_k), threshold, u.expand(batch))
