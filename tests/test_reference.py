"""The ordinary references against independent computations: values, gradients, refusals."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from walsh import algebra, reference
from walsh.errors import (
    CapacityError,
    DTypeError,
    FormatError,
    NonFiniteError,
    ParameterError,
    RangeError,
    ShapeError,
)
from walsh.suite.catalog import CALLS

Array = np.ndarray
RNG = np.random.default_rng(20240229)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape)


def codes(*shape: int) -> Array:
    return RNG.integers(-1, 2, shape).astype(np.int8)


# Independent definitions, by matrices.


def structure(dimension: int) -> Array:
    """T[j, k, i], the coefficient of e_i in e_j e_k."""
    basis = np.eye(dimension)
    return np.stack(
        [np.stack([algebra.multiply(basis[j], basis[k]) for k in range(dimension)]) for j in range(dimension)]
    )


def dense_cayley_dickson(x: Array, w: Array, beta: Array | None = None) -> Array:
    dimension, n, k = w.shape
    blocks = x.reshape(-1, dimension, k)
    y = np.einsum("mja,kna,jki->min", blocks, w, structure(dimension))
    return (y if beta is None else y * beta).reshape(*x.shape[:-1], dimension * n)


def dense_hadamard(x: Array, w: Array, alpha: Array, beta: Array, added: Array | float = 0.0) -> Array:
    """``added`` is what rounding adds to v [m, n, K]."""
    n, out, k = w.shape
    h = algebra.sylvester(n) / math.sqrt(n)
    v = np.einsum("gh,mhk->mgk", h, alpha * x.reshape(-1, n, k)) + added
    return (beta * np.einsum("gh,mhk,hok->mgo", h, v, w)).reshape(*x.shape[:-1], n * out)


def rounded(x: Array) -> Array:
    scale = 127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-5)
    return np.rint(x * scale) / scale


def ternary_codes(w: Array) -> Array:
    return np.clip(np.rint(w / (np.abs(w).mean() + 1e-8)), -1, 1)


def slope(f: Callable[[Array], Any], x: Array, upstream: Any) -> Array:
    """Gradient of sum(upstream * f(x)) by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = x.copy()
            moved[index] += step
            values.append(np.sum(upstream * f(moved)))
        gradient[index] = (values[0] - values[1]) / 2e-5
    return gradient


def close(actual: Any, expected: Any, tolerance: float = 1e-7) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, strict=True)


# Gradients.

IDS = np.array([[1, 0, 2], [2, 2, 1]])
TARGETS = np.array([[1, -1, 2], [0, 3, 1]])
POSITIONS = np.array([[0, 2, -1], [3, 1, 1]])
TABLES = [normal(4, 3), normal(3, 3)]
INDICES = np.array([[0, 1], [3, 1], [3, 0], [1, 2]])

