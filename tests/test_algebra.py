"""Signs and fast products of the algebras, in exact integers, against the recursive definition."""

import numpy as np
import pytest

from walsh import algebra
from walsh.errors import ParameterError, ShapeError

DIMENSIONS = (1, 2, 4, 8, 16)
OCTONION = """
+ - - - - - - -
+ + + - + - - +
+ - + + + + - -
+ + - + + - + -
+ - - - + + + +
+ + - + - + - +
+ + + - - + + -
+ - + + - - + +
"""


def recursive_conjugate(x: list[int]) -> list[int]:
    return [x[0], *(-c for c in x[1:])]


def recursive_product(x: list[int], w: list[int]) -> list[int]:
    """(a, b)(c, d) = (a c - d* b, d a + b c*), written out."""
    if len(x) == 1:
        return [x[0] * w[0]]
    half = len(x) // 2
    a, b, c, d = x[:half], x[half:], w[:half], w[half:]
    left = zip(recursive_product(a, c), recursive_product(recursive_conjugate(d), b), strict=True)
    right = zip(recursive_product(d, a), recursive_product(b, recursive_conjugate(c)), strict=True)
    return [p - q for p, q in left] + [p + q for p, q in right]


def draws(dimension: int, count: int, numbers: int = 3) -> np.ndarray:
    return np.random.default_rng(dimension).integers(-9, 10, (numbers, count, dimension))


def norm(x: np.ndarray) -> np.ndarray:
    return (x * x).sum(axis=-1)


def test_octonion_table_is_pinned() -> None:
    table = [[1 if sign == "+" else -1 for sign in line.split()] for line in OCTONION.strip().splitlines()]
    assert algebra.cayley_dickson_signs(8).tolist() == table


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_product_is_the_recursion(dimension: int) -> None:
    x, w, _ = draws(dimension, 20)
    assert algebra.multiply(x, w).tolist() == [
        recursive_product(a, b) for a, b in zip(x.tolist(), w.tolist(), strict=True)
    ]


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_signs_are_the_basis_products(dimension: int) -> None:
    signs, basis = algebra.cayley_dickson_signs(dimension), np.eye(dimension, dtype=int).tolist()
    for j in range(dimension):
        for k in range(dimension):
            expected = [0] * dimension
            expected[j ^ k] = int(signs[j ^ k, j])
            assert recursive_product(basis[j], basis[k]) == expected


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_smaller_algebra_is_the_corner_of_a_larger(dimension: int) -> None:
    corner = algebra.cayley_dickson_signs(16)[:dimension, :dimension]
    assert (corner == algebra.cayley_dickson_signs(dimension)).all()


PRODUCTS = {1: 1, 2: 3, 4: 8, 8: 30, 16: 122}


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("direction", ["forward", "backward_x", "backward_w"])
def test_fast_product_is_exact_in_few_products(dimension: int, direction: str) -> None:
    signs, r = algebra.cayley_dickson_signs(dimension).astype(int), range(dimension)
    p, q, _ = draws(dimension, 20)
    expected = np.zeros_like(p)
    for i in r:
        for j in r:
            if direction == "forward":  # y_i = sum_j S[i, j] x_j w_{i^j}
                expected[:, i] += signs[i, j] * p[:, j] * q[:, i ^ j]
            elif direction == "backward_x":  # dx_j = sum_i S[i, j] dy_i w_{i^j}
                expected[:, j] += signs[i, j] * p[:, i] * q[:, i ^ j]
            else:  # dw_{i^j} = sum_i S[i, j] dy_i x_j
                expected[:, i ^ j] += signs[i, j] * p[:, i] * q[:, j]
    fast = getattr(algebra, f"fast_{direction}")(dimension)
    left, right, out = fast.tables()
    assert fast.products == PRODUCTS[dimension] == len(left)
    assert fast.dimension == dimension
    assert (((p @ left.T) * (q @ right.T)) @ out.T == dimension * expected).all()


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_fast_product_by_its_formula(dimension: int) -> None:
    fast = algebra.fast_backward_w(dimension)
    p, q, _ = draws(dimension, 20)
    h = algebra.sylvester(dimension).astype(int)
    scaled = fast.base * (((p * fast.flip_p) @ h * ((q * fast.flip_q) @ h)) @ h)
    for a, b in fast.corrections:
        scaled[:, a] += 2 * dimension * fast.signs[a, b] * p[:, b] * q[:, a ^ b]
    expected = sum(fast.signs[:, b].astype(int) * p[:, [b]] * q[:, np.arange(dimension) ^ b] for b in range(dimension))
    assert (scaled == dimension * expected).all()


