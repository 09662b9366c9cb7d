"""Hadamard layers and transforms: values and gradients against matrices, butterflies to the bit, launches."""

import pytest
from interpreted import BF16, F32, SIZES, assert_close, check, codes, hadamard_formula, rand, torch

from walsh import errors
from walsh.kernels import triton as kernels
from walsh.kernels.triton._launch import count_launches


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_hadamard_linear(n):
    for tokens, out, k in SIZES:
        check(
            kernels.hadamard_linear, hadamard_formula, (rand(tokens, n * k), rand(n, out, k), rand(n, k), rand(n, out))
        )


@pytest.mark.parametrize("codes", [False, True])
def test_hadamard_layer_launches_at_most_four_kernels(codes):
    """Forward: two for the weights' codes, one for those of v, the layer. Backward: dx, dw, and the sums of both."""
    x, w, alpha, beta = (t.requires_grad_() for t in (rand(70, 24), rand(8, 2, 3), rand(8, 3), rand(8, 2)))
    with count_launches() as forward:
        y = (kernels.hadamard_bit_linear if codes else kernels.hadamard_linear)(x, w, alpha, beta)
    with count_launches() as backward:
        y.sum().backward()
    assert len(forward) == (4 if codes else 1)
    assert backward == ["hadamard_linear_kernel", "hadamard_weight_kernel", "hadamard_sums_kernel"]


def test_hadamard_layer_launches_only_what_is_wanted():
    leaves = [rand(5, 24), rand(8, 2, 3), rand(8, 3), rand(8, 2)]
    whole = [t.clone().requires_grad_() for t in leaves]
    kernels.hadamard_linear(*whole).sum().backward()
    expected = [
        ["hadamard_linear_kernel"],
        ["hadamard_weight_kernel", "hadamard_sums_kernel"],
        ["hadamard_linear_kernel", "hadamard_sums_kernel"],
        ["hadamard_weight_kernel", "hadamard_sums_kernel"],
    ]
    for place, names in enumerate(expected):
        given = [t.clone().requires_grad_(i == place) for i, t in enumerate(leaves)]
        y = kernels.hadamard_linear(*given)
        with count_launches() as backward:
            y.sum().backward()
        assert backward == names
        assert torch.equal(given[place].grad, whole[place].grad)


@pytest.mark.parametrize("packed", [False, True])
def test_hadamard_gradients_of_codes(packed):
    """Weights that are codes have no gradient; the others' are those of the same weights in float."""
    q = codes(8, 5, 7, low=-1, high=2)
    w = kernels.pack_ternary(q) if packed else q
    layer = lambda x, alpha, beta: kernels.hadamard_linear(x, w, alpha, beta)  # noqa: E731  # a function of the floats
    formula = lambda x, alpha, beta: hadamard_formula(x, q.double(), alpha, beta)  # noqa: E731  # a formula
    check(layer, formula, (rand(50, 56), rand(8, 7), rand(8, 5)))


@pytest.mark.parametrize("n", [2, 64, 4096, 8192])
def test_hadamard_transform(n):
    x = rand(2, 3, n)
    half = x.double()
    for stride in (1 << i for i in range(n.bit_length() - 1)):
        pairs = half.reshape(2, 3, n // (2 * stride), 2, stride)
        half = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2).reshape(
            x.shape
        )
    assert_close(kernels.hadamard_transform(x), half / n**0.5, F32, 64)
    place = x.clone()
    assert kernels.hadamard_transform_(place) is place
    assert torch.equal(place, kernels.hadamard_transform(x))
    whole = torch.arange(6 * n).reshape(2, 3, n) % 201 - 100
    assert kernels.hadamard_transform(whole, normalize=False).dtype == torch.int32
    twice = kernels.hadamard_transform(kernels.hadamard_transform(whole, normalize=False), normalize=False)
    assert torch.equal(twice, (n * whole).to(torch.int32))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("n", "k"), [(1, 3), (32, 5), (64, 3), (2048, 2)])
def test_hadamard_transform_across_blocks(n, k, dtype):
    """The transform of the blocks is that of the last axis after a transposition, to the bit, in and out of place."""
    x = rand(3, n * k, dtype=dtype)
    expected = kernels.hadamard_transform(x.reshape(3, n, k).transpose(1, 2)).transpose(1, 2).reshape(3, n * k)
    assert torch.equal(kernels.hadamard_transform(x, n=n), expected)
    assert torch.equal(kernels.hadamard_transform_(x.clone(), n=n), expected)
    leaf = x.clone().requires_grad_()
    kernels.hadamard_transform(leaf, n=n).backward(x)
    assert torch.equal(leaf.grad, expected)


def test_hadamard_transform_across_blocks_of_another_size_is_refused():
    for n in (0, 3, 8):
        with pytest.raises(errors.ShapeError, match=r"n \* K"):
            kernels.hadamard_transform(rand(2, 12), n=n)
    assert kernels.hadamard_transform(rand(2, 0), n=8).shape == (2, 0)
