"""Signed xor convolutions of matrix blocks: how the Cayley-Dickson layers form their products.

    z_a = sum_b A[a, b] p_b q_{a xor b},     p [D, m, k], q [D, k, n], z [D, m, n], A [D, D] of -1 and +1

The forward (A = S, p = x, q = w^T), the input gradient (A = S^T, p = dy, q = w) and the weight gradient (p = dy^T,
q = x) all have this form. Three ways to compute it:

- ``direct``: D GEMMs, one per block of weights, on x with its components permuted and signed: D * D block products.
- ``expanded``: one GEMM on the sign-expanded matrix [D*N, D*K]; D times the memory of w, the fewest calls.
- ``fast``: 3, 8, 30 or 122 block products instead of 4, 16, 64 or 256 (``walsh.algebra``): a Hadamard transform across
  the blocks makes the convolution diagonal, and the terms of minority sign are corrected by +-2 p q. Its rounding error
  is bounded by the norms of the operands over all D blocks, not element by element.

``auto`` is one of these by size, see :func:`choose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.algebra import FastProduct, cayley_dickson_signs, fast_backward_w, fast_backward_x, fast_forward
from walsh.kernels.torch.integer import integer_mm

METHODS = ("auto", "direct", "expanded", "fast")


def choose(method: str, d: int, m: int, n: int, k: int, device: torch.device) -> str:
    """The method that ``auto`` stands for; any other stands for itself.

    Measured on CPU with ``bench/cayley_dickson_methods.py`` (forward and both gradients, float32, two cores with
    AVX-512; n = k from 16 to 256, m from 1 to 1024): the extra additions of ``fast`` are repaid from d * k = 512 and 64
    tokens on, at D = 4 and above; below 64 tokens the sign expansion costs more than the product that it serves, unless
    the matrix is small. On other devices ``expanded``, one large GEMM; the others have not been measured there.
    """
    if method != "auto":
        return method
    large = d * min(n, k) >= 512
    if device.type != "cpu" or d == 1:
        return "expanded"
    if m >= 64:
        return "fast" if d >= 4 and large else "expanded"
    return "direct" if d >= 8 or large else "expanded"


@cache
def sign_table(d: int) -> tuple[tuple[int, ...], ...]:
    """S as Python integers."""
    return tuple(tuple(int(s) for s in row) for row in cayley_dickson_signs(d))


# --- direct


def arrange(x: Tensor, c: int, transposed: bool = False) -> Tensor:
    """What meets block c of the weights: row (m, a) is ``A[a, a xor c] x[m, a xor c]``, A = S or its transpose.

    x [M, D, K] of a dtype with a sign, result [M*D, K].
    """
    m, d, k = x.shape
    signs = sign_table(d)
    order = torch.tensor([a ^ c for a in range(d)], device=x.device)
    column = [signs[a ^ c][a] if transposed else signs[a][a ^ c] for a in range(d)]
    return x[:, order].mul_(torch.tensor(column, dtype=x.dtype, device=x.device)[:, None]).view(m * d, k)


def _direct(x: Tensor, w: Tensor, transposed: bool) -> Tensor:
    """``sum_c arrange(x, c) w_c``: x [M, D, k], w [D, k, n], result [M, D, n]."""
    m, d, _ = x.shape
    z = x.new_empty(m * d, w.shape[2])
    for c in range(d):
        torch.addmm(z, arrange(x, c, transposed), w[c], beta=float(c > 0), out=z)
    return z.view(m, d, w.shape[2])


# --- expanded


_ONE_GATHER = 1 << 20
"""Elements of an expanded matrix up to which one gather and one product make it faster than copies block by block."""

_ONE_SUM = 1 << 18
"""The same for its transpose, :func:`fold`."""


def expand(q: Tensor) -> Tensor:
    """The matrix [D*N, D*K] whose block (i, j) is ``S[i, j] q_{i xor j}``, from q [D, N, K]; any dtype with a sign."""
    d, n, k = q.shape
    out = q.new_empty(d, n, d, k)
    if out.numel() <= _ONE_GATHER:
        blocks = q.index_select(0, _differences(d, q.device)).view(d, d, n, k).transpose(1, 2)
        return torch.mul(blocks, _signs(d, q.dtype, q.device).view(d, 1, d, 1), out=out).view(d * n, d * k)
    signs = sign_table(d)
    negative = -q
    for i in range(d):
        for j in range(d):
            out[i, :, j].copy_(q[i ^ j] if signs[i][j] > 0 else negative[i ^ j])
    return out.view(d * n, d * k)


def fold(g: Tensor, d: int) -> Tensor:
    """The transpose of :func:`expand`: ``sum_i S[i, i xor k] g[i, :, i xor k]``, [D*N, D*K] to [D, N, K]."""
    n, k = g.shape[0] // d, g.shape[1] // d
    blocks = g.view(d, n, d, k)
    if g.numel() <= _ONE_SUM:
        # Row c of the batch: the D signed blocks that belong to component c.
        order, signs = _diagonals(d, g.dtype, g.device)
        terms = blocks.transpose(1, 2).reshape(d * d, n * k).index_select(0, order)
        return torch.bmm(signs, terms.view(d, d, n * k)).view(d, n, k)
    table = sign_table(d)
    out = g.new_zeros(d, n, k)
    for i in range(d):
        for j in range(d):
            out[i ^ j].add_(blocks[i, :, j], alpha=table[i][j])
    return out


@cache
def _differences(d: int, device: torch.device) -> Tensor:
    """``i xor j`` for every (i, j), [D*D]."""
    return torch.tensor([i ^ j for i in range(d) for j in range(d)], device=device)


@cache
def _signs(d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """S [D, D]."""
    return torch.tensor(sign_table(d), dtype=dtype, device=device)


@cache
def _diagonals(d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the blocks (i, i xor c) stand among all, by c and i, [D*D]; ``S[i, i xor c]`` [D, 1, D]."""
    signs = sign_table(d)
    order = torch.tensor([i * d + (i ^ c) for c in range(d) for i in range(d)], device=device)
    column = [[[signs[i][i ^ c] for i in range(d)]] for c in range(d)]
    return order, torch.tensor(column, dtype=dtype, device=device)