def holds(dimension: int, law: str) -> bool:
    """Whether a law holds for random integers."""
    mul = algebra.multiply
    x, y, z = draws(dimension, 30)
    sides = {
        "commutative": lambda: (mul(x, y), mul(y, x)),
        "associative": lambda: (mul(mul(x, y), z), mul(x, mul(y, z))),
        "left alternative": lambda: (mul(x, mul(x, y)), mul(mul(x, x), y)),
        "right alternative": lambda: (mul(mul(y, x), x), mul(y, mul(x, x))),
        "Moufang": lambda: (mul(mul(x, y), mul(z, x)), mul(mul(x, mul(y, z)), x)),
        "composition": lambda: (norm(mul(x, y)), norm(x) * norm(y)),
        "flexible": lambda: (mul(mul(x, y), x), mul(x, mul(y, x))),
        "power-associative": lambda: (mul(mul(x, x), mul(x, x)), mul(x, mul(x, mul(x, x)))),
        "quadratic": lambda: (mul(x, x) + norm(x)[:, None] * np.eye(dimension, dtype=int)[0], 2 * x[:, :1] * x),
        "adjoint": lambda: ((mul(x, y) * z).sum(axis=-1), (x * mul(z, algebra.conjugate(y))).sum(axis=-1)),
        "conjugate of a product": lambda: (
            algebra.conjugate(mul(x, y)),
            mul(algebra.conjugate(y), algebra.conjugate(x)),
        ),
    }
    left, right = sides[law]()
    return bool((left == right).all())


LARGEST = {
    "commutative": 2,
    "associative": 4,
    "left alternative": 8,
    "right alternative": 8,
    "Moufang": 8,
    "composition": 8,
    "flexible": 16,
    "power-associative": 16,
    "quadratic": 16,
    "adjoint": 16,
    "conjugate of a product": 16,
}


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("law", LARGEST)
def test_law_holds_up_to_its_dimension_and_no_further(law: str, dimension: int) -> None:
    assert holds(dimension, law) == (dimension <= LARGEST[law])


def test_sedenions_have_zero_divisors() -> None:
    e = np.eye(16, dtype=int)
    x, w = e[1] + e[10], e[4] - e[15]
    assert not algebra.multiply(x, w).any()
    assert recursive_product(x.tolist(), w.tolist()) == [0] * 16


@pytest.mark.parametrize("n", [1, 2, 4, 8, 32])
def test_sylvester_counts_common_bits(n: int) -> None:
    h = algebra.sylvester(n).astype(int)
    assert h.tolist() == [[(-1) ** bin(g & k).count("1") for k in range(n)] for g in range(n)]
    assert (h @ h == n * np.eye(n, dtype=int)).all()


def test_tables_cannot_be_edited() -> None:
    for table in (algebra.cayley_dickson_signs(8), algebra.sylvester(8)):
        with pytest.raises(ValueError, match="read-only"):
            table[0, 0] = 0


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ParameterError, match="32"):
        algebra.cayley_dickson_signs(32)
    with pytest.raises(ShapeError, match="12"):
        algebra.sylvester(12)
    with pytest.raises(ShapeError, match="last axes"):
        algebra.multiply(np.ones(4), np.ones(8))
    with pytest.raises(ShapeError, match="power of two"):
        algebra.fast_product(np.ones((3, 3), dtype=np.int8))