SMOOTH: list[tuple[str, list[Any], dict[str, Any]]] = [
    *(
        ("cayley_dickson_linear", [normal(2, 3, 2 * d), normal(d, 3, 2), beta, None], {})
        for d, beta in itertools.product((1, 2, 4, 8, 16), (None, normal(3)))
    ),
    ("cayley_dickson_linear", [normal(16), normal(8, 1, 2), np.zeros(1), None], {}),
    ("hadamard_transform", [normal(2, 8)], {}),
    ("hadamard_transform", [normal(2, 8)], {"normalize": False}),
    ("hadamard_linear", [normal(2, 8), normal(4, 3, 2), normal(4, 2), normal(4, 3)], {}),
    ("hadamard_linear", [normal(1, 2, 8), normal(4, 3, 2), None, None], {}),
    ("head_mixer", [normal(2, 4, 3), normal(2, 3, 3), normal(3)], {"algebra": "complex"}),
    ("head_mixer", [normal(4, 3), normal(4, 3, 3), None], {"algebra": "quaternion"}),
    ("head_mixer", [normal(2, 16, 2), normal(8, 2, 2), normal(2)], {}),
    ("head_mixer", [normal(1, 16, 1), normal(16, 1, 1), normal(1)], {"algebra": "sedenion"}),
    ("head_mixer", [normal(2, 8, 2), normal(4, 2, 2), normal(2)], {"algebra": "hadamard"}),
    ("rms_norm", [normal(2, 3, 4), normal(4)], {}),
    ("rms_norm", [normal(4), normal(4)], {"eps": 0.5}),
    ("rope", [normal(2, 3, 2, 4), None], {}),
    ("rope", [normal(2, 3, 2, 4), np.array([[0, 1, 7], [3, 4, 5]])], {"theta": 100.0}),
    ("attention", [normal(2, 3, 2, 4), normal(2, 4, 2, 4), normal(2, 4, 2, 4), None], {}),
    ("attention", [normal(2, 3, 2, 4), normal(2, 4, 2, 4), normal(2, 4, 2, 4), POSITIONS], {}),
    ("swiglu", [3 * normal(3, 4), normal(3, 4)], {}),
    ("embedding", [IDS, normal(4, 3)], {}),
    ("hash_embedding", [IDS, TABLES, normal(4, 2), INDICES], {"scale": 1.5}),
    ("hash_embedding", [IDS, [normal(4, 2), normal(4, 2), normal(4, 2)], normal(4, 3), None], {}),
    ("lm_head", [normal(2, 3, 3), normal(4, 3)], {}),
    ("hash_lm_head", [normal(2, 3), TABLES, normal(4, 2), INDICES], {}),
    ("hash_lm_head", [normal(1, 2, 2), [normal(4, 2), normal(1, 2)], normal(4, 2), None], {}),
    ("cross_entropy", [3 * normal(2, 3, 4), TARGETS], {}),
    ("linear_cross_entropy", [normal(2, 3, 5), normal(4, 5), TARGETS], {"chunk_size": 2}),
]
STRAIGHT_THROUGH = {"ternary_ste", "fake_quantize_activations", "cayley_dickson_bit_linear", "hadamard_bit_linear"}


@pytest.mark.parametrize(("name", "args", "params"), SMOOTH)
def test_gradient_is_the_slope(name: str, args: list[Any], params: dict[str, Any]) -> None:
    call, function = CALLS[f"{name}.backward"], getattr(reference, name)
    upstream = RNG.standard_normal(np.shape(function(*args, **params)))
    gradients = getattr(reference, f"{name}_backward")(*args, upstream, **params)
    assert len(gradients) == len(call.outputs)
    for output, gradient in zip(call.outputs, gradients, strict=True):
        at = call.args.index(output[1:])

        def moved(value: Any, at: int = at) -> Any:
            return function(*args[:at], value, *args[at + 1 :], **params)

        if args[at] is None:
            assert gradient is None
        elif isinstance(args[at], list):
            assert isinstance(gradient, list)
            for i, (member, of_member) in enumerate(zip(args[at], gradient, strict=True)):
                rest = args[at]
                close(of_member, slope(lambda t, i=i, r=rest, m=moved: m([*r[:i], t, *r[i + 1 :]]), member, upstream))
        else:
            close(gradient, slope(moved, args[at], upstream))


def test_every_gradient_of_the_catalogue_is_tested() -> None:
    named = {call.function for call in CALLS.values() if call.kind == "backward"}
    assert named == {name for name, _, _ in SMOOTH} | STRAIGHT_THROUGH | {"forward"}


def test_every_ordinary_call_of_the_catalogue_exists() -> None:
    for call in CALLS.values():
        if call.kind != "strict":
            suffix = "_backward" if call.kind == "backward" else ""
            assert call.function + suffix in reference.__all__


