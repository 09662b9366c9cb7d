"""Whole models: values, probes and gradients of the NumPy reference; any split over a cache; what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from formulas import leaf
from torch import Tensor

from walsh import errors, reference
from walsh.kernels import torch as kernels
from walsh.kernels.torch.forward import check_weights
from walsh.reference.config import complete_config, weight_shapes
from walsh.reference.forward import forward_backward as reference_forward_backward


def tiny(**changes: Any) -> dict[str, Any]:
    sizes = {"n_layer": 2, "n_head": 8, "n_embd": 32, "vocab_size": 11, "block_size": 6, "hadamard_size": 8}
    return {"algebra": "octonion", **sizes, **changes}


def make_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    return {name: leaf(*shape, scale=0.5) for name, shape in weight_shapes(config).items()}


CONFIGS = [
    tiny(),
    tiny(algebra="hadamard", head_mixing=True, tied_head=False, activation_bits=None),
    tiny(head_mixing=True, hash_embeddings=2, hash_scale=True, ste_clip=0.6),
    tiny(algebra="quaternion", ternary=False, hash_embeddings=3),
    tiny(algebra="dense", rule="round"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_forward_and_its_gradients_equal_the_reference(config: dict[str, Any]) -> None:
    weights = make_weights(config)
    ids, targets = torch.randint(0, 11, (2, 5)), torch.randint(-1, 11, (2, 5))
    arrays = {name: w.detach().numpy() for name, w in weights.items()}
    found: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    logits = kernels.forward(ids, weights, config, probes=found)
    np.testing.assert_allclose(
        logits.detach().numpy(), reference.forward(ids.numpy(), arrays, config, probes=expected), atol=1e-9
    )
    assert list(found) == ["x.0", "x.1", "x.2"]
    for name, probe in expected.items():
        np.testing.assert_allclose(found[name].detach().numpy(), probe, atol=1e-9)
    _, gradients = reference_forward_backward(ids.numpy(), arrays, targets.numpy(), config)
    kernels.cross_entropy(logits, targets).backward()
    assert set(gradients) == set(weights)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(weights[name].grad.numpy(), gradient, atol=1e-9, err_msg=name)


def test_forward_in_steps_over_a_cache_equals_one_pass() -> None:
    config = tiny(head_mixing=True)
    weights = {name: w.detach() for name, w in make_weights(config).items()}
    ids = torch.randint(0, 11, (2, 6))
    whole = kernels.forward(ids, weights, config)
    for cut in range(7):
        cache = [kernels.KVCache(2, 6, 8, 4, torch.float64) for _ in range(2)]
        parts = [kernels.forward(part, weights, config, cache) for part in (ids[:, :cut], ids[:, cut:])]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        with pytest.raises(errors.CapacityError):
            kernels.forward(ids[:, :1], weights, config, cache)
        assert cache[0].lengths.tolist() == [6, 6]


def test_forward_refuses_what_does_not_fit() -> None:
    config = tiny()
    weights = make_weights(config)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(errors.ParameterError):
        kernels.forward(ids, {k: w for k, w in weights.items() if k != "norm.weight"}, config)
    with pytest.raises(errors.ParameterError):
        kernels.forward(ids, weights | {"other": weights["norm.weight"]}, config)
    with pytest.raises(errors.ShapeError):
        kernels.forward(ids, weights | {"norm.weight": torch.ones(31)}, config)
    with pytest.raises(errors.ParameterError):
        kernels.forward(ids, weights, config | {"dropout": 0.1})
    with pytest.raises(errors.CapacityError):
        kernels.forward(torch.zeros(1, 7, dtype=torch.int64), weights, config)
    with pytest.raises(errors.RangeError):
        kernels.forward(ids + 11, weights, config)


@pytest.mark.parametrize("wrong", [{"n_head": 8.0}, {"n_head": [8]}, {"tied_head": 1}])
def test_a_configuration_that_equals_a_right_one_is_not_taken_for_it(wrong: dict[str, object]) -> None:
    given = {"algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 32, "vocab_size": 50, "block_size": 16}
    config = complete_config(given)
    weights = {name: torch.zeros(shape) for name, shape in weight_shapes(config).items()}
    check_weights(weights, config)
    with pytest.raises(errors.ParameterError):
        check_weights(weights, {**config, **wrong})
