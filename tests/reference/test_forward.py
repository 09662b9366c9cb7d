"""The whole model: shape, causality, cache, probes, refusals, and every gradient."""

from typing import Any

import numpy as np
import pytest

from walsh import reference
from walsh.errors import CapacityError, DTypeError, ParameterError, RangeError, ShapeError

Array = np.ndarray
BASE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 11, "block_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "dense": BASE | {"algebra": "dense", "tied_head": False},
    "complex": BASE | {"algebra": "complex", "head_mixing": True, "hash_embeddings": 2},
    "quaternion": BASE | {"algebra": "quaternion", "hash_embeddings": 3, "hash_scale": True, "tied_head": False},
    "octonion": BASE | {"algebra": "octonion", "n_head": 8, "head_mixing": True, "ffn_hidden": 24},
    "sedenion": BASE | {"algebra": "sedenion", "ste_clip": 0.5},
    "hadamard": BASE | {"algebra": "hadamard", "hadamard_size": 4, "n_head": 4, "head_mixing": True, "rule": "round"},
}


def make_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for name, shape in reference.weight_shapes(config).items():
        size = (13, shape[1]) if name.startswith("embedding.tables") else shape
        offset = 1.0 if name.endswith(("beta", "alpha", "norm.weight", "importance")) else 0.0
        weights[name] = offset + 0.5 * rng.standard_normal(size)
    return weights


IDS = np.array([[3, 0, 10, 5], [7, 7, 1, 2]])
TARGETS = np.array([[0, 10, 5, -1], [7, 1, 2, 4]])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_probes_causality_and_cache(name: str) -> None:
    config = CONFIGS[name]
    weights = make_weights(config)
    probes: dict[str, Array] = {}
    logits = reference.forward(IDS, weights, config, probes=probes)
    assert logits.shape == (2, 4, 11)
    assert logits.dtype == np.float64
    assert list(probes) == ["x.0", "x.1", "x.2"]
    assert all(x.shape == (2, 4, 16) for x in probes.values())
    changed = IDS.copy()
    changed[0, 2] = 4
    after = reference.forward(changed, weights, config)
    np.testing.assert_allclose(after[0, :2], logits[0, :2], rtol=1e-10)
    np.testing.assert_allclose(after[1], logits[1], rtol=1e-10)
    assert (after[0, 2:] != logits[0, 2:]).any(axis=-1).all()
    for split in (1, 2, 3):
        cache = [reference.KVCache(2, 6, config["n_head"], 16 // config["n_head"]) for _ in range(2)]
        parts = [reference.forward(part, weights, config, cache) for part in (IDS[:, :split], IDS[:, split:])]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), logits, rtol=1e-9, atol=1e-12)
        assert all(layer.lengths.tolist() == [4, 4] for layer in cache)


