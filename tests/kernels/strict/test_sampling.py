"""The sampler: SplitMix64's known answers, and the token that SPEC.md's loop over sorted scalars draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from both_packages import F32, both, halves, to_torch

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict
from walsh.reference.strict.sampling import mix


def test_splitmix64_known_answers() -> None:
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * i % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    assert [hex(int(z)) for z in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
    assert float(strict.uniform(0, 0)) == (0xE220A8397B1DCDAF >> 40) * 2.0**-24
    assert float(torch_strict.uniform(0, 1)) == (0x6E789E6AA1B965F4 >> 40) * 2.0**-24


def test_uniform_takes_integers_of_any_size_and_kind() -> None:
    for seed, position in ((-1, 0), (2**64 + 5, 3), (-(2**70) - 7, 2**65), (2**63, 2**64 - 1)):
        state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
        expected = (int(mix(np.array([state], dtype=np.uint64))[0]) >> 40) * 2.0**-24
        assert float(strict.uniform(seed, position)) == expected
        assert float(torch_strict.uniform(seed, position)) == expected
    expected = strict.uniform([-1, 2**64 - 1], 4)
    assert expected[0] == expected[1] == strict.uniform(np.array([-1]), np.array([4]))[0]
    assert strict.uniform(np.array([2**64 - 1], dtype=np.uint64), 4)[0] == expected[0]
    assert torch_strict.uniform(torch.tensor([-1]), 4)[0].item() == expected[0]
    for package in (strict, torch_strict):
        with pytest.raises(errors.DTypeError):
            package.uniform(0.5, 0)


def test_uniform_is_uniform() -> None:
    u = both("uniform", np.arange(200)[:, None], np.arange(500)).ravel().astype(np.float64)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * u.size)  # five standard errors
    assert abs(u.var() - 1 / 12) < 5 / math.sqrt(180 * u.size)
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - u.size / 64) ** 2 / (u.size / 64)).sum() < 63 + 5 * math.sqrt(126)


def sample_by_definition(
    logits: np.ndarray, history: list[int], temperature: float, top_k: int, top_p: float, penalty: float, u: float
) -> int:
    """One sequence, on scalars."""
    l = [F32(x) for x in logits]  # noqa: E741 - the letter of SPEC.md
    for t in set(history) - {-1}:
        l[t] = l[t] / F32(penalty) if l[t] > 0 else l[t] * F32(penalty)
    if temperature == 0:
        return l.index(max(l))
    l = [x / F32(temperature) for x in l]  # noqa: E741 - as above
    order = sorted(range(len(l)), key=lambda t: (-l[t], t))[: top_k or None]
    e = [F32(0)] * len(l)
    for t in order:
        e[t] = strict.exp(np.array(l[t] - l[order[0]]))[()]
    total = halves(e)
    cum, kept = F32(0), []
    for i, t in enumerate(order):
        p = e[t] / total
        cum = cum + p if i else p
        kept.append((t, cum))
        if cum >= F32(top_p):
            break
    return next((t for t, c in kept if c > F32(u) * kept[-1][1]), kept[-1][0])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (20, 0.9), (1, 0.5), (1000, 1e-9)])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.5])
def test_sample(rng: np.random.Generator, temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    batch = 12
    logits = (rng.standard_normal((batch, 37)) * 3).astype(F32)
    logits[:3] = np.rint(logits[:3])  # ties, and zeros of both signs
    history = rng.integers(-1, 37, (batch, 6))
    position = rng.integers(0, 1000, batch)
    params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty}
    ids = both("sample", logits, history, **params, seed=-3, position=position)
    u = strict.uniform(-3, position)
    for b in range(batch):
        expected = sample_by_definition(logits[b], history[b].tolist(), temperature, top_k, top_p, penalty, u[b])
        assert ids[b] == expected


def test_sample_follows_the_distribution() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.tile(np.log(p).astype(F32), (4000, 1))
    ids = both("sample", logits, seed=np.arange(4000), position=7)
    frequency = np.bincount(ids, minlength=4) / 4000
    assert (np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / 4000)).all()


def test_sample_of_no_sequences_and_no_history() -> None:
    assert both("sample", np.zeros((0, 3), dtype=F32)).shape == (0,)
    logits = np.array([[0.0, 3.0, 3.0], [1.0, -0.0, 0.0]], dtype=F32)
    assert both("sample", logits, np.empty((2, 0), dtype=np.int64), temperature=0.0).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"temperature": -0.1}, errors.ParameterError),
        ({"temperature": math.nan}, errors.ParameterError),
        ({"top_k": -1}, errors.ParameterError),
        ({"top_k": 1.5}, errors.ParameterError),
        ({"top_p": 0.0}, errors.ParameterError),
        ({"top_p": 1.1}, errors.ParameterError),
        ({"top_p": math.nan}, errors.ParameterError),
        ({"repetition_penalty": 0.0}, errors.ParameterError),
        ({"repetition_penalty": math.nan}, errors.ParameterError),
        ({"history": np.array([[4], [0]])}, errors.RangeError),
        ({"history": np.array([[-2], [0]])}, errors.RangeError),
        ({"history": np.array([0, 1])}, errors.ShapeError),
        ({"seed": np.arange(3)}, errors.ShapeError),
        ({"seed": 1.0}, errors.DTypeError),
        ({"logits": np.array([[0.0, np.nan]] * 2, dtype=F32)}, errors.NonFiniteError),
        ({"logits": np.array([[0.0, np.inf]] * 2, dtype=F32)}, errors.NonFiniteError),
        ({"logits": np.zeros((2, 0), dtype=F32)}, errors.ShapeError),
        ({"logits": np.zeros((2, 3))}, errors.DTypeError),
    ],
)
def test_sample_refuses(params: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"logits": np.zeros((2, 4), dtype=F32), **params}
    with pytest.raises(error):
        strict.sample(**arguments)
    with pytest.raises(error):
        torch_strict.sample(**to_torch(arguments))
