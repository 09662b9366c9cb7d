"""Whole models: logits, probes and tokens equal to the bit in both packages, in any split and any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from both_packages import F32, assert_same_bits, bits, both, to_torch, wild
from strict_models import MODELS, make_weights

from walsh import errors
from walsh.kernels.torch import strict as torch_strict
from walsh.reference import strict


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = MODELS[request.param]
    return config, strict.export(make_weights(config), config)


def new_cache(package: Any, config: dict[str, Any], batch: int) -> list[Any]:
    sizes = (batch, config["block_size"], config["n_head"], config["n_embd"] // config["n_head"])
    return [package.Int8KVCache(*sizes) for _ in range(config["n_layer"])]


def test_logits_and_probes_are_equal_to_the_bit(model: Any, rng: np.random.Generator) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (2, 40))
    probes: dict[str, Any] = {}
    torch_probes: dict[str, Any] = {}
    expected = strict.forward(ids, weights, config, probes=probes)
    found = torch_strict.forward(to_torch(ids), to_torch(weights), config, probes=torch_probes)
    assert list(probes) == list(torch_probes) == ["x.0", "x.1", "x.2"]
    for name in probes:
        assert_same_bits(probes[name], torch_probes[name])
    assert_same_bits(expected, found)
    assert np.ptp(expected, axis=-1).min() > 0


def test_any_split_through_a_cache_equals_the_full_pass(model: Any, rng: np.random.Generator) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (2, 36))
    full = strict.forward(ids, weights, config).view(np.int32)
    for package, convert in ((strict, lambda x: x), (torch_strict, to_torch)):
        for split in ([35, 1], [1, 2, 30, 3], [33, 0, 3]):
            cache, start = new_cache(package, config, 2), 0
            for size in split:
                piece = convert(np.ascontiguousarray(ids[:, start : start + size]))
                logits = package.forward(piece, convert(weights), config, cache)
                np.testing.assert_array_equal(bits(logits), full[:, start : start + size])
                start += size


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.2}])
def test_generation(model: Any, rng: np.random.Generator, sampling: dict[str, Any]) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (2, 5))
    seed = np.array([3, 2**63 - 1]) if sampling else 0
    tokens = both("generate", ids, weights, config, 32, **sampling, seed=seed)
    assert tokens.shape == (2, 32)
    everything = np.concatenate([ids, tokens], axis=1)
    logits = strict.forward(everything[:, :-1], weights, config)  # one pass, without a cache
    settings = sampling or {"temperature": 0.0}
    for i in range(5, 37):
        again = strict.sample(logits[:, i - 1], everything[:, :i], **settings, seed=seed, position=i)
        np.testing.assert_array_equal(again, everything[:, i])


def test_a_sequence_does_not_depend_on_its_batch(model: Any, rng: np.random.Generator) -> None:
    config, weights = model
    ids = rng.integers(0, config["vocab_size"], (3, 9))
    whole = torch_strict.forward(to_torch(ids), to_torch(weights), config)
    for b in range(3):
        alone = strict.forward(ids[b : b + 1], weights, config)
        np.testing.assert_array_equal(bits(alone)[0], bits(whole)[b])


@pytest.fixture
def dense() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = MODELS["dense"]
    return config, strict.export(make_weights(config), config)


def test_generate_takes_one_prompt_and_nothing_to_do(dense: Any) -> None:
    config, weights = dense
    ids = np.array([1, 2, 3])
    assert both("generate", ids, weights, config, 0).shape == (1, 0)
    np.testing.assert_array_equal(
        both("generate", ids, weights, config, 4), both("generate", ids[None], weights, config, 4)
    )
    full = config["block_size"]
    assert both("generate", np.zeros((1, full), dtype=np.int64), weights, config, 1).shape == (1, 1)
    assert both("generate", np.zeros((0, 2), dtype=np.int64), weights, config, 2).shape == (0, 2)


@pytest.mark.parametrize(
    ("shape", "count", "error"),
    [
        ((1, 49), 1, errors.CapacityError),
        ((1, 49), 0, errors.CapacityError),
        ((1, 48), 2, errors.CapacityError),
        ((1, 0), 1, errors.ShapeError),
        ((1, 2, 3), 1, errors.ShapeError),
        ((1, 2), -1, errors.ParameterError),
        ((1, 2), 1.0, errors.ParameterError),
    ],
)
def test_generate_refuses(dense: Any, shape: tuple[int, ...], count: Any, error: type[Exception]) -> None:
    config, weights = dense
    ids = np.zeros(shape, dtype=np.int64)
    with pytest.raises(error):
        strict.generate(ids, weights, config, count)
    with pytest.raises(error):
        torch_strict.generate(to_torch(ids), to_torch(weights), config, count)


def test_forward_past_a_limit_leaves_the_cache_as_it_was(dense: Any) -> None:
    config, weights = dense
    for package, convert in ((strict, lambda x: x), (torch_strict, to_torch)):
        cache = new_cache(package, config, 1)
        package.forward(convert(np.zeros((1, 40), dtype=np.int64)), convert(weights), config, cache)
        with pytest.raises(errors.CapacityError):
            package.forward(convert(np.zeros((1, 9), dtype=np.int64)), convert(weights), config, cache)
        infinite = {**weights, "blocks.1.attention_norm.weight": np.full(32, np.inf, dtype=F32)}
        with pytest.raises(errors.NonFiniteError):  # in the second block, after the first has cached its keys
            package.forward(convert(np.zeros((1, 2), dtype=np.int64)), convert(infinite), config, cache)
        assert [layer.lengths.tolist() for layer in cache] == [[40], [40]]
        with pytest.raises(errors.ShapeError):
            package.forward(convert(np.zeros((1, 1), dtype=np.int64)), convert(weights), config, cache[:1])


def test_weights_are_checked_by_name_shape_dtype_and_value(dense: Any) -> None:
    config, weights = dense
    name = "blocks.1.ffn.down.codes"
    two = weights[name].copy()
    two[0, 0, 0] = 2
    cases = [
        ({k: v for k, v in weights.items() if k != name}, errors.ParameterError, name),
        ({**weights, "blocks.2.extra": weights[name]}, errors.ParameterError, "extra"),
        ({**weights, name: weights[name][:, :1]}, errors.ShapeError, name),
        ({**weights, name: weights[name].astype(F32)}, errors.DTypeError, name),
        ({**weights, name: two}, errors.ParameterError, "code 2"),
    ]
    ids = np.zeros((1, 2), dtype=np.int64)
    for wrong, error, message in cases:
        with pytest.raises(error, match=message):
            strict.forward(ids, wrong, config)
        with pytest.raises(error, match=message):
            torch_strict.forward(to_torch(ids), to_torch(wrong), config)


@pytest.mark.parametrize("change", [{"activation_bits": None}, {"ternary": False}])
def test_a_model_without_rounding_has_no_strict_arithmetic(dense: Any, change: dict[str, Any]) -> None:
    config, weights = dense
    ids = np.zeros((1, 2), dtype=np.int64)
    for package, convert in ((strict, lambda x: x), (torch_strict, to_torch)):
        for call in (
            lambda p, f, c: p.forward(f(ids), f(weights), c),
            lambda p, f, c: p.generate(f(ids), f(weights), c, 1),
            lambda p, f, c: p.export(f(make_weights(config)), c),
            lambda p, f, c: p.strict_weight_shapes(c),
        ):
            with pytest.raises(errors.StrictError):
                call(package, convert, {**config, **change})


def test_stored_indices_may_come_with_tables_of_any_height(rng: np.random.Generator) -> None:
    config = MODELS["hash_2"]
    weights = make_weights(config)
    for i, height in enumerate((9, 13)):
        weights[f"embedding.tables.{i}"] = wild(rng, height, 32)
    weights["embedding.indices"] = np.stack([rng.integers(0, h, 61) for h in (9, 13)], axis=-1)
    exported = strict.export(weights, config)
    both("forward", rng.integers(0, 61, (1, 5)), exported, config)
