"""Drawing the next token, defined to the bit (SPEC.md, *sampling*).

    l = logits with the repetition penalty;                   temperature 0: the argmax, lowest id first
    l = l / temperature, sorted by (l descending, id ascending), the first top_k kept
    p = exp(l - max) / hsum(exp(l - max))                     hsum over ids 0 .. V-1, +0 where an id was dropped
    cum = running float32 sums of p in sorted order;          the shortest prefix with cum >= top_p kept
    the answer is the first kept id with cum > u * total,     u = uniform(seed, position)

``uniform`` is a pure function of seed and position (splitmix64, Steele, Lea and Flood 2014): a sequence can be resumed,
forked and batched without carrying the state of a generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import DTypeError, NonFiniteError, ParameterError, ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict._arithmetic import ZERO, Float32, exp, hsum
from walsh.reference.strict._check import Array

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _modulo_2_64(name: str, value: Any) -> NDArray[np.uint64]:
    """An integer of any size, or an array of integers, modulo 2^64."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu":
        return np.asarray(value).astype(np.uint64)  # C arithmetic: two's complement is the residue
    words = np.asarray(value, dtype=object)  # NumPy makes a list of large integers float
    if all(isinstance(word, int | np.integer) for word in words.flat):
        return np.array([int(word) & _MASK for word in words.flat], dtype=np.uint64).reshape(words.shape)
    raise DTypeError(f"{name} {value!r}: expected an integer or integers [B]")


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, uint64 [...] to uint64 [...]."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@np.errstate(over="ignore")
def uniform(seed: Any, position: Any) -> Float32:
    """A uniform number per seed and position: mix(seed + (position + 1) * golden) >> 40, times 2^-24.

    Args:
        seed, position: integers of any size, or integer arrays that broadcast; taken modulo 2^64.

    Returns:
        float32 of the broadcast shape, multiples of 2^-24 in [0, 1).

    Raises:
        DTypeError: if one is not integer.
    """
    state = _modulo_2_64("seed", seed) + (_modulo_2_64("position", position) + np.uint64(1)) * _GOLDEN
    return np.asarray((mix(state) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


def check_parameters(temperature: float, top_k: int, top_p: float, repetition_penalty: float) -> None:
    """Raise ParameterError unless sampling is defined for these; they are compared as float32.

    A temperature that rounds to 0 in float32 is 0.
    """
    with np.errstate(over="ignore"):
        rounded, penalty = np.float32(temperature), np.float32(repetition_penalty)
    if not rounded >= 0:
        raise ParameterError(f"temperature {temperature!r}: expected 0 (greedy) or more")
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 0:
        raise ParameterError(f"top_k {top_k!r}: expected an integer from 0 (all) up")
    if not 0 < top_p <= 1:
        raise ParameterError(f"top_p {top_p!r}: expected more than 0 and at most 1")
    if not 0 < penalty < np.inf:
        raise ParameterError(f"repetition_penalty {repetition_penalty!r}: expected a finite number above 0")


def check_logits(logits: Array, history: Array | None) -> tuple[Array, Array]:
    """The checked logits float32 [B, V] and history int64 [B, P].

    Raises:
        DTypeError, ShapeError, NonFiniteError (logits), RangeError (history).
    """
    logits = _check.shaped("logits", _check.typed("logits", logits, "float32"), (None, None), "[B, V]")
    _check.featured("logits", logits, None, "V")
    if not np.isfinite(logits).all():
        raise NonFiniteError(f"logits hold {logits[~np.isfinite(logits)][0]}: expected finite numbers")
    batch, vocabulary = logits.shape
    history = np.empty((batch, 0), dtype=np.int64) if history is None else history
    history = _check.shaped("history", _check.typed("history", history, "integer"), (batch, None), "[B, P]")
    return logits, _check.within("history", history, -1, vocabulary, "-1 marks unused places")


def _draw(l: Float32, top_k: int, top_p: np.float32, u: np.float32) -> int:  # noqa: E741 - l is the letter of SPEC.md
    """One token from the logits [V] of one sequence, after penalty and temperature."""
    order = np.argsort(-l, kind="stable")
    kept = order[:top_k] if top_k else order
    e = np.zeros_like(l)
    e[kept] = exp(l[kept] - l[kept[0]])
    p = e / hsum(e)
    cum = np.cumsum(p[kept], dtype=np.float32)  # NumPy accumulates strictly left to right
    enough = np.flatnonzero(cum >= top_p)
    if enough.size:
        cum = cum[: enough[0] + 1]
    above = np.flatnonzero(cum > u * cum[-1])
    return int(kept[above[0]] if above.size else kept[cum.size - 1])


@np.errstate(over="ignore", invalid="ignore")
def sample(
    logits: Array,
    history: Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: Any = 0,
    position: Any = 0,
) -> NDArray[np.int64]:
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
    logits, history = check_logits(logits, history)
    check_parameters(temperature, top_k, top_p, repetition_penalty)
    batch = logits.shape[0]
    u = uniform(seed, position)
    if u.shape not in ((), (batch,)):
        raise ShapeError(f"seed and position give shape {list(u.shape)}: expected integers or [B] = [{batch}]")
    u = np.broadcast_to(u, (batch,))
    penalty, heat = np.float32(repetition_penalty), np.float32(temperature)
    ids = np.empty(batch, dtype=np.int64)
    for b in range(batch):
        l = logits[b].copy()  # noqa: E741 - as above
        seen = np.unique(history[b][history[b] >= 0])
        l[seen] = np.where(l[seen] > ZERO, l[seen] / penalty, l[seen] * penalty)
        ids[b] = np.argmax(l) if heat == 0 else _draw(l / heat, int(top_k), np.float32(top_p), u[b])
    return ids
