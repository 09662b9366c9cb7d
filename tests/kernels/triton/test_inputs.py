"""Inputs of every kind: none, any offset and stride; and wrong ones, refused before anything runs."""

import pytest
from interpreted import codes, rand, torch

from walsh import errors
from walsh.kernels import triton as kernels
from walsh.kernels.triton._launch import count_launches

EMPTY = {
    "cayley_dickson": lambda: kernels.cayley_dickson_bit_linear(rand(2, 0, 16), rand(8, 3, 2)),
    "hadamard": lambda: kernels.hadamard_bit_linear(rand(0, 16), rand(8, 3, 2)),
    "transform": lambda: kernels.hadamard_transform(rand(0, 8)),
    "mixer": lambda: kernels.head_mixer(rand(0, 8, 2), rand(8, 2, 2)),
    "norm": lambda: kernels.rms_norm_quantize(rand(0, 5), rand(5))[0],
    "swiglu": lambda: kernels.swiglu(rand(3, 0), rand(3, 0)),
    "rope": lambda: kernels.rope(rand(2, 0, 3, 4)),
    "quantizer": lambda: kernels.quantize_activations(rand(0, 5))[1],
    "attention": lambda: kernels.attention(rand(2, 0, 3, 4), rand(2, 5, 3, 4), rand(2, 5, 3, 4)),
    "cache": lambda: kernels.KVCache(2, 4, 3, 2).append(rand(2, 0, 3, 2), rand(2, 0, 3, 2)),
    "embedding": lambda: kernels.embedding(torch.zeros(0, 2, dtype=torch.int64), rand(3, 4)),
    "head": lambda: kernels.lm_head(rand(0, 4), rand(3, 4)),
    "codes": lambda: kernels.pack_ternary(codes(0, 5)),
}  # one operation a line


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_in_gives_nothing_out(name):
    assert EMPTY[name]().numel() == 0


def test_offsets_and_strides_of_every_kind():
    base = rand(5, 4, 24)
    views = {"offset": base[2:, 1], "strided": base[:3, 0, :], "transposed": base[:, :3, 0:24:1].transpose(0, 1)}
    w, weight = rand(8, 2, 3), rand(24)
    for x in views.values():
        for function in (
            lambda x: kernels.cayley_dickson_bit_linear(x, w),
            lambda x: kernels.hadamard_bit_linear(x, w),
            lambda x: kernels.rms_norm(x, weight),
            lambda x: kernels.quantize_activations(x)[0],
            lambda x: kernels.ternary_packed(x)[0],
        ):
            assert torch.equal(function(x), function(x.contiguous()))


def test_wrong_arguments_are_refused_before_anything_runs():
    cases = [
        (errors.ShapeError, lambda: kernels.cayley_dickson_linear(rand(2, 9), rand(2, 3, 4))),
        (errors.ShapeError, lambda: kernels.hadamard_transform(rand(2, 3))),
        (errors.DTypeError, lambda: kernels.cayley_dickson_linear(codes(2, 8), rand(2, 3, 4))),
        (errors.ParameterError, lambda: kernels.cayley_dickson_linear(rand(2, 8), codes(2, 3, 4))),
        (errors.ParameterError, lambda: kernels.ternary(rand(3), "median")),
        (errors.NonFiniteError, lambda: kernels.ternary(torch.tensor([1.0, float("nan")]))),
        (errors.NonFiniteError, lambda: kernels.strict.quantize_activations(torch.tensor([1.0, float("inf")]))),
        (errors.RangeError, lambda: kernels.embedding(torch.tensor([3]), rand(3, 2))),
        (errors.RangeError, lambda: kernels.cross_entropy(rand(1, 3), torch.tensor([3]))),
        (errors.FormatError, lambda: kernels.unpack_ternary(torch.tensor([255], dtype=torch.uint8), 4)),
        (errors.FormatError, lambda: kernels.bitmask_decode(*(torch.tensor([255], dtype=torch.uint8),) * 2, (7,))),
    ]
    with count_launches() as names:
        for error, call in cases:
            with pytest.raises(error):
                call()
    assert set(names) <= {"abs_sum_kernel", "ternary_kernel", "unpack_kernel", "quantize_kernel"}