def test_the_model_is_its_formula() -> None:
    config = BASE | {"algebra": "dense", "n_layer": 1, "n_head": 1, "ternary": False, "ffn_hidden": 5}
    w = make_weights(config)

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"blocks.0.{name}.weight"][0].T * w[f"blocks.0.{name}.beta"]

    def rotate(x: Array) -> Array:
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * np.outer(np.arange(4), 10000.0 ** (-np.arange(8) / 8)))
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)

    x = w["embedding.weight"][IDS]
    h = norm(x, "blocks.0.attention_norm")
    q, k = rotate(linear(h, "attention.wq")), rotate(linear(h, "attention.wk"))
    score = np.where(np.tri(4, dtype=bool), q @ k.transpose(0, 2, 1) / 4, -np.inf)
    p = np.exp(score) / np.exp(score).sum(axis=-1, keepdims=True)
    x = x + linear(p @ linear(h, "attention.wv"), "attention.wo")
    h = norm(x, "blocks.0.ffn_norm")
    gate = linear(h, "ffn.gate")
    x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, "ffn.up"), "ffn.down")
    expected = norm(x, "norm") @ w["embedding.weight"].T
    np.testing.assert_allclose(reference.forward(IDS, w, config), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_gradient_of_the_model_is_the_slope(name: str) -> None:
    config = CONFIGS[name] | {"ternary": False}
    weights = make_weights(config)
    loss, gradients = reference.forward_backward(IDS, weights, TARGETS, config)
    assert loss == reference.cross_entropy(reference.forward(IDS, weights, config), TARGETS)
    assert set(gradients) == set(weights)
    rng = np.random.default_rng(1)
    for key, weight in weights.items():
        assert gradients[key].shape == weight.shape
        # Along one direction through all elements, so that each counts.
        direction = rng.standard_normal(weight.shape)
        losses = [
            reference.cross_entropy(reference.forward(IDS, weights | {key: weight + step * direction}, config), TARGETS)
            for step in (1e-5, -1e-5)
        ]
        slope = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose((gradients[key] * direction).sum(), slope, rtol=1e-5, atol=1e-8, err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_ternary_model_of_ternary_weights_is_the_plain_one(name: str) -> None:
    config = CONFIGS[name] | {"rule": "round", "activation_bits": None, "ste_clip": None}
    weights = make_weights(config)
    for key in weights:
        if key.split(".")[-2] in ("wq", "wk", "wv", "wo", "gate", "up", "down") and key.endswith("weight"):
            weights[key] = np.clip(np.rint(2 * weights[key]), -1, 1)
    loss, gradients = reference.forward_backward(IDS, weights, TARGETS, config)
    plain, plain_gradients = reference.forward_backward(IDS, weights, TARGETS, config | {"ternary": False})
    np.testing.assert_allclose(loss, plain, rtol=1e-12)
    for key in weights:
        np.testing.assert_allclose(gradients[key], plain_gradients[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pack", [False, True])
def test_integer_weights_are_used_as_they_are_and_have_no_gradient(pack: bool) -> None:
    config = CONFIGS["octonion"]
    weights = make_weights(config)
    name = "blocks.1.ffn.up.weight"
    codes = reference.ternary(weights[name])[0]
    _, gradients = reference.forward_backward(
        IDS, weights | {name: reference.pack_ternary(codes) if pack else codes}, TARGETS, config
    )
    _, expected = reference.forward_backward(IDS, weights, TARGETS, config)
    assert set(gradients) == set(weights) - {name}
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[key], rtol=1e-10, atol=1e-13)


def test_stored_indices_are_used() -> None:
    config = CONFIGS["complex"]
    weights = make_weights(config)
    indices = np.stack([np.arange(11)[::-1], np.arange(11) % 3], axis=-1)
    logits = reference.forward(IDS, weights | {"embedding.indices": indices}, config)
    table = sum(
        weights["embedding.importance"][:, i, None] * weights[f"embedding.tables.{i}"][indices[:, i]] for i in range(2)
    )
    plain = {key: value for key, value in weights.items() if not key.startswith("embedding")}
    expected = reference.forward(IDS, plain | {"embedding.weight": table}, config | {"hash_embeddings": 0})
    np.testing.assert_allclose(logits, expected, rtol=1e-9)
    _, gradients = reference.forward_backward(IDS, weights | {"embedding.indices": indices}, TARGETS, config)
    assert set(gradients) == set(weights)


def test_empty_sequences_and_batches() -> None:
    config = CONFIGS["octonion"]
    weights = make_weights(config)
    for shape in ((2, 0), (0, 3)):
        ids = np.zeros(shape, dtype=np.int64)
        assert reference.forward(ids, weights, config).shape == (*shape, 11)
        loss, gradients = reference.forward_backward(ids, weights, ids, config)
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients.values())


def test_a_cache_is_unchanged_by_a_refusal() -> None:
    config = CONFIGS["octonion"]
    weights = make_weights(config)
    cache = [reference.KVCache(2, 6, 8, 2) for _ in range(2)]
    reference.forward(IDS, weights, config, cache)
    broken = weights | {"blocks.1.ffn.down.weight": np.full_like(weights["blocks.1.ffn.down.weight"], np.nan)}
    for ids, tensors in ((IDS, weights), (IDS[:, :1] + 100, weights), (IDS[:, :1], broken)):
        with pytest.raises((CapacityError, RangeError, ValueError)):
            reference.forward(ids, tensors, config, cache)
        assert all(layer.lengths.tolist() == [4, 4] for layer in cache)
    with pytest.raises(ShapeError, match="one KVCache for each of 2"):
        reference.forward(IDS, weights, config, cache[:1])
    with pytest.raises(ShapeError, match="1 sequences"):
        reference.forward(IDS[:1, :1], weights, config, cache)


def test_arguments_are_refused() -> None:
    config = CONFIGS["dense"]
    weights = make_weights(config)
    name = "blocks.0.attention.wq.beta"
    with pytest.raises(ParameterError, match=rf"{name}.*missing"):
        reference.forward(IDS, {key: value for key, value in weights.items() if key != name}, config)
    with pytest.raises(ParameterError, match=r"bloks.0.*superfluous"):
        reference.forward(IDS, weights | {"bloks.0": np.ones(1)}, config)
    with pytest.raises(ShapeError, match=name):
        reference.forward(IDS, weights | {name: np.ones(3)}, config)
    with pytest.raises(DTypeError):
        reference.forward(IDS, weights | {"norm.weight": np.ones(16, dtype=bool)}, config)
    with pytest.raises(CapacityError, match="9 tokens"):
        reference.forward(np.zeros((1, 9), dtype=int), weights, config)
    with pytest.raises(RangeError):
        reference.forward(IDS + 1, weights, config)
    with pytest.raises(ShapeError):
        reference.forward(IDS[0], weights, config)
    with pytest.raises(DTypeError):
        reference.forward(IDS.astype(float), weights, config)
    with pytest.raises(RangeError):
        reference.forward_backward(IDS, weights, TARGETS - 1, config)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n_layers": 2}, "did you mean 'n_layer'"),
    ({"vocab": 2}, "did you mean 'vocab_size'"),
    ({"algebra": "octonions"}, "did you mean 'octonion'"),
    ({"n_layer": 1.0}, "n_layer"),
    ({"n_head": True}, "n_head"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"n_embd": 18, "n_head": 3}, "n_embd"),
    ({"n_head": 3}, "n_embd"),
    ({"n_head": 16, "n_embd": 16}, "rope"),
    ({"head_mixing": True}, "n_head"),
    ({"head_mixing": 1}, "head_mixing"),
    ({"algebra": "dense", "head_mixing": True}, "head_mixing"),
    ({"hash_embeddings": 4}, "hash_embeddings"),
    ({"hash_embeddings": False}, "hash_embeddings"),
    ({"hash_scale": True}, "hash_scale"),
    ({"rule": "median"}, "median"),
    ({"ste_clip": -0.5}, "ste_clip"),
    ({"activation_bits": 4}, "activation_bits"),
    ({"hadamard_size": 12}, "hadamard_size"),
    ({"ffn_hidden": 12}, "ffn_hidden"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        reference.complete_config(BASE | {"algebra": "octonion"} | change)


def test_configurations_are_completed_once() -> None:
    config = BASE | {"algebra": "octonion"}
    full = reference.complete_config(config)
    assert full["ffn_hidden"] == 48
    assert full["activation_bits"] == 8
    assert reference.complete_config(full) == full
    assert "ffn_hidden" not in config
    for key in config:
        with pytest.raises(ParameterError, match=f"{key}.*missing"):
            reference.complete_config({other: value for other, value in config.items() if other != key})
