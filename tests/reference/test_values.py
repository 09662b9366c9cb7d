"""Values: each operation against the formula of SPEC.md in another form: as a matrix, as complex numbers, as a mean."""

import math

import numpy as np
import pytest
from definitions import RNG, close, codes, dense_cayley_dickson, dense_hadamard, normal, structure
from smooth_calls import INDICES

from walsh import algebra, reference


@pytest.mark.parametrize("dimension", [1, 2, 4, 8, 16])
def test_cayley_dickson_linear_is_the_product_of_the_algebra(dimension: int) -> None:
    x, w, beta = normal(2, 3, 3 * dimension), normal(dimension, 4, 3), normal(4)
    close(reference.cayley_dickson_linear(x, w, beta), dense_cayley_dickson(x, w, beta), 1e-12)


def test_integer_product_is_exact_and_scaled_in_float32() -> None:
    a, q, beta = RNG.integers(-128, 128, (3, 16)).astype(np.int8), codes(8, 3, 2), normal(3).astype(np.float32)
    total = dense_cayley_dickson(a.astype(float), q.astype(float))
    y = reference.cayley_dickson_linear(a, q)
    assert y.dtype == np.int32
    assert (y == total).all()
    assert (reference.cayley_dickson_linear(a, reference.pack_ternary(q)) == total).all()
    scale = np.array([[3.0], [7.0], [0.1]], dtype=np.float32)
    scaled = reference.cayley_dickson_linear(a, q, beta, scale)
    expected = (total.astype(np.float32) / scale) * np.tile(beta, 8)
    assert scaled.dtype == np.float32
    assert (scaled == expected).all()


def test_hadamard_linear_and_transform_are_their_matrices() -> None:
    x, w, alpha, beta = normal(2, 3, 16), normal(8, 3, 2), normal(8, 2), normal(8, 3)
    close(reference.hadamard_linear(x, w, alpha, beta), dense_hadamard(x, w, alpha, beta), 1e-12)
    q = codes(8, 3, 2)
    expected = dense_hadamard(x, q.astype(float), alpha, np.ones((8, 3)))
    close(reference.hadamard_linear(x, reference.pack_ternary(q), alpha), expected, 1e-12)
    integers = RNG.integers(-128, 128, (3, 32)).astype(np.int8)
    y = reference.hadamard_transform(integers, normalize=False)
    assert y.dtype == np.int32
    assert (y == integers.astype(int) @ algebra.sylvester(32).astype(int)).all()


def test_head_mixer_is_the_product_not_transposed() -> None:
    x, w, beta = normal(3, 16, 2), normal(8, 2, 2), normal(2)
    groups = x.reshape(3, 2, 8, 2)
    expected = beta * np.einsum("mgja,kab,jki->mgib", groups, w, structure(8))
    close(reference.head_mixer(x, w, beta), expected.reshape(x.shape), 1e-12)
    h = algebra.sylvester(8) / math.sqrt(8)
    expected = beta * np.einsum("ih,hj,mgja,hab->mgib", h, h, groups, w)
    close(reference.head_mixer(x, w, beta, "hadamard"), expected.reshape(x.shape), 1e-12)


def test_rope_is_a_complex_rotation() -> None:
    x, positions = normal(2, 3, 2, 6), np.array([[0, 5, 10**6], [7, 8, 9]])
    z = x[..., 0::2] + 1j * x[..., 1::2]
    z = z * np.exp(1j * positions[:, :, None, None] * 10000.0 ** (-np.arange(3) / 3))
    close(reference.rope(x, positions), np.stack([z.real, z.imag], axis=-1).reshape(x.shape), 1e-9)
    close(reference.rope(x), reference.rope(x, np.arange(3)), 0)


def test_attention_is_a_masked_softmax() -> None:
    q, k, v = normal(2, 3, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4)
    positions = np.array([[2, 3, 4], [-1, 0, 4]])
    score = np.einsum("bthd,bshd->bhts", q, k) / 2
    score[np.broadcast_to((np.arange(5) > positions[..., None])[:, None], score.shape)] = -1e30
    p = np.exp(score - score.max(axis=-1, keepdims=True))
    o = np.einsum("bhts,bshd->bthd", p / p.sum(axis=-1, keepdims=True), v)
    o[1, 0] = 0
    close(reference.attention(q, k, v, positions), o, 1e-12)
    close(reference.attention(q, k, v), reference.attention(q, k, v, np.array([2, 3, 4])), 0)