def test_straight_through_passes_the_gradient() -> None:
    w, dq = normal(3, 4), normal(3, 4)
    close(reference.ternary_ste_backward(w, dq)[0], dq)
    (clipped,) = reference.ternary_ste_backward(w, dq, ste_clip=0.5)
    assert (clipped == np.where(abs(w) <= 0.5, dq, 0)).all()
    assert (clipped == 0).any()
    edge = np.array([0.5, -0.5, np.nextafter(0.5, 1)])
    assert reference.ternary_ste_backward(edge, np.ones(3), ste_clip=0.5)[0].tolist() == [1, 1, 0]
    close(reference.fake_quantize_activations_backward(w, dq)[0], dq)


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("ste_clip", [None, 0.7])
def test_cayley_dickson_bit_linear_is_straight_through(bits: int | None, ste_clip: float | None) -> None:
    x, w, beta, dy = normal(3, 16), normal(8, 3, 2), normal(3), normal(3, 24)
    q, v = ternary_codes(w), rounded(x) if bits else x
    close(reference.cayley_dickson_bit_linear(x, w, beta, bits), dense_cayley_dickson(v, q, beta), 1e-12)
    dx, dw, dbeta = reference.cayley_dickson_bit_linear_backward(x, w, beta, dy, bits, ste_clip=ste_clip)
    # Rounding as a constant that is added is the straight-through estimator, and smooth.
    close(dx, slope(lambda x_: dense_cayley_dickson(x_ + (v - x), q, beta), x, dy))
    inside = np.ones_like(w) if ste_clip is None else abs(w) <= ste_clip
    close(dw, inside * slope(lambda w_: dense_cayley_dickson(v, w_ + (q - w), beta), w, dy))
    close(dbeta, slope(lambda b: dense_cayley_dickson(v, q, b), beta, dy))


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("ste_clip", [None, 0.7])
def test_hadamard_bit_linear_is_straight_through(bits: int | None, ste_clip: float | None) -> None:
    x, w, alpha, beta, dy = normal(3, 8), normal(4, 3, 2), normal(4, 2), normal(4, 3), normal(3, 12)
    h = algebra.sylvester(4) / 2
    v = np.einsum("gh,mhk->mgk", h, alpha * x.reshape(3, 4, 2))
    added = rounded(v.reshape(3, 8)).reshape(v.shape) - v if bits else 0.0
    q = ternary_codes(w)
    y = reference.hadamard_bit_linear(x, w, alpha, beta, bits)
    close(y, dense_hadamard(x, q, alpha, beta, added), 1e-12)
    gradients = reference.hadamard_bit_linear_backward(x, w, alpha, beta, dy, bits, ste_clip=ste_clip)
    inside = np.ones_like(w) if ste_clip is None else abs(w) <= ste_clip
    expected = (
        slope(lambda x_: dense_hadamard(x_, q, alpha, beta, added), x, dy),
        inside * slope(lambda w_: dense_hadamard(x, w_ + (q - w), alpha, beta, added), w, dy),
        slope(lambda a: dense_hadamard(x, q, a, beta, added), alpha, dy),
        slope(lambda b: dense_hadamard(x, q, alpha, b, added), beta, dy),
    )
    for gradient, one in zip(gradients, expected, strict=True):
        close(gradient, one)


@pytest.mark.parametrize("layer", ["cayley_dickson_linear", "cayley_dickson_bit_linear"])
def test_integer_weights_have_no_gradient(layer: str) -> None:
    x, q, dy = normal(3, 16), codes(8, 3, 2), normal(3, 24)
    extra = [None] if layer == "cayley_dickson_linear" else []
    backward = getattr(reference, f"{layer}_backward")
    dx, dw, dbeta = backward(x, q, None, *extra, dy)
    assert dw is None
    assert dbeta is None
    packed = reference.pack_ternary(q)
    close(backward(x, packed, None, *extra, dy)[0], dx)


# Values.


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


# NaN, infinity, empty batches, 16-bit dtypes, inputs left alone.


