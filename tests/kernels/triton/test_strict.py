"""Strict kernels: every function, and the sampler, equal ``walsh.reference.strict`` to the bit, twice."""

import numpy as np
import pytest
from interpreted import F64, codes, rand, same_bits, torch

from walsh.kernels import triton as kernels
from walsh.reference import strict as reference


def array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else [array(member) for member in x] if isinstance(x, list) else x


TABLES = [codes(p, 12, seed=p) for p in (4, 6, 5)]
SCALES = [rand(p).abs() for p in (4, 6, 5)]
INDICES = torch.tensor([[i % 4, i % 6, i % 5] for i in range(30)])
IDS = torch.tensor([[0, 29, 7], [7, 7, 1]])
STRICT = {
    "exp": [(torch.linspace(-100, 100, 3001),)],
    "hsum": [(rand(3, n),) for n in (1, 37, 1000)],
    "psum": [(rand(3, n),) for n in (1, 37, 1000)],
    "sincos": [(torch.linspace(0, 1e5, 3001, dtype=F64),)],
    "quantize_activations": [(rand(5, 37),), (rand(2, 3, 300) * 1e-6,)],
    "rms_norm": [(rand(5, n), rand(n)) for n in (1, 37, 512)],
    "swiglu": [(rand(5, 37) * 20, rand(5, 37))],
    "hadamard_transform": [(rand(3, n),) for n in (1, 32, 8192)],
    "cayley_dickson_linear": [(rand(2, 3, d * 9), codes(d, 7, 9, low=-1, high=2), rand(7)) for d in (1, 8, 16)],
    "hadamard_linear": [(rand(5, n * 9), codes(n, 7, 9, low=-1, high=2), rand(n, 9), rand(n, 7)) for n in (1, 32)],
    "head_mixer": [
        (rand(3, 2 * n, 5), codes(n, 5, 5), rand(5).abs(), rand(5), algebra)
        for n, algebra in ((2, "complex"), (8, "octonion"), (16, "sedenion"), (8, "hadamard"))
    ],
    "rope": [(rand(2, 4, 3, 8), 10000.0 ** (-torch.arange(0, 8, 2).double() / 8), torch.tensor([0, 3, 1000, 99999]))],
    "attention": [
        (
            rand(2, 5, 3, 4),
            rand(2, 40, 3, 4, seed=1),
            rand(2, 40, 3, 4, seed=2),
            torch.tensor([[-1, 0, 31, 32, 39]] * 2),
        ),
        (rand(1, 40, 1, 20), rand(1, 40, 1, 20, seed=1), rand(1, 40, 1, 20, seed=2), None),
    ],
    "embedding": [(IDS, codes(30, 12), rand(30).abs())],
    "lm_head": [(rand(2, 3, 12), codes(30, 12), rand(30).abs())],
    "hash_embedding": [(IDS, TABLES, SCALES, rand(30, 3), INDICES, 1.7)],
    "hash_lm_head": [(rand(2, 3, 12), TABLES, SCALES, rand(30, 3), INDICES)],
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_equals_the_reference_to_the_bit(name):
    for arguments in STRICT[name]:
        expected = getattr(reference, name)(*(array(argument) for argument in arguments))
        actual = getattr(kernels.strict, name)(*arguments)
        same_bits(actual, expected)
        same_bits(getattr(kernels.strict, name)(*arguments), expected)


SETTINGS = [
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.5},
    {"top_p": 0.9, "top_k": 4, "repetition_penalty": 0.8},
]


@pytest.mark.parametrize("vocabulary", [1, 7, 200])
def test_sampling(vocabulary):
    logits = (rand(3, vocabulary) * 8).round() / 4  # with ties
    history = torch.tensor([[0, -1, 0], [-1, -1, -1], [vocabulary - 1, 0, 0]])
    for settings in SETTINGS:
        drawn = kernels.sample(logits, history, seed=torch.tensor([1, 2, 3]), position=9, **settings)
        same_bits(
            drawn, reference.sample(logits.numpy(), history.numpy(), seed=np.array([1, 2, 3]), position=9, **settings)
        )
    same_bits(kernels.uniform(2**64 - 1, 2**40), reference.uniform(2**64 - 1, 2**40))
