"""The Hadamard transform: the product with Sylvester's matrix, exact on integers, rounded once on floats."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from walsh import reference
from walsh.algebra import sylvester
from walsh.kernels import torch as kernels


def test_hadamard_transform_is_the_matrix_and_exact_on_integers() -> None:
    for n in (1, 2, 4, 32):
        x = torch.randint(-1000, 1000, (3, n))
        y = kernels.hadamard_transform(x, normalize=False)
        assert y.dtype == torch.int32
        assert (y.numpy() == x.numpy() @ sylvester(n).astype(np.int64)).all()
        z = torch.randn(3, n, dtype=torch.float64)
        np.testing.assert_array_equal(kernels.hadamard_transform(z).numpy(), reference.hadamard_transform(z.numpy()))


@pytest.mark.parametrize(("rows", "n"), [(5000, 32), (4100, 64), (2100, 128), (70, 4096), (3, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_transform_is_rounded_once(rows: int, n: int, dtype: torch.dtype) -> None:
    """In whichever pieces and products it is formed; sums of these whole numbers are exact in any order."""
    x = torch.randint(-7, 8, (rows, n))
    h = torch.tensor(sylvester(n)).double()
    expected = ((x.double() @ h).float() * (1 / math.sqrt(n))).to(dtype)
    assert torch.equal(kernels.hadamard_transform(x.to(dtype)), expected)
    turned = x.to(dtype).t().contiguous().t()
    assert torch.equal(kernels.hadamard_transform(turned), expected)
    plain = kernels.hadamard_transform(x.to(dtype), normalize=False)
    assert torch.equal(plain, (x.double() @ h).to(dtype))


def test_a_product_that_rounds_twice_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("walsh.kernels.torch.hadamard_transform")
    x = torch.randint(-7, 8, (5000, 32)).bfloat16()
    expected = kernels.hadamard_transform(x)
    monkeypatch.setattr(module, "_rounds_once", lambda _: False)
    assert torch.equal(kernels.hadamard_transform(x), expected)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_one_product", lambda x, factor: (x @ module._matrix(x.shape[1], x)) * factor)
    assert not module._rounds_once.__wrapped__(32)
