"""Packed weights compute what strict arithmetic says, to the bit, and stay as small as their file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from walsh import codec
from walsh.errors import CapacityError, RangeError, ShapeError
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.packed import PackedModel
from walsh.model.transformer import Walsh
from walsh.reference import strict

CONFIGS: dict[str, dict[str, Any]] = {
    "octonion mixer": {"algebra": "octonion", "n_head": 8, "head_mixing": True},
    "hadamard mixer": {"algebra": "hadamard", "n_head": 8, "hadamard_size": 8, "head_mixing": True},
    "hash 2": {"algebra": "quaternion", "n_head": 2, "hash_embeddings": 2},
    "hash 3": {"algebra": "octonion", "n_head": 2, "hash_embeddings": 3, "hash_scale": True},
    "untied": {"algebra": "dense", "n_head": 2, "tied_head": False},
}
IDS = [3, 1, 41, 1, 5, 49, 0]


def trained(**changes: Any) -> tuple[WalshConfig, dict[str, np.ndarray]]:
    config = WalshConfig(n_layer=2, n_embd=32, block_size=12, vocab_size=50, **changes)
    model = Walsh(config, seed=4)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if "hash_embeddings" in changes:
        places = np.arange(100 if changes["hash_embeddings"] == 2 else 150).reshape(50, -1) % 40
        weights["embedding.indices"] = places
        weights |= {f"embedding.tables.{i}": weights[f"embedding.tables.{i}"] for i in range(places.shape[1])}
        if changes["hash_embeddings"] == 2:
            weights["embedding.tables.1"] = np.tile(weights["embedding.tables.1"], (40, 1))
    return config, weights


@pytest.mark.parametrize("rows", [8, 4])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_those_of_the_reference_to_the_bit(changes: dict[str, Any], rows: int) -> None:
    config, weights = trained(**changes)
    exported = strict.export(weights, config.to_dict())
    if rows == 4:
        exported = codec.four_bit_rows(exported, config.to_dict(), weights)
    file = codec.load(codec.dump(exported, config.to_dict()))
    model = PackedModel(file.weights, file.config)
    expected = strict.forward(np.array([IDS]), exported, config.to_dict())[0]
    assert model.strict
    assert (model.logits(IDS, last_only=False).numpy().view(np.uint32) == expected.view(np.uint32)).all()
    cache = model.new_cache(10)
    model.logits(IDS[:4], cache)
    model.logits(IDS[4:6], cache)
    assert (model.logits(IDS[6:], cache).numpy().view(np.uint32) == expected[-1].view(np.uint32)).all()


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_float_activations_compute_with_the_codes(changes: dict[str, Any]) -> None:
    config, weights = trained(**changes, activation_bits=None)
    exported = strict.export(weights, config.to_dict() | {"activation_bits": 8})
    packed = PackedModel(exported, config.to_dict())
    assert not packed.strict
    # By definition: the ordinary forward pass of what the codes stand for.
    plain: dict[str, torch.Tensor] = {}
    for name, value in exported.items():
        tensor = torch.from_numpy(np.asarray(value))
        stem, _, leaf = name.rpartition(".")
        if name == "rope.inv_freq" or leaf == "scale":
            continue
        if leaf == "codes" and f"{stem}.scale" in exported:
            scale = torch.from_numpy(np.asarray(exported[f"{stem}.scale"]))
            value = tensor.double() * (scale if ".mixer" in stem else scale[:, None]).double()
            plain[stem if ".tables." in stem else f"{stem}.weight"] = value
        elif leaf == "codes":
            plain[f"{stem}.weight"] = tensor
        else:
            plain[name] = tensor if tensor.dtype == torch.int64 else tensor.double()
    expected = kernels.forward(torch.tensor([IDS]), plain, config.to_dict())[0]
    torch.testing.assert_close(packed.logits(IDS, last_only=False).double(), expected, rtol=1e-4, atol=1e-4)
    cache = packed.new_cache(8)
    packed.logits(IDS[:5], cache)
    torch.testing.assert_close(packed.logits(IDS[5:], cache).double(), expected[-1], rtol=1e-4, atol=1e-4)


def test_wrong_tokens_and_full_caches_are_refused() -> None:
    config, weights = trained(algebra="octonion", n_head=2)
    exported = strict.export(weights, config.to_dict())
    model = PackedModel(exported, config.to_dict())
    for ids in ([], [50], [-1]):
        with pytest.raises(RangeError):
            model.logits(ids)
    cache = model.new_cache(4)
    model.logits([1, 2, 3], cache)
    with pytest.raises(CapacityError):
        model.logits([4, 5], cache)
    with pytest.raises(CapacityError):
        model.logits(list(range(13)))
    assert cache[0].lengths.tolist() == [3]
    with pytest.raises(ShapeError):
        PackedModel(exported | {"norm.weight": np.ones(31, dtype=np.float32)}, config.to_dict())


@pytest.mark.parametrize("rows", [8, 4])
def test_weights_take_no_more_memory_than_the_file(rows: int) -> None:
    config = WalshConfig(n_layer=4, n_head=8, n_embd=256, vocab_size=8000, block_size=64)
    weights = {name: tensor.numpy() for name, tensor in Walsh(config, seed=1).state_dict().items()}
    exported = strict.export(weights, config.to_dict())
    if rows == 4:
        exported = codec.four_bit_rows(exported, config.to_dict(), weights)
    content = codec.dump(exported, config.to_dict())
    model = PackedModel(codec.load(content).weights, config.to_dict())
    assert model.bytes <= 1.15 * len(content)
