"""What tests of Triton kernels in the interpreter share: inputs, formulas in float64, comparisons.

    TRITON_INTERPRET=1 pytest tests/kernels/triton

The variable must be set before Triton is imported, so these tests have a process of their own; elsewhere the import of
this module skips the file that asks for it. On a machine with a GPU the conformance run holds compiled kernels to the
same definitions.
"""

import os

import numpy as np
import pytest

from walsh.algebra import cayley_dickson_signs, sylvester

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels cannot run on this CPU", allow_module_level=True)

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
UNIT = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8, F16: 2.0**-11}

# Tokens, outputs, inputs: none divides a block, none at all, one, and enough tokens for a split sum.
SIZES = [(5, 7, 9), (1, 20, 3), (0, 4, 4), (70, 6, 5)]


def rand(*shape, dtype=F32, seed=0):
    values = np.random.default_rng(seed + sum(shape)).standard_normal(shape)
    return torch.from_numpy(np.asarray(values)).to(dtype)


def codes(*shape, low=-128, high=128, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, shape).astype(np.int8))


def assert_close(actual, expected, dtype, terms=64):
    """Within ``terms`` rounding errors of the largest element."""
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    if actual.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= terms * UNIT[dtype] * max(1.0, expected.double().abs().max().item())


def check(function, formula, inputs, terms=64):
    """Values, gradients and the same bits twice, against a float64 formula that PyTorch differentiates."""
    dtype = inputs[0].dtype
    expected_inputs = [x.double().clone().requires_grad_() for x in inputs]
    expected = formula(*expected_inputs)
    upstream = rand(*expected.shape, seed=5).to(dtype)
    expected.backward(upstream.double())
    runs = []
    for _ in range(2):
        given = [x.clone().requires_grad_() for x in inputs]
        result = function(*given)
        result.backward(upstream)
        runs.append([result.detach(), *(x.grad for x in given)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert_close(runs[0][0], expected.detach(), dtype, terms)
    for gradient, x in zip(runs[0][1:], expected_inputs, strict=True):
        assert_close(gradient, x.grad, dtype, terms)


def same_bits(actual, expected):
    """Equal to the bit: tensor and array, or tuples of them."""
    if isinstance(actual, tuple):
        for one, other in zip(actual, expected, strict=True):
            same_bits(one, other)
        return
    left, right = np.ascontiguousarray(actual.detach().numpy()), np.ascontiguousarray(expected)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def cayley_dickson_formula(x, w, beta):
    d = w.shape[0]
    signs = torch.from_numpy(cayley_dickson_signs(d).astype(np.float64))
    parts = x.reshape(*x.shape[:-1], d, w.shape[2])
    rows = [sum(signs[i, j] * parts[..., j, :] @ w[i ^ j].T for j in range(d)) for i in range(d)]
    return (torch.stack(rows, dim=-2) * beta).flatten(-2)


def hadamard_formula(x, w, alpha, beta):
    n = w.shape[0]
    h = torch.from_numpy(sylvester(n).astype(np.float64)) / n**0.5
    v = torch.einsum("gh,...hk->...gk", h, alpha * x.reshape(*x.shape[:-1], n, w.shape[2]))
    z = torch.einsum("...gk,gnk->...gn", v, w)
    return (beta * torch.einsum("gh,...hn->...gn", h, z)).flatten(-2)
