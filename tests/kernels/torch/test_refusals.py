"""Refusals: every wrong shape, dtype, range and parameter is refused with the class that SPEC.md names."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

pytest.importorskip("torch")
import torch

from walsh import errors
from walsh.kernels import torch as kernels

ONE = torch.ones
BAD: list[tuple[type[errors.WalshError], Callable[[], object]]] = [
    (errors.NonFiniteError, lambda: kernels.ternary(torch.tensor([1.0, math.nan]))),
    (errors.NonFiniteError, lambda: kernels.ternary(torch.tensor([1.0, math.inf]), "round")),
    (errors.NonFiniteError, lambda: kernels.cayley_dickson_bit_linear(ONE(2, 8), ONE(8, 1, 1) * math.nan)),
    (errors.NonFiniteError, lambda: kernels.hadamard_bit_linear(ONE(2, 8), ONE(8, 1, 1) * math.nan)),
    (errors.DTypeError, lambda: kernels.rms_norm([1.0], None)),
    (errors.DTypeError, lambda: kernels.cayley_dickson_linear([1.0] * 8, ONE(8, 1, 1))),
    (errors.DTypeError, lambda: kernels.hadamard_transform([1.0, 2.0])),
    (errors.DTypeError, lambda: kernels.swiglu(ONE(2), [1.0, 2.0])),
    (errors.DTypeError, lambda: kernels.embedding([1], ONE(4, 2))),
    (errors.DTypeError, lambda: kernels.quantize_activations(3.0)),
    (errors.DTypeError, lambda: kernels.attention([1.0], ONE(1, 2, 1, 2), ONE(1, 2, 1, 2))),
    (errors.DTypeError, lambda: kernels.cross_entropy([[1.0]], torch.tensor([0]))),
    (errors.ShapeError, lambda: kernels.ternary(ONE(0))),
    (errors.ParameterError, lambda: kernels.ternary(ONE(2), "mean")),
    (errors.ParameterError, lambda: kernels.ternary_ste(ONE(2), ste_clip=-1.0)),
    (errors.DTypeError, lambda: kernels.ternary(torch.ones(2, dtype=torch.int64))),
    (errors.ParameterError, lambda: kernels.pack_ternary(torch.full((4,), 2, dtype=torch.int8))),
    (errors.ShapeError, lambda: kernels.unpack_ternary(torch.zeros(2, dtype=torch.uint8), 4)),
    (errors.ShapeError, lambda: kernels.quantize_activations(ONE(2, 0))),
    (errors.ShapeError, lambda: kernels.cayley_dickson_linear(ONE(2, 9), ONE(8, 1, 1))),
    (errors.ShapeError, lambda: kernels.cayley_dickson_linear(ONE(2, 6), ONE(3, 1, 2))),
    (errors.ShapeError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1), ONE(2))),
    (errors.ParameterError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1), method="slow")),
    (errors.ParameterError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1), None, ONE(2, 1))),
    (errors.DTypeError, lambda: kernels.cayley_dickson_linear(ONE(2, 8).to(torch.int8), ONE(8, 3, 1))),
    (errors.ParameterError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1).to(torch.int8) * 2)),
    (errors.ParameterError, lambda: kernels.cayley_dickson_bit_linear(ONE(2, 8), ONE(8, 3, 1), None, 4)),
    (errors.ShapeError, lambda: kernels.hadamard_transform(ONE(2, 6))),
    (errors.ParameterError, lambda: kernels.hadamard_transform(torch.ones(4, dtype=torch.int32))),
    (errors.ShapeError, lambda: kernels.hadamard_linear(ONE(2, 8), ONE(8, 3, 1), ONE(8, 2))),
    (errors.ShapeError, lambda: kernels.head_mixer(ONE(2, 9, 2), ONE(8, 2, 2))),
    (errors.ShapeError, lambda: kernels.head_mixer(ONE(2, 8, 2), ONE(4, 2, 2))),
    (errors.ParameterError, lambda: kernels.head_mixer(ONE(2, 8, 2), ONE(8, 2, 2), None, "dual")),
    (errors.ShapeError, lambda: kernels.rms_norm(ONE(2, 3), ONE(4))),
    (errors.ParameterError, lambda: kernels.rms_norm(ONE(2, 3), ONE(3), -1.0)),
    (errors.ShapeError, lambda: kernels.rope(ONE(2, 1, 3))),
    (errors.RangeError, lambda: kernels.rope(ONE(2, 1, 4), torch.tensor([0, -1]))),
    (errors.RangeError, lambda: kernels.attention(*[ONE(1, 2, 1, 2)] * 3, torch.tensor([0, 2]))),
    (errors.RangeError, lambda: kernels.attention(*[ONE(1, 2, 1, 2)] * 3, torch.tensor([0, -2]))),
    (errors.ShapeError, lambda: kernels.attention(ONE(1, 2, 1, 2), ONE(1, 2, 1, 2), ONE(1, 3, 1, 2))),
    (errors.ShapeError, lambda: kernels.swiglu(ONE(2), ONE(3))),
    (errors.RangeError, lambda: kernels.embedding(torch.tensor([4]), ONE(4, 2))),
    (errors.RangeError, lambda: kernels.embedding(torch.tensor([-1]), ONE(4, 2))),
    (errors.ParameterError, lambda: kernels.hash_indices(torch.tensor([1]), 4)),
    (errors.RangeError, lambda: kernels.cross_entropy(ONE(2, 3), torch.tensor([0, 3]))),
    (errors.RangeError, lambda: kernels.linear_cross_entropy(ONE(2, 3), ONE(4, 3), torch.tensor([0, -2]))),
    (errors.ParameterError, lambda: kernels.linear_cross_entropy(ONE(2, 3), ONE(4, 3), torch.tensor([0, 1]), 0)),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_wrong_arguments_are_refused_by_class(index: int) -> None:
    error, call = BAD[index]
    with pytest.raises(error):
        call()
