"""Products of Cayley-Dickson algebras: values and gradients against the sum over signs, integers exactly, launches."""

from functools import partial

import numpy as np
import pytest
from interpreted import BF16, F16, F32, F64, SIZES, assert_close, cayley_dickson_formula, check, rand, same_bits, torch

from walsh.algebra import cayley_dickson_signs
from walsh.kernels import triton as kernels
from walsh.kernels.triton._launch import count_launches


@pytest.mark.parametrize(
    ("d", "method"), [(1, "direct"), (2, "fast"), (4, "direct"), (8, "direct"), (8, "fast"), (16, "direct")]
)
def test_cayley_dickson(d, method):
    for tokens, n, k in SIZES[: 4 if d < 16 else 1]:
        x, w, beta = rand(tokens, d * k), rand(d, n, k), rand(n)
        check(partial(kernels.cayley_dickson_linear, method=method), cayley_dickson_formula, (x, w, beta))


@pytest.mark.parametrize("method", ["direct", "fast"])
@pytest.mark.parametrize("dtype", [F64, BF16, F16])
def test_cayley_dickson_dtypes(dtype, method):
    inputs = rand(3, 40, dtype=dtype), rand(8, 4, 5, dtype=dtype), rand(4, dtype=dtype)
    check(partial(kernels.cayley_dickson_linear, method=method), cayley_dickson_formula, inputs)


def test_cayley_dickson_strided():
    x, w, beta = rand(3, 80)[:, ::2], rand(5, 4, 8).transpose(0, 2), rand(8)[::2]
    check(kernels.cayley_dickson_linear, cayley_dickson_formula, (x, w, beta))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("d", [1, 8, 16])
def test_integers_are_exact(d, packed):
    generator = np.random.default_rng(d)
    codes = generator.integers(-1, 2, (d, 5, 7)).astype(np.int8)
    a = generator.integers(-128, 128, (3, d * 7)).astype(np.int8)
    signs, parts = cayley_dickson_signs(d).astype(np.int64), a.astype(np.int64).reshape(3, d, 7)
    total = np.stack(
        [sum(signs[i, j] * (parts[:, j] @ codes[i ^ j].T.astype(np.int64)) for j in range(d)) for i in range(d)], axis=1
    ).reshape(3, -1)
    w = torch.from_numpy(codes)
    w = kernels.pack_ternary(w) if packed else w
    same_bits(kernels.cayley_dickson_linear(torch.from_numpy(a), w), total.astype(np.int32))
    scale, beta = rand(3, 1).abs() + 1, rand(5)
    expected = (total.astype(np.float32) / scale.numpy()).reshape(3, d, 5) * beta.numpy()
    same_bits(kernels.cayley_dickson_linear(torch.from_numpy(a), w, beta, scale), expected.reshape(3, -1))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("bits", [8, None])
def test_bit_linear_is_straight_through(bits, clip):
    x, w, beta = rand(4, 40), rand(8, 3, 5), rand(3)
    gamma = w.double().abs().mean() + 1e-8
    q = (w.double() / gamma).round().clamp(-1, 1)
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    v = (x * scale).round().clamp(-128, 127).double() / scale.double() if bits else x.double()
    points = [t.clone().requires_grad_() for t in (v, q, beta.double())]
    expected = cayley_dickson_formula(*points)
    expected.sum().backward()
    given = [t.clone().requires_grad_() for t in (x, w, beta)]
    result = kernels.cayley_dickson_bit_linear(*given, bits, "absmean", clip)
    result.sum().backward()
    assert_close(result.detach(), expected.detach(), F32)
    masks = [1.0, 1.0 if clip is None else (w.abs() <= clip).double(), 1.0]
    for leaf, point, mask in zip(given, points, masks, strict=True):
        assert_close(leaf.grad, point.grad * mask, F32)


def test_octonion_layer_launches_at_most_four_kernels():
    x, w, beta = (t.requires_grad_() for t in (rand(70, 40), rand(8, 3, 5), rand(3)))
    with count_launches() as forward:
        y = kernels.cayley_dickson_bit_linear(x, w, beta)
    with count_launches() as backward:
        y.sum().backward()
    assert len(forward) <= 4
    assert len(backward) <= 4
