"""Signs and indices of the Cayley-Dickson algebras and of the Sylvester-Hadamard matrix.

Cayley-Dickson, D in {1, 2, 4, 8, 16}, from the reals by ``(a, b)(c, d) = (a c - d* b, d a + b c*)`` (Schafer, *An
Introduction to Nonassociative Algebras*, III.5). Basis products are ``e_j e_k = +-e_{j xor k}``, hence::

    (x w)_i = sum_j S[i, j] x_j w_{i xor j},      S in {-1, +1}

Hadamard, n a power of two, Sylvester (natural) order: ``H[g, h] = (-1)^popcount(g & h)``.

The product in fewer multiplications. The xor convolution ``U_i = sum_j x_j w_{i xor j}`` is diagonalised by the
Hadamard matrix: ``U = H ((H x) * (H w)) / D`` takes D products. A signed product differs from ``+-U`` only where its
sign is in the minority of its row, and each such term is corrected by ``-+2 x_j w_{i xor j}``: 3 products instead of 4
for the complex numbers, 8 of 16 for quaternions, 30 of 64 for octonions, 122 of 256 for sedenions. Nothing is commuted,
so x_j and w_k may be matrix blocks, over any ring in which D can be divided out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import ParameterError, ShapeError

DIMENSIONS: dict[str, int] = {"dense": 1, "complex": 2, "quaternion": 4, "octonion": 8, "sedenion": 16}
"""Dimension D of each Cayley-Dickson algebra by the name that configurations use."""


def is_power_of_two(n: int) -> bool:
    """Whether n is 1, 2, 4, 8, ..."""
    return n > 0 and n & (n - 1) == 0


@cache
def _signs(dimension: int) -> NDArray[np.int8]:
    """S by recursion on the definition; read-only because it is cached."""
    if dimension == 1:
        table = np.ones((1, 1), dtype=np.int8)
    else:
        half = dimension // 2
        inner = _signs(half)
        table = np.empty((dimension, dimension), dtype=np.int8)
        conjugate = np.full(half, -1, dtype=np.int8)
        conjugate[0] = 1
        for i in range(half):
            for j in range(half):
                k = i ^ j
                # Lower half of the result: (a c)_i takes x_j w_k; (d* b)_i = sum_m S[i, m] conj(d)_m b_{i^m}, with d
                # from w and b from x, so x_{half+j} meets w_{half+k} with the sign at m = k.
                table[i, j] = inner[i, j]
                table[i, half + j] = -inner[i, k] * conjugate[k]
                # Upper half: (d a)_i = sum_m S[i, m] d_m a_{i^m}, so x_j meets w_{half+k} at m = k; (b c*)_i at m = j.
                table[half + i, j] = inner[i, k]
                table[half + i, half + j] = inner[i, j] * conjugate[k]
    table.setflags(write=False)
    return table


def cayley_dickson_signs(dimension: int) -> NDArray[np.int8]:
    """Sign table S of the Cayley-Dickson algebra of this dimension.

    Args:
        dimension: D, one of 1, 2, 4, 8, 16.

    Returns:
        int8 [D, D], read-only: ``(x w)_i = sum_j S[i, j] x_j w_{i xor j}``.

    Raises:
        ParameterError: for any other dimension.
    """
    if dimension not in DIMENSIONS.values():
        raise ParameterError(f"dimension {dimension!r}: expected one of {sorted(DIMENSIONS.values())}")
    return _signs(dimension)


@cache
def sylvester(n: int) -> NDArray[np.int8]:
    """Sylvester-Hadamard matrix, unnormalised.

    Args:
        n: a power of two.

    Returns:
        int8 [n, n], read-only: ``H[g, h] = (-1)^popcount(g & h)``.

    Raises:
        ShapeError: if n is not a power of two.
    """
    if not is_power_of_two(n):
        raise ShapeError(f"transform size {n}: expected a power of two")
    table = np.ones((1, 1), dtype=np.int8)
    while table.shape[0] < n:
        table = np.block([[table, table], [table, -table]])
    table.setflags(write=False)
    return table


def multiply(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """Hyper-complex product of numbers held along the last axis.

    Args:
        x, w: [..., D], broadcast against each other; any dtype with + and *.

    Returns:
        [..., D], ``(x w)_i = sum_j S[i, j] x_j w_{i xor j}``.
    """
    x, w = np.asarray(x), np.asarray(w)
    dimension = x.shape[-1]
    if w.shape[-1] != dimension:
        raise ShapeError(f"last axes differ: {dimension} and {w.shape[-1]}; both must be the dimension D")
    signs = cayley_dickson_signs(dimension).astype(x.dtype)
    components = np.arange(dimension)
    parts = [(signs[i] * x * w[..., i ^ components]).sum(axis=-1) for i in components]
    return np.stack(parts, axis=-1)


def conjugate(x: NDArray[Any]) -> NDArray[Any]:
    """Conjugate along the last axis: the real component kept, the others negated. [..., D] -> [..., D]."""
    result = -np.asarray(x)
    result[..., 0] = -result[..., 0]
    return result


@dataclass(frozen=True)
class FastProduct:
    """A signed xor convolution ``z_a = sum_b A[a, b] p_b q_{a xor b}`` in ``products`` multiplications.

    With ``U = H ((H (f p)) * (H (g q))) / D``, f and g diagonal signs::

        z_a = base[a] U_a + sum over (a, b) in corrections of 2 A[a, b] p_b q_{a xor b}

    Attributes:
        signs: int8 [D, D], the table A.
        flip_p: int8 [D], the signs f put on p before its transform.
        flip_q: int8 [D], the signs g put on q before its transform.
        base: int8 [D], the majority sign of each row of ``A[a, b] f_b g_{a xor b}``.
        corrections: the pairs (a, b) whose sign is in the minority of row a.
    """

    signs: NDArray[np.int8]
    flip_p: NDArray[np.int8]
    flip_q: NDArray[np.int8]
    base: NDArray[np.int8]
    corrections: tuple[tuple[int, int], ...]

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.base.shape[0])

    @property
    def products(self) -> int:
        """How many multiplications it takes: D for the convolution and one per correction."""
        return self.dimension + len(self.corrections)

    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The same as three integer matrices over r = products.

        Returns:
            left [r, D], right [r, D], out [D, r] with ``D * z = out @ ((left @ p) * (right @ q))``.
        """
        dimension, rank = self.dimension, self.products
        hadamard = sylvester(dimension).astype(np.int64)
        left = np.zeros((rank, dimension), dtype=np.int64)
        right = np.zeros((rank, dimension), dtype=np.int64)
        out = np.zeros((dimension, rank), dtype=np.int64)
        left[:dimension] = hadamard * self.flip_p
        right[:dimension] = hadamard * self.flip_q
        out[:, :dimension] = self.base[:, None].astype(np.int64) * hadamard
        for r, (a, b) in enumerate(self.corrections, start=dimension):
            left[r, b] = 1
            right[r, a ^ b] = 1
            out[a, r] = 2 * dimension * int(self.signs[a, b])
        return left, right, out


