"""A prompt read in two parts is checked as if it had been read at once."""

import pytest
import torch

from walsh import reference
from walsh.measure.case import Setting
from walsh.measure.continuation import check_strict, token_checks
from walsh.measure.models import Model

MODEL = Model(Setting(), 1, 2, 64, 96)
BEGINNING = MODEL.draw(7, 1, 9)


def prompt(seed: int, changed: int | None = None) -> torch.Tensor:
    """Twelve ids that begin as all do, but for one."""
    ids = torch.cat([BEGINNING, MODEL.draw(seed, 1, 3)], 1)
    if changed is not None:
        ids[0, changed] = (ids[0, changed] + 1) % MODEL.vocabulary
    return ids


@pytest.mark.parametrize("bits", [None, 8])
def test_by_tolerance(bits):
    check = token_checks(MODEL, BEGINNING, bits, 3)(1e-3)
    for seed in (1, 2):
        right = torch.from_numpy(MODEL.logits(prompt(seed), bits))
        assert check({"ids": prompt(seed)}, right, 0) < 1e-3
        assert check({"ids": prompt(seed)}, right[:, -1:], 0) < 1e-3
        for position in (0, 8, 9, 11):
            wrong = torch.from_numpy(MODEL.logits(prompt(seed, position), bits))
            assert check({"ids": prompt(seed)}, wrong, 0) > 1


def test_to_the_bit():
    def strict(ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(reference.strict.forward(ids.numpy(), MODEL.exported, MODEL.config))

    check = check_strict(MODEL, BEGINNING, 3)
    for seed in (1, 2):
        right = strict(prompt(seed))
        assert check({"ids": prompt(seed)}, right, 0) == 0
        for position in (0, 8, 9, 11):
            assert check({"ids": prompt(seed)}, strict(prompt(seed, position)), 0) == float("inf")
        right[0, -1, 5] = torch.nextafter(right[0, -1, 5], torch.tensor(9.0))
        assert check({"ids": prompt(seed)}, right, 0) == float("inf")
