"""Whole models: strict ones generate the tokens of ``walsh.reference.strict``, ordinary ones read in any split."""

import numpy as np
from interpreted import rand, same_bits, torch

from walsh.kernels import triton as kernels
from walsh.reference import strict as reference
from walsh.reference.config import weight_shapes

MODEL = {
    "algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 16, "vocab_size": 20, "block_size": 12,
    "head_mixing": True,
}  # fmt: skip  # one line reads as one configuration


def model_weights():
    return {name: rand(*shape) for name, shape in weight_shapes(MODEL).items()}


def array_dict(weights):
    return {name: w.numpy() for name, w in weights.items()}


def test_strict_model_generates_the_same_tokens():
    weights = reference.export(array_dict(model_weights()), MODEL)
    tensors = {name: torch.from_numpy(w) for name, w in weights.items()}
    ids = np.array([[3, 1, 4], [1, 5, 9]])
    same_bits(kernels.strict.forward(torch.from_numpy(ids), tensors, MODEL), reference.forward(ids, weights, MODEL))
    settings = {"max_new_tokens": 3, "temperature": 0.8, "seed": 5}
    same_bits(
        kernels.strict.generate(torch.from_numpy(ids), tensors, MODEL, **settings),
        reference.generate(ids, weights, MODEL, **settings),
    )


def test_forward_through_a_cache_equals_the_whole():
    weights, ids = model_weights(), torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    whole = kernels.forward(ids, weights, MODEL)
    cache = [kernels.KVCache(2, 8, 8, 2)]
    parts = [kernels.forward(ids[:, :3], weights, MODEL, cache), kernels.forward(ids[:, 3:], weights, MODEL, cache)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4