def test_nan_and_infinity_propagate_in_silence() -> None:
    x = np.array([[1.0, np.nan], [np.inf, 1.0], [1.0, 2.0]])
    a, scale = reference.quantize_activations(x)
    assert np.isnan(scale[:2]).all()
    assert not a[:2].any()
    assert np.isfinite(scale[2]).all()
    y = reference.cayley_dickson_bit_linear(x, normal(2, 3, 1))
    assert np.isnan(y[:2]).all()
    assert np.isfinite(y[2]).all()
    assert np.isnan(reference.rms_norm(x, np.ones(2))).tolist() == [[True, True], [True, False], [False, False]]
    gate = np.array([-np.inf, np.inf, np.nan, -1000.0, 1000.0])
    assert reference.swiglu(gate, np.ones(5)).tolist()[:2] == [0, np.inf]
    slopes = reference.swiglu_backward(gate, np.ones(5), np.ones(5))[0]
    assert slopes[[0, 1, 3, 4]].tolist() == [0, 1, 0, 1]
    assert np.isnan(reference.hadamard_transform(np.array([np.inf, np.inf]))).tolist() == [False, True]


def test_a_signalling_nan_is_an_input_like_any_other() -> None:
    table = np.array([[0x7FA00000, 0x3F800000]], dtype=np.uint32).view(np.float32)
    assert np.isnan(reference.embedding(np.array(0), table)).tolist() == [True, False]
    largest = np.array([np.finfo(np.float64).max])
    assert reference.fake_quantize_activations(largest).shape == (1,)


EMPTY: list[tuple[str, list[Any], tuple[int, ...]]] = [
    ("quantize_activations", [np.zeros((0, 4))], (0, 4)),
    ("cayley_dickson_linear", [np.zeros((2, 0, 16)), normal(8, 3, 2)], (2, 0, 24)),
    ("cayley_dickson_bit_linear", [np.zeros((0, 16)), normal(8, 3, 2)], (0, 24)),
    ("hadamard_linear", [np.zeros((0, 8)), normal(4, 3, 2)], (0, 12)),
    ("hadamard_bit_linear", [np.zeros((0, 8)), normal(4, 3, 2)], (0, 12)),
    ("head_mixer", [np.zeros((0, 8, 2)), normal(8, 2, 2)], (0, 8, 2)),
    ("rms_norm", [np.zeros((0, 4)), np.ones(4)], (0, 4)),
    ("rope", [np.zeros((1, 0, 2, 4))], (1, 0, 2, 4)),
    ("attention", [np.zeros((2, 0, 1, 2)), np.zeros((2, 3, 1, 2)), np.zeros((2, 3, 1, 2))], (2, 0, 1, 2)),
    ("embedding", [np.zeros((2, 0), dtype=int), normal(4, 3)], (2, 0, 3)),
    ("lm_head", [np.zeros((0, 3)), normal(4, 3)], (0, 4)),
    ("hash_lm_head", [np.zeros((0, 3)), TABLES, normal(4, 2), INDICES], (0, 4)),
    ("cross_entropy", [np.zeros((0, 4)), np.zeros(0, dtype=int)], ()),
    ("linear_cross_entropy", [np.zeros((0, 3)), normal(4, 3), np.zeros(0, dtype=int)], ()),
]


@pytest.mark.parametrize(("name", "args", "shape"), EMPTY)
def test_empty_batches_work(name: str, args: list[Any], shape: tuple[int, ...]) -> None:
    result = getattr(reference, name)(*args)
    assert np.shape(result[0] if isinstance(result, tuple) else result) == shape
    call = CALLS.get(f"{name}.backward")
    if call is not None:
        padded = args + [None] * (len(call.args) - 1 - len(args))
        gradients = getattr(reference, f"{name}_backward")(*padded, np.zeros(shape))
        for output, gradient in zip(call.outputs, gradients, strict=True):
            given = padded[call.args.index(output[1:])]
            if isinstance(given, np.ndarray):
                assert gradient.shape == given.shape
                assert not gradient.any()


