"""Ternary weights, packed bytes and rounded activations: equal to the NumPy references, also at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from formulas import DTYPES, leaf

from walsh import errors, reference
from walsh.kernels import torch as kernels


def test_ternary_codes_equal_the_reference_at_their_edges() -> None:
    for dtype in DTYPES:
        w = torch.randn(64, 65).to(dtype)
        for rule in ("absmean", "round"):
            q, gamma = kernels.ternary(w, rule)
            expected, expected_gamma = reference.ternary(w.double().numpy(), rule)
            assert q.dtype == torch.int8
            assert (q.numpy() == expected).all()
            assert float(gamma) == pytest.approx(float(expected_gamma), rel=1e-6)
    half = torch.tensor([0.5, -0.5, 1.5, math.nextafter(0.5, 1), -math.nextafter(0.5, 1)], dtype=torch.float64)
    assert kernels.ternary(half, "round")[0].tolist() == [0, 0, 1, 1, -1]


def test_ternary_straight_through() -> None:
    w = torch.tensor([-3.0, -0.2, 0.5, 1.0, 2.0], requires_grad=True)
    dq = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (dw,) = torch.autograd.grad(kernels.ternary_ste(w), w, dq)
    assert dw.tolist() == dq.tolist()
    (dw,) = torch.autograd.grad(kernels.ternary_ste(w, ste_clip=1.0), w, dq)
    assert dw.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


@pytest.mark.parametrize("k", [0, 1, 3, 4, 5, 130])
def test_packing_equals_the_reference_and_has_an_inverse(k: int) -> None:
    q = torch.randint(-1, 2, (2, 3, k), dtype=torch.int8)
    packed = kernels.pack_ternary(q)
    assert (packed.numpy() == reference.pack_ternary(q.numpy())).all()
    assert torch.equal(kernels.unpack_ternary(packed, k), q)
    mask, signs = kernels.bitmask_encode(q)
    assert torch.equal(kernels.bitmask_decode(mask, signs, q.shape), q)
    expected = np.packbits(q.numpy().ravel() != 0, bitorder="little")
    assert (mask.numpy() == expected).all()
    nonzero = q.numpy().ravel()[q.numpy().ravel() != 0]
    assert (signs.numpy() == np.packbits(nonzero > 0, bitorder="little")).all()


def test_damaged_bytes_are_refused() -> None:
    for packed, k in ((torch.tensor([3], dtype=torch.uint8), 4), (torch.tensor([0], dtype=torch.uint8), 1)):
        with pytest.raises(errors.FormatError):
            kernels.unpack_ternary(packed, k)
    byte = torch.tensor([1], dtype=torch.uint8)
    for mask, signs, size in ((byte, byte[:0], 1), (byte, byte, 9), (byte * 2, byte, 1), (byte, byte * 2, 1)):
        with pytest.raises(errors.FormatError):
            kernels.bitmask_decode(mask, signs, (size,))


def test_activations_equal_the_reference() -> None:
    x = torch.randn(3, 4, 37, dtype=torch.float64)
    x[0, 0] = 0
    x[0, 1, 3], x[0, 2, 5] = math.nan, math.inf
    a, scale = kernels.quantize_activations(x)
    expected, expected_scale = reference.quantize_activations(x.numpy())
    assert (a.numpy() == expected).all()
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    v = kernels.fake_quantize_activations(x)
    np.testing.assert_array_equal(v.numpy(), reference.fake_quantize_activations(x.numpy()))
    assert kernels.quantize_activations(x.float())[1].dtype == torch.float32
    y = leaf(2, 5)
    (dx,) = torch.autograd.grad(kernels.fake_quantize_activations(y), y, torch.full((2, 5), 3.0, dtype=y.dtype))
    assert (dx == 3).all()
