"""Attention as softmax over what is seen; rotary positions as rotations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from formulas import close, leaf, strided

from walsh import reference
from walsh.kernels import torch as kernels


def test_what_is_not_seen_cannot_leak() -> None:
    q, k, v = (torch.randn(1, 4, 2, 4) for _ in range(3))
    clean = kernels.attention(q, k, v)
    for poisoned in (k, v):
        poisoned[0, 2] = math.nan
    o = kernels.attention(q, k, v)
    torch.testing.assert_close(o[:, :2], clean[:, :2])
    assert torch.isnan(o[:, 2:]).all()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    for positions in ([0, 1, 1, 1], [1, 0, -1, 1]):
        for gradient in torch.autograd.grad(kernels.attention(*leaves, torch.tensor(positions)).sum(), leaves):
            assert torch.isfinite(gradient).all()


def test_attention_at_explicit_positions_is_softmax_over_what_is_seen() -> None:
    q, k, v = torch.randn(2, 3, 2, 4), torch.randn(2, 6, 2, 4), torch.randn(2, 6, 2, 4)
    positions = torch.tensor([[5, -1, 0], [2, 2, -1]])
    o = kernels.attention(q, k, v, positions)
    for b, t in itertools.product(range(2), range(3)):
        s = int(positions[b, t]) + 1
        if s == 0:
            assert (o[b, t] == 0).all()
            continue
        p = (torch.einsum("hd,shd->hs", q[b, t], k[b, :s]) / 2).softmax(-1)
        torch.testing.assert_close(o[b, t], torch.einsum("hs,shd->hd", p, v[b, :s]))


def test_rope_turns_by_the_position() -> None:
    x = torch.zeros(1, 1, 4, dtype=torch.float64)
    x[..., 0::2] = 1
    y = kernels.rope(x, torch.tensor([123456])).ravel()
    angles = (123456.0, 123456.0 / 100)
    expected = [f(angle) for angle in angles for f in (math.cos, math.sin)]
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-10)


def test_default_positions_count_from_zero_whatever_was_asked_before() -> None:
    for tokens, theta, dtype in itertools.product((5, 3), (1e4, 1e2), (torch.float32, torch.float64, torch.bfloat16)):
        with torch.inference_mode():
            kernels.rope(torch.ones(tokens, 2, 4, dtype=dtype), theta=theta)
        x = leaf(2, tokens, 2, 4, dtype=dtype)
        y = kernels.rope(x, theta=theta)
        assert torch.equal(y, kernels.rope(x, torch.arange(tokens), theta))
        close(y, reference.rope(x.detach().double().numpy(), theta=theta), x.detach().double().norm())
        y.sum().backward()
        assert x.grad is not None


def test_rope_of_views_and_its_second_derivative() -> None:
    x = torch.randn(2 * 3 * 2 * 4 + 1)[1:].view(2, 3, 2, 4)
    expected = kernels.rope(x.clone())
    assert torch.equal(kernels.rope(x), expected)
    assert torch.equal(kernels.rope(strided(x)), expected)
    z = x.clone().requires_grad_()
    (dz,) = torch.autograd.grad(kernels.rope(z).square().sum() / 2, z, create_graph=True)
    torch.testing.assert_close(dz, z)  # a rotation keeps lengths
    (second,) = torch.autograd.grad(dz.sum(), z)
    torch.testing.assert_close(second, torch.ones_like(z))