@pytest.mark.parametrize(("name", "args", "params"), SMOOTH)
def test_any_float_dtype_any_stride_and_inputs_left_alone(name: str, args: list[Any], params: dict[str, Any]) -> None:
    def convert(value: Any, dtype: Any) -> Any:
        if isinstance(value, list):
            return [convert(member, dtype) for member in value]
        return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    function = getattr(reference, name)
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16):
        narrow = convert(args, dtype)
        expected = function(*convert(narrow, np.float64), **params)
        actual = function(*narrow, **params)
        assert actual.dtype == np.float64
        assert (actual == expected).all()
    frozen = [value.copy() if isinstance(value, np.ndarray) else value for value in args]
    for value in frozen:
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    result = function(*frozen, **params)
    assert not any(isinstance(value, np.ndarray) and np.shares_memory(result, value) for value in frozen)
    strided = [np.asfortranarray(value) if isinstance(value, np.ndarray) else value for value in args]
    assert (function(*strided, **params) == result).all()
    upstream = np.ones(np.shape(result))
    upstream.setflags(write=False)
    for gradient in getattr(reference, f"{name}_backward")(*frozen, upstream, **params):
        assert not isinstance(gradient, np.ndarray) or not np.shares_memory(gradient, upstream)


# Refusals.

F, I8 = np.ones, lambda *shape: np.ones(shape, dtype=np.int8)
REFUSED: list[tuple[str, list[Any], dict[str, Any], type[Exception]]] = [
    ("ternary", [np.zeros((0, 2))], {}, ShapeError),
    ("ternary", [np.array([1.0, np.nan])], {}, NonFiniteError),
    ("ternary", [np.array([1.0, np.inf])], {}, NonFiniteError),
    ("ternary", [F(2)], {"rule": "median"}, ParameterError),
    ("ternary", [np.ones(2, dtype=bool)], {}, DTypeError),
    ("ternary", [np.array([1.0, 2.0], dtype=object)], {}, DTypeError),
    ("ternary_ste", [F(2)], {"ste_clip": -1.0}, ParameterError),
    ("ternary_ste", [F(2)], {"ste_clip": math.nan}, ParameterError),
    ("ternary_ste_backward", [F(2), F(3)], {}, ShapeError),
    ("pack_ternary", [F(2)], {}, DTypeError),
    ("pack_ternary", [np.array(1, dtype=np.int8)], {}, ShapeError),
    ("pack_ternary", [np.array([2], dtype=np.int8)], {}, ParameterError),
    ("unpack_ternary", [np.array([3], dtype=np.uint8), 1], {}, FormatError),
    ("unpack_ternary", [np.array([0b00000001], dtype=np.uint8), 1], {}, FormatError),
    ("unpack_ternary", [np.zeros(2, dtype=np.uint8), 4], {}, ShapeError),
    ("unpack_ternary", [np.zeros(1, dtype=np.uint8), -1], {}, ParameterError),
    ("unpack_ternary", [I8(1), 4], {}, DTypeError),
    ("quantize_activations", [F((2, 0))], {}, ShapeError),
    ("quantize_activations", [np.float64(1)], {}, ShapeError),
    ("quantize_activations", [np.ones((2, 2), dtype=int)], {}, DTypeError),
    ("cayley_dickson_linear", [F(16), F((3, 1, 2))], {}, ShapeError),
    ("cayley_dickson_linear", [F(16), F((8, 2))], {}, ShapeError),
    ("cayley_dickson_linear", [F(15), F((8, 1, 2))], {}, ShapeError),
    ("cayley_dickson_linear", [F(24), F((8, 1, 2))], {}, ShapeError),
    ("cayley_dickson_linear", [np.float64(1), F((1, 1, 1))], {}, ShapeError),
    ("cayley_dickson_linear", [F(16), F((8, 3, 2)), F(2)], {}, ShapeError),
    ("cayley_dickson_linear", [F(16), np.ones((8, 3, 2), dtype=int)], {}, DTypeError),
    ("cayley_dickson_linear", [F(16), 2 * I8(8, 3, 2)], {}, ParameterError),
    ("cayley_dickson_linear", [F(16), np.full((8, 3, 1), 255, dtype=np.uint8)], {}, FormatError),
    ("cayley_dickson_linear", [F(16), np.zeros((8, 3, 2), dtype=np.uint8)], {}, ShapeError),
    ("cayley_dickson_linear", [I8(16), F((8, 3, 2))], {}, DTypeError),
    ("cayley_dickson_linear", [F((1, 16)), I8(8, 3, 2), None, F((1, 1))], {}, ParameterError),
    ("cayley_dickson_linear", [I8(2, 16), I8(8, 3, 2), None, F(2)], {}, ShapeError),
    ("cayley_dickson_linear_backward", [F(16), F((8, 3, 2)), None, None, F(23)], {}, ShapeError),
    ("cayley_dickson_linear_backward", [I8(16), I8(8, 3, 2), None, None, F(24)], {}, DTypeError),
    ("cayley_dickson_bit_linear", [F(16), F((8, 3, 2))], {"activation_bits": 4}, ParameterError),
    ("cayley_dickson_bit_linear", [F(16), np.full((8, 3, 2), np.nan)], {}, NonFiniteError),
    ("cayley_dickson_bit_linear", [I8(16), F((8, 3, 2))], {}, DTypeError),
    ("hadamard_transform", [F(6)], {}, ShapeError),
    ("hadamard_transform", [F(0)], {}, ShapeError),
    ("hadamard_transform", [np.float64(1)], {}, ShapeError),
    ("hadamard_transform", [I8(4)], {}, ParameterError),
    ("hadamard_transform", [np.ones(4, dtype=bool)], {"normalize": False}, DTypeError),
    ("hadamard_linear", [F(8), F((3, 1, 2))], {}, ShapeError),
    ("hadamard_linear", [F(8), F((4, 3, 2)), F((4, 3))], {}, ShapeError),
    ("hadamard_linear", [F(8), F((4, 3, 2)), None, F(3)], {}, ShapeError),
    ("hadamard_bit_linear", [F(8), F((4, 3, 2))], {"activation_bits": True}, ParameterError),
    ("hadamard_bit_linear", [F(8), F((4, 3, 2))], {"rule": "sign"}, ParameterError),
    ("head_mixer", [F((12, 2)), F((8, 2, 2))], {}, ShapeError),
    ("head_mixer", [F((8, 2)), F((4, 2, 2))], {}, ShapeError),
    ("head_mixer", [F((8, 2)), F((8, 2, 3))], {}, ShapeError),
    ("head_mixer", [F(8), F((8, 1, 1))], {}, ShapeError),
    ("head_mixer", [F((6, 2)), F((3, 2, 2))], {"algebra": "hadamard"}, ShapeError),
    ("head_mixer", [F((8, 2)), F((1, 2, 2))], {"algebra": "dense"}, ParameterError),
    ("head_mixer", [F((8, 2)), I8(8, 2, 2)], {}, DTypeError),
    ("rms_norm", [F((2, 4)), F(3)], {}, ShapeError),
    ("rms_norm", [np.float64(1), F(1)], {}, ShapeError),
    ("rms_norm", [F(4), F(4)], {"eps": -1.0}, ParameterError),
    ("rope", [F((3, 1, 3))], {}, ShapeError),
    ("rope", [F((3, 4))], {}, ShapeError),
    ("rope", [F((3, 1, 4)), np.arange(2)], {}, ShapeError),
    ("rope", [F((1, 1, 2)), np.array([-1])], {}, RangeError),
    ("rope", [F((1, 1, 2)), F(1)], {}, DTypeError),
    ("rope", [F((1, 1, 2))], {"theta": 0.0}, ParameterError),
    ("attention", [F((1, 2, 1, 2)), F((1, 3, 1, 4)), F((1, 3, 1, 4))], {}, ShapeError),
    ("attention", [F((1, 2, 1, 2)), F((1, 3, 1, 2)), F((1, 2, 1, 2))], {}, ShapeError),
    ("attention", [F((2, 1, 2)), F((2, 1, 2)), F((2, 1, 2))], {}, ShapeError),
    ("attention", [F((1, 1, 1, 2)), F((1, 3, 1, 2)), F((1, 3, 1, 2)), np.array([3])], {}, RangeError),
    ("attention", [F((1, 1, 1, 2)), F((1, 3, 1, 2)), F((1, 3, 1, 2)), np.array([-2])], {}, RangeError),
    ("attention", [F((1, 1, 1, 2)), F((1, 3, 1, 2)), F((1, 3, 1, 2)), np.arange(2)], {}, ShapeError),
    ("swiglu", [F(2), F(3)], {}, ShapeError),
    ("swiglu_hidden", [0, 8], {}, ParameterError),
    ("embedding", [np.array([4]), F((4, 3))], {}, RangeError),
    ("embedding", [np.array([-1]), F((4, 3))], {}, RangeError),
    ("embedding", [F(1), F((4, 3))], {}, DTypeError),
    ("embedding", [np.array([0]), F(4)], {}, ShapeError),
    ("embedding_backward", [np.array([0]), F((4, 3)), F(3)], {}, ShapeError),
    ("hash_indices", [np.array([1]), 4], {}, ParameterError),
    ("hash_indices", [np.array([-1]), 2], {}, RangeError),
    ("hash_embedding", [np.array([0]), [], F((4, 0))], {}, ParameterError),
    ("hash_embedding", [np.array([0]), [F((4, 3)), F((4, 2))], F((4, 2))], {}, ShapeError),
    ("hash_embedding", [np.array([0]), TABLES, F((4, 3))], {}, ShapeError),
    ("hash_embedding", [np.array([0]), TABLES, F((4, 2)), INDICES + 1], {}, RangeError),
    ("hash_embedding", [np.array([4]), TABLES, F((4, 2)), INDICES], {}, RangeError),
    ("hash_embedding", [np.array([0]), TABLES, F((4, 2)), INDICES], {"scale": math.inf}, ParameterError),
    ("lm_head", [F((2, 3)), F((4, 2))], {}, ShapeError),
    ("hash_lm_head", [F((2, 2)), TABLES, F((4, 2)), INDICES], {}, ShapeError),
    ("cross_entropy", [F((2, 4)), np.array([0, 4])], {}, RangeError),
    ("cross_entropy", [F((2, 4)), np.array([0, -2])], {}, RangeError),
    ("cross_entropy", [F((2, 4)), np.array([0])], {}, ShapeError),
    ("cross_entropy", [F((2, 4)), np.array([0.0, 1.0])], {}, DTypeError),
    ("cross_entropy_backward", [F((2, 4)), np.array([0, 1]), F(2)], {}, ShapeError),
    ("linear_cross_entropy", [F((2, 4)), F((3, 4)), np.array([0, 1])], {"chunk_size": 0}, ParameterError),
    ("linear_cross_entropy", [F((2, 4)), F((3, 5)), np.array([0, 1])], {}, ShapeError),
    ("bitmask_encode", [F(2)], {}, DTypeError),
    ("bitmask_encode", [2 * I8(2)], {}, ParameterError),
    ("bitmask_decode", [np.array([1], dtype=np.uint8), np.array([1], dtype=np.uint8), [9]], {}, FormatError),
    ("bitmask_decode", [np.array([8], dtype=np.uint8), np.array([1], dtype=np.uint8), [3]], {}, FormatError),
    ("bitmask_decode", [np.array([1], dtype=np.uint8), np.array([2], dtype=np.uint8), [3]], {}, FormatError),
    ("bitmask_decode", [np.array([1], dtype=np.uint8), np.zeros(0, dtype=np.uint8), [3]], {}, FormatError),
    ("bitmask_decode", [np.array([1], dtype=np.uint8), np.array([1], dtype=np.uint8), [-3]], {}, ParameterError),
    ("bitmask_decode", [I8(1), np.array([1], dtype=np.uint8), [3]], {}, DTypeError),
]