# --- fast


def _mix(z: Tensor) -> Tensor:
    """Butterflies across the blocks of z [D, ., .], in place: a + b, then (a + b) - 2 b for a - b.

    One more rounding than (a, b) -> (a + b, a - b), within the bound of this method, and no second buffer: fresh memory
    costs more than the additions.
    """
    d = z.shape[0]
    for stage in range(d.bit_length() - 1):
        pairs = z.view(d >> stage + 1, 2, 1 << stage, *z.shape[1:])
        a, b = pairs[:, 0], pairs[:, 1]
        a.add_(b)
        torch.sub(a, b, alpha=2, out=b)
    return z


def _transform(x: Tensor, flips: NDArray[np.int8]) -> Tensor:
    """Butterflies across the blocks of x [D, ., .] after a change of their signs; the memory layout is kept."""
    if (flips > 0).all():
        return _mix(x.clone())
    signs = torch.tensor(flips.tolist(), dtype=x.dtype, device=x.device)
    return _mix(x * signs[:, None, None])


def _fast(table: FastProduct, p: Tensor, q: Tensor, ph: Tensor, z: Tensor) -> Tensor:
    """The convolution of p and q into z; ph is the transform of p."""
    d = table.dimension
    qh = _transform(q, table.flip_q)
    for r in range(d):
        torch.addmm(z[r], ph[r], qh[r], beta=0, alpha=1 / d, out=z[r])
    _mix(z)
    for a in range(d):
        if table.base[a] < 0:
            z[a].neg_()
    for a, b in table.corrections:
        z[a].addmm_(p[b], q[a ^ b], alpha=2 * int(table.signs[a, b]))
    return z


# --- the layer


def product(x: Tensor, w: Tensor, method: str = "auto") -> Tensor:
    """``Y_i = sum_j S[i, j] X_j W_{i xor j}^T``: x [M, D, K], w [D, N, K] of one float dtype, y [M, D, N]."""
    m, d, k = x.shape
    n = w.shape[1]
    method = choose(method, d, m, n, k, x.device)
    if method == "direct":
        return _direct(x, w.transpose(1, 2), transposed=False)
    if method == "expanded":
        return (x.reshape(m, d * k) @ expand(w).t()).view(m, d, n)
    table, p = fast_forward(d), x.transpose(0, 1)
    z = x.new_empty(m, d, n).transpose(0, 1)
    return _fast(table, p, w.transpose(1, 2), _transform(p, table.flip_p), z).transpose(0, 1)


