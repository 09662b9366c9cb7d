"""Ordinary arithmetic: operations and models within a few float32 roundings of the float64 ``walsh.reference``."""

import numpy as np
import pytest
from small_models import MODELS, model, same

from walsh import codec, reference
from walsh.errors import CapacityError

pytest.importorskip("wasmtime")
from walsh.engine import Engine
from walsh.engine.operations import Operations
from walsh.engine.ordinary import Ordinary


def test_ordinary_operations_at_sizes_of_models():
    """Conformance has the small cases; here widths at which float32 sums grow, against float64."""
    ordinary = Ordinary(Operations())
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 512)).astype(np.float32)
    for n, linear, expected in (
        (8, ordinary.cayley_dickson_linear, reference.cayley_dickson_linear),
        (32, ordinary.hadamard_linear, reference.hadamard_linear),
    ):
        w = rng.integers(-1, 2, (n, 43, 512 // n)).astype(np.int8)
        exact = expected(x, w)
        assert np.abs(linear(x, w) - exact).max() < 1e-6 * np.abs(exact).max()
    table = rng.normal(size=(301, 512)).astype(np.float32)
    exact = reference.lm_head(x, table)
    assert np.abs(ordinary.lm_head(x, table) - exact).max() < 1e-6 * np.abs(exact).max()
    q, k, v = (rng.normal(size=(1, 70, 4, 16)).astype(np.float32) for _ in range(3))
    assert np.abs(ordinary.attention(q, k, v) - reference.attention(q, k, v)).max() < 2e-6


def test_the_ordinary_model_reads_a_sequence_in_any_split():
    """Hash tables, head mixing and both arithmetics of linears, against the reference and with a cache."""
    config = {"algebra": "hadamard", "hadamard_size": 8, "n_layer": 2, "n_head": 8, "n_embd": 32, "vocab_size": 40}
    config |= {"block_size": 12, "head_mixing": True, "hash_embeddings": 2, "hash_scale": True, "activation_bits": None}
    rng = np.random.default_rng(4)
    weights = {
        key: rng.normal(1.0 if key.endswith(("beta", "alpha", "norm.weight")) else 0.0, 0.2, shape).astype(np.float32)
        for key, shape in reference.weight_shapes(config).items()
    }
    ids = rng.integers(0, 40, (2, 9))
    ordinary = Ordinary(Operations())
    for rounding in ({}, {"ternary": False}):
        exact = reference.forward(ids, weights, config | rounding)
        whole = ordinary.forward(ids, weights, config | rounding)
        assert np.abs(whole - exact).max() < 1e-5 * np.abs(exact).max()
        cache = [ordinary.cache(2, 12, 8, 4) for _ in range(2)]
        parts = [ordinary.forward(ids[:, cut], weights, config | rounding, cache) for cut in (slice(4), slice(4, 9))]
        assert np.abs(np.concatenate(parts, axis=1) - exact).max() < 1e-5 * np.abs(exact).max()
        with pytest.raises(CapacityError):
            ordinary.forward(ids[:, :4], weights, config | rounding, cache)
        assert [held.lengths.tolist() for held in cache] == [[9, 9]] * 2


def ordinary_weights(weights):
    """Strict weights as the ordinary forward takes them."""
    ordinary = {}
    for key, value in weights.items():
        stem, _, part = key.rpartition(".")
        if part == "codes" and f"{stem}.scale" in weights:
            scale = weights[f"{stem}.scale"].astype(np.float64)
            values = value * (scale if ".mixer" in key else scale[:, None])
            ordinary[stem if stem.startswith("embedding.tables") else f"{stem}.weight"] = values
        elif part == "codes":
            ordinary[f"{stem}.weight"] = value
        elif part != "scale" and key != "rope.inv_freq":
            ordinary[key] = value
    return ordinary


@pytest.mark.parametrize("name", MODELS)
def test_models_with_float_activations(name):
    weights, config = model(name)
    config["activation_bits"] = None
    engine = Engine(codec.dump(weights, config))
    ids = np.random.default_rng(1).integers(0, 70, 20)
    expected = reference.forward(ids[None], ordinary_weights(weights), config)[0, -1]
    session, other = engine.new_session(), engine.new_session()
    session.prefill(ids)
    # Float32 through two blocks: a few hundred roundings of 6e-8 each.
    assert np.abs(session.logits - expected).max() < 2e-6 * np.abs(expected).max()
    for token in ids[:10]:
        other.step(int(token))
    other = engine.restore_session(other.save())
    other.prefill(ids[10:])
    assert same(other.logits, session.logits)


def test_float_activations_of_four_bit_rows():
    weights, config = model("octonion")
    weights = codec.four_bit_rows(weights, config)
    config["activation_bits"] = None
    engine = Engine(codec.dump(weights, config))
    session = engine.new_session()
    session.prefill([3, 1, 4])
    expected = reference.forward(np.array([[3, 1, 4]]), ordinary_weights(weights), config)[0, -1]
    assert np.abs(session.logits - expected).max() < 2e-6 * np.abs(expected).max()