@pytest.mark.parametrize(("name", "args", "params", "error"), REFUSED)
def test_wrong_arguments_are_refused(
    name: str, args: list[Any], params: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        getattr(reference, name)(*args, **params)
    assert type(caught.value) is error


# Cache.


def test_cache_append_in_any_split_is_one_append() -> None:
    k, v, q = normal(2, 5, 1, 2), normal(2, 5, 1, 2), normal(2, 5, 1, 2)
    whole = reference.KVCache(2, 6, 1, 2)
    expected = whole.attend(q, whole.append(k, v))
    close(expected, reference.attention(q, k, v), 0)
    for cuts in itertools.product((False, True), repeat=4):
        ends = [t + 1 for t, cut in enumerate(cuts) if cut] + [5]
        cache, start, parts = reference.KVCache(2, 6, 1, 2), 0, []
        for end in ends:
            parts.append(cache.attend(q[:, start:end], cache.append(k[:, start:end], v[:, start:end])))
            start = end
        assert (np.concatenate(parts, axis=1) == expected).all()
        assert (cache.keys == whole.keys).all()
        assert (cache.values == whole.values).all()


def test_cache_keeps_a_length_per_sequence() -> None:
    cache = reference.KVCache(batch=2, capacity=4, heads=1, head_dim=2)
    k = normal(2, 3, 1, 2)
    assert cache.append(k, k, np.array([2, 0])).tolist() == [[0, 1, -1], [-1, -1, -1]]
    assert cache.append(k, k, np.array([1, 3])).tolist() == [[2, -1, -1], [0, 1, 2]]
    before = cache.keys.copy()
    with pytest.raises(CapacityError):
        cache.append(k, k, np.array([1, 2]))
    assert (cache.keys == before).all()
    assert cache.lengths.tolist() == [3, 3]
    fork = cache.fork(np.array([1, 1, 0]))
    cache.truncate(np.array([1, 3]))
    cache.reset(np.array([1]))
    assert cache.lengths.tolist() == [1, 0]
    assert fork.lengths.tolist() == [3, 3, 3]
    assert (fork.keys == before[[1, 1, 0]]).all()
    fork.append(normal(3, 1, 1, 2), normal(3, 1, 1, 2))
    assert (cache.keys == before).all()
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]


