"""Strict arithmetic: every operation in every layout of weights, and whole models, equal ``walsh.reference.strict`` to
the bit; ``scalar`` are the same sums without SIMD.
"""

import itertools

import numpy as np
import pytest
from small_models import MODELS, model, same

from walsh.reference import strict

pytest.importorskip("wasmtime")
from walsh.engine.operations import Operations


@pytest.fixture(scope="module", params=["fast", "fast_packed", "pairs", "packed", "scalar"])
def operations(request):
    if request.param == "scalar":
        return Operations(scalar=True)
    return Operations(layout=request.param)


@pytest.mark.parametrize("d", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (16, 16), (11, 43), (24, 70)])
def test_cayley_dickson_linear(operations, d, rows, columns):
    rng = np.random.default_rng(d * 100 + rows)
    x = (rng.normal(size=(3, d * columns)) * 10.0 ** rng.integers(-6, 6, (3, 1))).astype(np.float32)
    codes = rng.integers(-1, 2, (d, rows, columns)).astype(np.int8)
    beta = rng.normal(size=rows).astype(np.float32)
    expected = strict.cayley_dickson_linear(x, codes, beta)
    assert same(operations.cayley_dickson_linear(x, codes, beta), expected)


@pytest.mark.parametrize("n", [1, 2, 8, 32, 64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 16), (43, 16), (16, 43), (5, 70)])
def test_hadamard_linear(operations, n, rows, columns):
    rng = np.random.default_rng(n * 100 + rows)
    x = rng.normal(size=(2, n * columns)).astype(np.float32)
    codes = rng.integers(-1, 2, (n, rows, columns)).astype(np.int8)
    alpha, beta = (rng.normal(size=(n, size)).astype(np.float32) for size in (columns, rows))
    expected = strict.hadamard_linear(x, codes, alpha, beta)
    assert same(operations.hadamard_linear(x, codes, alpha, beta), expected)
    rows_of_x = rng.normal(size=(4, n)).astype(np.float32)
    assert same(operations.hadamard_transform(rows_of_x), strict.hadamard_transform(rows_of_x))


@pytest.mark.parametrize(
    ("algebra", "n"), [("complex", 2), ("quaternion", 4), ("octonion", 8), ("sedenion", 16), ("hadamard", 32)]
)
@pytest.mark.parametrize("d", [2, 6, 16, 24])
def test_head_mixer(operations, algebra, n, d):
    rng = np.random.default_rng(n + d)
    x = rng.normal(size=(2, 2 * n, d)).astype(np.float32)
    codes = rng.integers(-127, 128, (n, d, d)).astype(np.int8)
    scale, beta = (rng.normal(size=d).astype(np.float32) for _ in range(2))
    expected = strict.head_mixer(x, codes, scale, beta, algebra)
    assert same(operations.head_mixer(x, codes, scale, beta, algebra), expected)


@pytest.mark.parametrize(("heads", "d"), [(1, 2), (2, 16), (1, 64), (3, 6), (1, 72)])
@pytest.mark.parametrize("keys", [1, 7, 33, 70])
def test_attention(operations, heads, d, keys):
    rng = np.random.default_rng(keys)
    q = rng.normal(size=(1, 4, heads, d)).astype(np.float32)
    k, v = (rng.normal(size=(1, keys, heads, d)).astype(np.float32) for _ in range(2))
    where = np.array([keys - 1, keys // 2, 0, -1])
    assert same(operations.attention(q, k, v, where), strict.attention(q, k, v, where))


def test_elementwise_operations(operations):
    rng = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-120, 120, 4001), [np.inf, -np.inf, 0.0, -0.0, 1e-30]]).astype(np.float32)
    assert same(operations.exp(x), strict.exp(x))
    assert same(operations.swiglu(x, x[::-1].copy()), strict.swiglu(x, x[::-1].copy()))
    for c in (1, 3, 16, 24, 512):
        rows = (rng.normal(size=(5, c)) * 3).astype(np.float32)
        assert same(operations.rms_norm(rows, rows[0]), strict.rms_norm(rows, rows[0]))
        (a, r), (expected_a, expected_r) = operations.quantize_activations(rows), strict.quantize_activations(rows)
        assert same(a, expected_a)
        assert same(r, expected_r)
    heads = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    inv_freq = 10000.0 ** (-np.arange(4) / 4)
    where = np.array([0, 1, 77, 4095, 50_000])
    assert same(operations.rope(heads, inv_freq, where), strict.rope(heads, inv_freq, where))


@pytest.mark.parametrize("c", [2, 20, 64, 128, 512])
def test_heads(operations, c):
    rng = np.random.default_rng(c)
    codes = rng.integers(-128, 128, (37, c)).astype(np.int8)
    scale = rng.uniform(size=37).astype(np.float32)
    x = rng.normal(size=(2, c)).astype(np.float32)
    assert same(operations.lm_head(x, codes, scale), strict.lm_head(x, codes, scale))
    ids = np.array([[0, 36], [5, 7]])
    assert same(operations.embedding(ids, codes, scale), strict.embedding(ids, codes, scale))


def test_sampling_agrees_with_the_definition(operations):
    rng = np.random.default_rng(7)
    for size, top_k, top_p, heat in itertools.product(
        [1, 50, 3000], [0, 1, 40, 900], [1.0, 0.9, 1e-3], [0.7, 1.0, 30.0]
    ):
        logits = np.round(rng.normal(size=(2, size)) * 4, 1).astype(np.float32)  # rounded, so that there are ties
        history = rng.integers(-1, size, (2, 6))
        given = {"temperature": heat, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.3}
        seeds, where = rng.integers(0, 1 << 63, 2), rng.integers(0, 1000, 2)
        expected = strict.sample(logits, history, **given, seed=seeds, position=where)
        assert (operations.sample(logits, history, **given, seed=seeds, position=where) == expected).all()


@pytest.mark.parametrize("name", MODELS)
def test_models_are_equal_to_the_bit(operations, name):
    weights, config = model(name)
    ids = np.random.default_rng(1).integers(0, 70, (2, 9))
    probes, expected_probes = {}, {}
    logits = operations.forward(ids, weights, config, probes)
    expected = strict.forward(ids, weights, config, probes=expected_probes)
    for key, probe in expected_probes.items():  # in order, so that the first wrong layer is named
        assert same(probes[key], probe), key
    assert same(logits, expected)
    for given in ({}, {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 12345678901}):
        drawn = operations.generate(ids[:, :3], weights, config, 12, **given)
        assert (drawn == strict.generate(ids[:, :3], weights, config, 12, **given)).all()
