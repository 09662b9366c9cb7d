"""Inputs of every kind: NaN, infinity, nothing at all, 16-bit floats, any stride; and inputs are left as they were."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from definitions import normal
from smooth_calls import INDICES, SMOOTH, TABLES

from walsh import reference
from walsh.suite.catalog import CALLS


def test_nan_and_infinity_propagate_in_silence() -> None:
    x = np.array([[1.0, np.nan], [np.inf, 1.0], [1.0, 2.0]])
    a, scale = reference.quantize_activations(x)
    assert np.isnan(scale[:2]).all()
    assert not a[:2].any()
    assert np.isfinite(scale[2]).all()
    y = reference.cayley_dickson_bit_linear(x, normal(2, 3, 1))
    assert np.isnan(y[:2]).all()
    assert np.isfinite(y[2]).all()
    assert np.isnan(reference.rms_norm(x, np.ones(2))).tolist() == [[True, True], [True, False], [False, False]]
    gate = np.array([-np.inf, np.inf, np.nan, -1000.0, 1000.0])
    assert reference.swiglu(gate, np.ones(5)).tolist()[:2] == [0, np.inf]
    slopes = reference.swiglu_backward(gate, np.ones(5), np.ones(5))[0]
    assert slopes[[0, 1, 3, 4]].tolist() == [0, 1, 0, 1]
    assert np.isnan(reference.hadamard_transform(np.array([np.inf, np.inf]))).tolist() == [False, True]


def test_a_signalling_nan_is_an_input_like_any_other() -> None:
    table = np.array([[0x7FA00000, 0x3F800000]], dtype=np.uint32).view(np.float32)
    assert np.isnan(reference.embedding(np.array(0), table)).tolist() == [True, False]
    largest = np.array([np.finfo(np.float64).max])
    assert reference.fake_quantize_activations(largest).shape == (1,)


EMPTY: list[tuple[str, list[Any], tuple[int, ...]]] = [
    ("quantize_activations", [np.zeros((0, 4))], (0, 4)),
    ("cayley_dickson_linear", [np.zeros((2, 0, 16)), normal(8, 3, 2)], (2, 0, 24)),
    ("cayley_dickson_bit_linear", [np.zeros((0, 16)), normal(8, 3, 2)], (0, 24)),
    ("hadamard_linear", [np.zeros((0, 8)), normal(4, 3, 2)], (0, 12)),
    ("hadamard_bit_linear", [np.zeros((0, 8)), normal(4, 3, 2)], (0, 12)),
    ("head_mixer", [np.zeros((0, 8, 2)), normal(8, 2, 2)], (0, 8, 2)),
    ("rms_norm", [np.zeros((0, 4)), np.ones(4)], (0, 4)),
    ("rope", [np.zeros((1, 0, 2, 4))], (1, 0, 2, 4)),
    ("attention", [np.zeros((2, 0, 1, 2)), np.zeros((2, 3, 1, 2)), np.zeros((2, 3, 1, 2))], (2, 0, 1, 2)),
    ("embedding", [np.zeros((2, 0), dtype=int), normal(4, 3)], (2, 0, 3)),
    ("lm_head", [np.zeros((0, 3)), normal(4, 3)], (0, 4)),
    ("hash_lm_head", [np.zeros((0, 3)), TABLES, normal(4, 2), INDICES], (0, 4)),
    ("cross_entropy", [np.zeros((0, 4)), np.zeros(0, dtype=int)], ()),
    ("linear_cross_entropy", [np.zeros((0, 3)), normal(4, 3), np.zeros(0, dtype=int)], ()),
]


@pytest.mark.parametrize(("name", "args", "shape"), EMPTY)
def test_empty_batches_work(name: str, args: list[Any], shape: tuple[int, ...]) -> None:
    result = getattr(reference, name)(*args)
    assert np.shape(result[0] if isinstance(result, tuple) else result) == shape
    call = CALLS.get(f"{name}.backward")
    if call is not None:
        padded = args + [None] * (len(call.args) - 1 - len(args))
        gradients = getattr(reference, f"{name}_backward")(*padded, np.zeros(shape))
        for output, gradient in zip(call.outputs, gradients, strict=True):
            given = padded[call.args.index(output[1:])]
            if isinstance(given, np.ndarray):
                assert gradient.shape == given.shape
                assert not gradient.any()


@pytest.mark.parametrize(("name", "args", "params"), SMOOTH)
def test_any_float_dtype_any_stride_and_inputs_left_alone(name: str, args: list[Any], params: dict[str, Any]) -> None:
    def convert(value: Any, dtype: Any) -> Any:
        if isinstance(value, list):
            return [convert(member, dtype) for member in value]
        return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    function = getattr(reference, name)
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16):
        narrow = convert(args, dtype)
        expected = function(*convert(narrow, np.float64), **params)
        actual = function(*narrow, **params)
        assert actual.dtype == np.float64
        assert (actual == expected).all()
    frozen = [value.copy() if isinstance(value, np.ndarray) else value for value in args]
    for value in frozen:
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    result = function(*frozen, **params)
    assert not any(isinstance(value, np.ndarray) and np.shares_memory(result, value) for value in frozen)
    strided = [np.asfortranarray(value) if isinstance(value, np.ndarray) else value for value in args]
    assert (function(*strided, **params) == result).all()
    upstream = np.ones(np.shape(result))
    upstream.setflags(write=False)
    for gradient in getattr(reference, f"{name}_backward")(*frozen, upstream, **params):
        assert not isinstance(gradient, np.ndarray) or not np.shares_memory(gradient, upstream)