def fast_product(
    signs: NDArray[np.int8],
    flip_p: NDArray[np.int8] | None = None,
    flip_q: NDArray[np.int8] | None = None,
) -> FastProduct:
    """Factorise a signed xor convolution; see :class:`FastProduct`.

    Args:
        signs: int8 [D, D] of -1 and +1, D a power of two.
        flip_p, flip_q: int8 [D] of -1 and +1, all +1 if absent; a good choice leaves fewer corrections.
    """
    dimension = signs.shape[0]
    if signs.shape != (dimension, dimension) or not is_power_of_two(dimension):
        raise ShapeError(f"sign table of shape {signs.shape}: expected [D, D] with D a power of two")
    ones = np.ones(dimension, dtype=np.int8)
    flip_p = ones if flip_p is None else flip_p
    flip_q = ones if flip_q is None else flip_q
    index = np.arange(dimension)
    flipped = signs * flip_p[None, :] * flip_q[index[:, None] ^ index[None, :]]
    base = np.where(flipped.sum(axis=1, dtype=np.int64) >= 0, 1, -1).astype(np.int8)
    minority = np.argwhere(flipped != base[:, None])
    return FastProduct(signs, flip_p, flip_q, base, tuple((int(a), int(b)) for a, b in minority))


def _conjugate_signs(dimension: int) -> NDArray[np.int8]:
    return conjugate(np.ones(dimension, dtype=np.int8))


@cache
def fast_forward(dimension: int) -> FastProduct:
    """``y_i = sum_j S[i, j] x_j w_{i xor j}``: p = x, q = w."""
    return fast_product(cayley_dickson_signs(dimension))


@cache
def fast_backward_x(dimension: int) -> FastProduct:
    """``dx_j = sum_i S[i, j] dy_i w_{i xor j}``: p = dy, q = w. Equals ``dy w*``, hence the flipped w."""
    signs = np.ascontiguousarray(cayley_dickson_signs(dimension).T)
    return fast_product(signs, flip_q=_conjugate_signs(dimension))


@cache
def fast_backward_w(dimension: int) -> FastProduct:
    """``dw_k = sum_i S[i, i xor k] dy_i x_{i xor k}``: p = dy, q = x. Equals ``x* dy``, hence the flipped x."""
    signs = cayley_dickson_signs(dimension)
    i = np.arange(dimension)
    table = np.stack([signs[i, i ^ k] for k in range(dimension)])
    return fast_product(table, flip_q=_conjugate_signs(dimension))