def gradients(
    dy: Tensor, x: Tensor, w: Tensor, beta: Tensor | None, needs: Sequence[bool], method: str = "auto"
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``beta * product(x, w)``.

    Args:
        dy: [M, D, N]. x: [M, D, K]. w: [D, N, K]. beta: [N] or None. All of one float dtype.
        needs: which of dx, dw, dbeta are wanted.
        method: as in the forward.

    Returns:
        dx [M, D, K], dw [D, N, K], dbeta [N], or None.
    """
    m, d, k = x.shape
    n = w.shape[1]
    method = choose(method, d, m, n, k, x.device)
    dx = dw = dbeta = transformed = None
    if method == "fast":
        # Both gradients meet dy with the same transform, since neither changes the signs of its blocks.
        transformed = _transform(dy.transpose(0, 1), fast_backward_x(d).flip_p)
    if needs[0]:
        dx = _input_gradient(dy, w if beta is None else w * beta[:, None], transformed, method)
    if needs[1] or needs[2]:
        # beta stays out of this sum, which therefore serves both gradients.
        dw = _weight_gradient(dy, x, transformed, method)
        if needs[2]:
            dbeta = (dw * w).sum(dim=(0, 2))
        dw = (dw if beta is None else dw.mul_(beta[:, None])) if needs[1] else None
    return dx, dw, dbeta


def _input_gradient(dy: Tensor, w: Tensor, transformed: Tensor | None, method: str) -> Tensor:
    """``dX_j = sum_i S[i, j] dY_i W_{i xor j}``, [M, D, K]."""
    m, d, n = dy.shape
    k = w.shape[2]
    if transformed is not None:
        z = dy.new_empty(m, d, k).transpose(0, 1)
        return _fast(fast_backward_x(d), dy.transpose(0, 1), w, transformed, z).transpose(0, 1)
    if method == "direct":
        return _direct(dy, w, transposed=True)
    return (dy.reshape(m, d * n) @ expand(w)).view(m, d, k)


def _weight_gradient(dy: Tensor, x: Tensor, transformed: Tensor | None, method: str) -> Tensor:
    """``G_k = sum_i S[i, i xor k] dY_i^T X_{i xor k}``, [D, N, K]."""
    m, d, n = dy.shape
    k = x.shape[2]
    if transformed is not None:
        p = dy.permute(1, 2, 0)
        return _fast(fast_backward_w(d), p, x.transpose(0, 1), transformed.transpose(1, 2), dy.new_empty(d, n, k))
    if method == "direct":
        rows = dy.reshape(m * d, n).t()
        return torch.stack([rows @ arrange(x, c) for c in range(d)])
    return fold(dy.reshape(m, d * n).t() @ x.reshape(m, d * k), d)


def expanded_integer_product(a: Tensor, q: Tensor) -> Tensor:
    """One integer GEMM on the sign-expanded codes."""
    d, n, _ = q.shape
    return integer_mm(a, expand(q), largest=1).view(a.shape[0], d, n)


def crossed_integer_product(a: Tensor, q: Tensor) -> Tensor:
    """One integer GEMM of every block of a with every block of q, then signed sums of the results.

    Nothing is expanded, but the results are D times larger: for few rows. Signs go to the results, since the negative
    of the code -128 is not an int8.
    """
    d, n, k = q.shape
    m = a.shape[0]
    crossed = integer_mm(a.reshape(m * d, k), q.reshape(d * n, k), largest=1).view(m, d * d, n)
    order, signs = _crossings(d, a.device)
    return crossed.index_select(1, order).mul_(signs).view(m, d, d, n).sum(dim=2, dtype=torch.int32)


@cache
def _crossings(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where ``a_j q_{i xor j}`` stands among all products of blocks, for every (i, j), and its sign."""
    pairs = [(i, j) for i in range(d) for j in range(d)]
    signs = sign_table(d)
    order = torch.tensor([j * d + (i ^ j) for i, j in pairs], device=device)
    return order, torch.tensor([signs[i][j] for i, j in pairs], dtype=torch.int32, device=device)[:, None]


def integer_product(a: Tensor, q: Tensor) -> Tensor:
    """The exact product of codes: a int8 [M, D*K], q int8 [D, N, K], result int32 [M, D, N].

    The limit of ``crossed`` was measured as in :func:`choose`; either way the result is the same to the bit.
    """
    d = q.shape[0]
    return crossed_integer_product(a, q) if d >= 4 and a.shape[0] <= 4 * d else expanded_integer_product(a, q)