def test_what_attention_does_not_see_cannot_leak() -> None:
    q, k, v = normal(1, 1, 1, 2), normal(1, 3, 1, 2), normal(1, 3, 1, 2)
    clean = reference.attention(q, k, v, np.array([1]))
    k[0, 2], v[0, 2] = np.nan, np.inf
    assert (reference.attention(q, k, v, np.array([1])) == clean).all()
    assert np.isnan(reference.attention(q, k, v, np.array([2]))).all()


def test_norm_and_losses_are_their_formulas() -> None:
    x, weight, table = normal(2, 3, 4), normal(4), normal(5, 4)
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    close(reference.rms_norm(x, weight), expected, 1e-12)
    targets = np.array([[4, -1, 0], [2, 2, -1]])
    logits = x @ table.T
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.mean([-np.log(p[at][targets[at]]) for at in np.ndindex(2, 3) if targets[at] >= 0])
    close(reference.cross_entropy(logits, targets), expected, 1e-12)
    for chunk in (1, 3, 100):
        close(reference.linear_cross_entropy(x, table, targets, chunk), expected, 1e-12)
    assert reference.cross_entropy(logits, np.full((2, 3), -1)) == 0
    assert not reference.cross_entropy_backward(logits, np.full((2, 3), -1), np.float64(1))[0].any()


def test_cross_entropy_of_large_logits_and_ignored_nan() -> None:
    assert reference.cross_entropy(np.array([[1e30, 0.0]]), np.array([0])) == 0
    assert reference.cross_entropy(np.array([[0.0, -np.inf], [np.nan, 0.0]]), np.array([0, -1])) == 0
    assert np.isnan(reference.cross_entropy(np.array([[np.nan, 0.0]]), np.array([0])))


def test_hashes_are_injective() -> None:
    ids = np.arange(50257)
    for tables in (2, 3):
        rows = reference.hash_indices(ids, tables)
        assert rows.dtype == np.int64
        assert len({tuple(row) for row in rows.tolist()}) == 50257
    assert reference.hash_indices(np.array([[1020 * 1021 + 3]]), 2).tolist() == [[[3, 1020]]]
    assert reference.hash_indices(np.array(1019), 3).tolist() == [1019, 0, 6]


def test_hash_head_is_the_embedding_transposed() -> None:
    tables, importance, x = [normal(4, 3), normal(3, 3)], normal(4, 2), normal(2, 3)
    rows = reference.hash_embedding(np.arange(4), tables, importance, INDICES)
    expected = [sum(importance[t, i] * tables[i][INDICES[t, i]] for i in range(2)) for t in range(4)]
    close(rows, np.array(expected), 1e-12)
    close(reference.hash_lm_head(x, tables, importance, INDICES), x @ rows.T, 1e-12)


@pytest.mark.parametrize("length", range(131))
def test_codecs_return_what_they_were_given(length: int) -> None:
    q = codes(2, length)
    packed = reference.pack_ternary(q)
    assert packed.shape == (2, -(-length // 4))
    assert (reference.unpack_ternary(packed, length) == q).all()
    mask, signs = reference.bitmask_encode(q)
    assert (len(mask), len(signs)) == (-(-2 * length // 8), -(-np.count_nonzero(q) // 8))
    assert (reference.bitmask_decode(mask, signs, q.shape) == q).all()


def test_rounding_is_half_to_even_and_symmetric() -> None:
    q, gamma = reference.ternary(np.array([0.5, 1.5, -0.5, -1.5, np.nextafter(0.5, 1)]), rule="round")
    assert (q.tolist(), gamma) == ([0, 1, 0, -1, 1], 1.0)
    a, scale = reference.quantize_activations(np.array([[127, 0.5, 1.5, 2.5, -2.5], [0, 0, 0, 0, 0]]))
    assert a.tolist() == [[127, 0, 2, 2, -2], [0] * 5]
    assert scale.tolist() == [[1.0], [127 / 1e-5]]


def test_swiglu_hidden_rounds_up() -> None:
    assert [reference.swiglu_hidden(c, m) for c, m in [(3, 8), (512, 1), (512, 32), (6, 16)]] == [8, 1365, 1376, 16]
