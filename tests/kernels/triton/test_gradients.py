"""Gradients of every differentiable kernel against slopes in float64, by PyTorch's own gradcheck."""

from functools import partial

import pytest
from interpreted import F64, rand, torch

from walsh.kernels import triton as kernels

IDS4, AIMS = torch.tensor([2, 0, 2, 1]), torch.tensor([1, -1, 2, 0])
PAIRS = torch.tensor([[0, 1], [1, 0], [1, 1]])


def wide(*shapes):
    return tuple(rand(*shape, dtype=F64, seed=i) for i, shape in enumerate(shapes))


GRADCHECKS = {
    "cayley_dickson_linear": (kernels.cayley_dickson_linear, wide((2, 4), (2, 2, 2), (2,))),
    "fast product": (partial(kernels.cayley_dickson_linear, method="fast"), wide((2, 4), (4, 1, 1), (1,))),
    "hadamard_linear": (kernels.hadamard_linear, wide((2, 4), (2, 2, 2), (2, 2), (2, 2))),
    "hadamard_transform": (kernels.hadamard_transform, wide((2, 4))),
    "head_mixer quaternion": (partial(kernels.head_mixer, algebra="quaternion"), wide((2, 4, 1), (4, 1, 1), (1,))),
    "head_mixer hadamard": (partial(kernels.head_mixer, algebra="hadamard"), wide((1, 2, 2), (2, 2, 2), (2,))),
    "rms_norm": (kernels.rms_norm, wide((2, 3), (3,))),
    "swiglu": (kernels.swiglu, wide((2, 3), (2, 3))),
    "rope": (kernels.rope, wide((3, 1, 2))),
    "attention": (kernels.attention, wide((1, 2, 1, 2), (1, 2, 1, 2), (1, 2, 1, 2))),
    "embedding": (partial(kernels.embedding, IDS4), wide((3, 2))),
    "hash_embedding": (
        lambda a, b, i: kernels.hash_embedding(IDS4, [a, b], i, PAIRS, 1.5), wide((2, 2), (2, 2), (3, 2)),
    ),
    "lm_head": (kernels.lm_head, wide((2, 3), (2, 3))),
    "hash_lm_head": (
        lambda x, a, b, i: kernels.hash_lm_head(x, [a, b], i, PAIRS), wide((2, 2), (2, 2), (2, 2), (3, 2)),
    ),
    "cross_entropy": (lambda logits: kernels.cross_entropy(logits, AIMS), wide((4, 3))),
    "linear_cross_entropy": (lambda x, t: kernels.linear_cross_entropy(x, t, AIMS, 3), wide((4, 2), (3, 2))),
}  # fmt: skip  # one operation a line


@pytest.mark.parametrize("name", GRADCHECKS)
def test_gradcheck(name):
    function, inputs = GRADCHECKS[name]
    assert torch.autograd.gradcheck(function, tuple(x.clone().requires_grad_() for x in inputs))