def test_cache_refuses() -> None:
    cache = reference.KVCache(2, 4, 1, 2)
    k = normal(2, 1, 1, 2)
    cache.append(k, k)
    with pytest.raises(RangeError):
        cache.truncate(np.array([2, 0]))
    with pytest.raises(RangeError):
        cache.fork(np.array([2]))
    with pytest.raises(RangeError):
        cache.append(k, k, np.array([2, 0]))
    with pytest.raises(RangeError):
        cache.attend(k, np.array([[1], [0]]))
    with pytest.raises(ShapeError):
        cache.append(k[:1], k[:1])
    with pytest.raises(ParameterError):
        reference.KVCache(-1, 4, 1, 2)


def test_cache_script() -> None:
    k = {"a": normal(1, 2, 1, 2), "b": normal(2, 1, 1, 2)}
    v = {"a": normal(1, 2, 1, 2), "b": normal(2, 1, 1, 2)}
    q = {"b": normal(2, 1, 1, 2)}
    script = [["append", "a", None], ["fork", [0, 0]], ["truncate", [2, 1]], ["append", "b", [1, 1]], ["attend", "b"]]
    keys, values, lengths, o = reference.kv_cache(k, v, q, script=script, capacity=4)
    assert lengths.tolist() == [3, 2]
    assert (keys[0, :3] == np.concatenate([k["a"][0], k["b"][0]])).all()
    assert (keys[1, :2] == np.concatenate([k["a"][0, :1], k["b"][1]])).all()
    assert not keys[1, 2:].any()
    for b in range(2):
        seen = slice(lengths[b])
        close(o["b"][b], reference.attention(q["b"][[b]], keys[[b], seen], values[[b], seen])[0], 0)
    for wrong in ([["attend", "b"]], [["append", "a", None], ["forget", 1]], [["append", "z", None]]):
        with pytest.raises(ParameterError):
            reference.kv_cache(k, v, q, script=wrong, capacity=4)
