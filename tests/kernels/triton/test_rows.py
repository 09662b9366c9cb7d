"""Norm, gate and quantizers against formulas; fused as apart, and packed codes and bit masks, to the bit."""

import numpy as np
import pytest
from interpreted import BF16, F32, F64, check, rand, same_bits, torch

from walsh.kernels import triton as kernels


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_rms_norm_and_swiglu(dtype):
    for shape in ((5, 37), (1, 64), (0, 8), (300, 6)):
        norm = lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w  # noqa: E731  # a formula
        check(kernels.rms_norm, norm, (rand(*shape, dtype=dtype), rand(shape[-1], dtype=dtype)))
        check(
            kernels.swiglu,
            lambda g, u: g * torch.sigmoid(g) * u,
            (rand(*shape, dtype=dtype), rand(*shape, dtype=dtype)),
        )


def test_norm_and_quantizer_fused():
    x, weight = rand(7, 33), rand(33)
    apart = kernels.quantize_activations(kernels.rms_norm(x, weight))
    assert all(torch.equal(a, b) for a, b in zip(kernels.rms_norm_quantize(x, weight), apart, strict=True))


def test_ternary_and_packing():
    for shape in ((37, 53), (1,), (3, 1000)):
        w = rand(*shape)
        q, gamma = kernels.ternary(w)
        mean = w.double().abs().mean() + 1e-8
        assert torch.equal(q, (w.double() / mean).round().clamp(-1, 1).to(torch.int8))
        assert float(gamma) == float(mean.float())
        assert torch.equal(kernels.unpack_ternary(kernels.pack_ternary(q), q.shape[-1]), q)
    assert kernels.ternary(torch.tensor([0.5, 0.75, -0.5, -2.0]), "round")[0].tolist() == [0, 1, 0, -1]
    assert kernels.pack_ternary(torch.tensor([1, 0, -1, -1, 1], dtype=torch.int8)).tolist() == [6, 86]


def test_packed_quantizer_is_the_quantizer_packed():
    for shape in ((3, 37), (5,), (2, 3, 8)):
        for rule in ("absmean", "round"):
            q, gamma = kernels.ternary(rand(*shape), rule)
            packed, same = kernels.ternary_packed(rand(*shape), rule)
            assert torch.equal(packed, kernels.pack_ternary(q))
            assert torch.equal(gamma, same)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 130, 3000])
def test_bitmask(length):
    q = np.random.default_rng(length).integers(-1, 2, length).astype(np.int8)
    mask, signs = kernels.bitmask_encode(torch.from_numpy(q))
    same_bits(mask, np.packbits(q != 0, bitorder="little"))
    same_bits(signs, np.packbits(q[q != 0] > 0, bitorder="little"))
    same_bits(kernels.bitmask_decode(mask, signs, (length,)), q)
