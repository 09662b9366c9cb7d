"""Layers written out, to hold the PyTorch kernels to, and the tensors and bounds that tests of them share.

    Cayley-Dickson   y_i = beta sum over j of sign(i, j) x_j w_(i xor j)^T      x [..., D K], w [D, N, K], y [..., D N]
    Hadamard         y = beta H z,   z_h = v_h w_h^T,   v = H (alpha x)         H Sylvester's matrix, divided by sqrt(n)

PyTorch differentiates both, so they are formulas of gradients too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import Tensor

from walsh.algebra import cayley_dickson_signs, sylvester

METHODS = ("auto", "direct", "expanded", "fast")
DIMENSIONS = (1, 2, 4, 8, 16)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def leaf(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()


def strided(x: Tensor) -> Tensor:
    """The same values with a step of 2 along the last axis and the first axis last in memory."""
    wide = torch.full((*x.shape[1:], x.shape[0], 2), math.nan, dtype=x.dtype) if x.ndim else x
    view = wide[..., 0].movedim(-1, 0)
    return view.copy_(x.detach())


def plain_cayley_dickson(x: Tensor, w: Tensor, beta: Tensor | None = None) -> Tensor:
    d, n, k = w.shape
    signs = cayley_dickson_signs(d)
    blocks = x.reshape(*x.shape[:-1], d, k)
    rows = [sum(int(signs[i, j]) * (blocks[..., j, :] @ w[i ^ j].T) for j in range(d)) for i in range(d)]
    y = torch.stack(rows, dim=-2)
    return (y if beta is None else y * beta).reshape(*x.shape[:-1], d * n)


def plain_hadamard(x: Tensor, w: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    n, width, k = w.shape
    h = torch.tensor(sylvester(n)).to(w.dtype) / math.sqrt(n)
    u = x.reshape(*x.shape[:-1], n, k)
    v = h @ (u if alpha is None else u * alpha)
    y = h @ torch.einsum("...gk,gnk->...gn", v, w)
    return (y if beta is None else y * beta).reshape(*x.shape[:-1], n * width)


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def close(found: Tensor, expected: Any, magnitude: Any = None, steps: float = 8) -> None:
    """Each element within ``steps`` units of its dtype, of the sum of absolute products where given."""
    expected = torch.as_tensor(np.asarray(expected.detach() if isinstance(expected, Tensor) else expected)).double()
    assert found.shape == expected.shape
    bound = steps * unit(found.dtype) * (expected.abs() if magnitude is None else torch.as_tensor(magnitude).double())
    assert ((found.double() - expected).abs() <= bound + 1e-30).all()
