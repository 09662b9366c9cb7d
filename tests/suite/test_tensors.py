"""Encodings of tensors: known answers and round trips."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from walsh.errors import VectorError
from walsh.suite.tensors import DTYPES, decode, digest, encode, paint, read_tensors, round_to, write_tensors


def recipe(mul=1, add=0, mod=100, sub=0, shift=0):
    return {"mul": mul, "add": add, "mod": mod, "sub": sub, "shift": shift}


def test_paint_known_answer():
    painted = paint(recipe(97, 0, 251, 125, -3), "float32", (2, 2))
    # 0, 97, 194, 291 mod 251 = 40; minus 125; over 8.
    assert painted.tolist() == [[-15.625, -3.5], [8.625, -10.625]]
    assert painted.dtype == np.float32


def test_paint_repeats_with_its_modulus():
    assert paint(recipe(mod=3, sub=1), "int8", (7,)).tolist() == [-1, 0, 1, -1, 0, 1, -1]


@given(
    st.integers(-(2**70), 2**70),
    st.integers(-(2**70), 2**70),
    st.integers(1, 300),
    st.integers(0, 40),
    st.integers(0, 3),
)
def test_paint_equals_its_formula_in_unbounded_integers(mul, add, mod, size, shift):
    expected = [(((i * mul + add) % mod) - 7) * 2**shift for i in range(size)]
    assert paint(recipe(mul, add, mod, 7, shift), "int64", (size,)).tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("int8", recipe(mod=200)),
        ("uint8", recipe(sub=1)),
        ("float16", recipe(mod=5000)),
        ("bfloat16", recipe(mod=400)),
        ("bool", recipe(mod=3)),
        ("int32", recipe(shift=-1)),
        ("float32", recipe(shift=-160)),
    ],
)
def test_paint_refuses_what_would_round(dtype, bad):
    with pytest.raises(VectorError, match="paint"):
        paint(bad, dtype, (4500,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_bits_round_trip(dtype, shape, tmp_path):
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    data = bytes(range(1, size + 1)) if dtype != "bool" else b"\1" * size
    array = np.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)
    found = decode(encode(array), tmp_path)
    assert found.tobytes() == data
    assert (found.dtype, found.shape) == (array.dtype, shape)
    assert found.flags.writeable


def test_bfloat16_bits_known_answer(tmp_path):
    array = np.array([1.0, -2.0, np.inf, -0.0], dtype=ml_dtypes.bfloat16)
    assert encode(array)["bits"] == "803f00c0807f0080"
    assert decode(encode(array), tmp_path).view(np.uint16).tolist() == [0x3F80, 0xC000, 0x7F80, 0x8000]


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1 + 2**-8, 0x3F80),  # halfway: to even
        (1 + 2**-8 + 2**-40, 0x3F81),  # just above halfway, but halfway after a first rounding to float32
        (1 + 3 * 2**-8 - 2**-40, 0x3F81),  # just below halfway
        (1 + 3 * 2**-8, 0x3F82),
        (-(1 + 2**-8 + 2**-40), 0xBF81),
        (2.0**-134, 0x0000),  # half the smallest subnormal: to even
        (2.0**-134 + 2.0**-180, 0x0001),
        (3.4e38, 0x7F80),
        (1e300, 0x7F80),
        (-0.0, 0x8000),
    ],
)
def test_bfloat16_is_rounded_once(value, bits):
    assert int(round_to(np.array(value), DTYPES["bfloat16"]).view(np.uint16)) == bits


def test_digest_known_answer():
    array = np.array([[1, 2]], dtype=np.int16)
    assert digest(array) == hashlib.sha256(b"int16[1,2]\n\x01\x00\x02\x00").hexdigest()


def test_digest_sees_dtype_shape_and_signed_zero_but_one_nan():
    zeros = np.zeros(4, dtype=np.float32)
    others = [zeros.astype(np.int32), zeros.reshape(2, 2), -zeros]
    assert digest(zeros) not in {digest(other) for other in others}
    nans = np.array([0x7FC00000, 0xFFC12345], dtype=np.uint32).view(np.float32)
    assert digest(nans[:1]) == digest(nans[1:])


def test_file_round_trip_is_stable(tmp_path):
    tensors = {
        "b": np.arange(3).astype(ml_dtypes.bfloat16),
        "a": np.array(2**63, dtype=np.uint64),
        "c": np.ones((2, 0)),
    }
    for name in ("one", "two"):
        write_tensors(tmp_path / f"{name}.safetensors", tensors)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    found = read_tensors(tmp_path / "one.safetensors")
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in tensors.items()
    }
    spec = {"dtype": "bfloat16", "shape": [3], "file": {"path": "one.safetensors", "key": "b"}}
    assert decode(spec, tmp_path).tolist() == [0, 1, 2]


def test_file_errors(tmp_path):
    with_metadata = safetensors.numpy.save({"a": np.zeros(1)}, metadata={"k": "v"})
    (tmp_path / "meta.safetensors").write_bytes(with_metadata)
    (tmp_path / "short.safetensors").write_bytes(with_metadata[:-3])
    write_tensors(tmp_path / "good.safetensors", {"a": np.zeros(1)})
    for path, message in [("meta", "__metadata__"), ("short", "short"), ("none", "none")]:
        with pytest.raises(VectorError, match=message):
            read_tensors(tmp_path / f"{path}.safetensors")
    for key, shape, message in [("z", [1], "no tensor"), ("a", [2], "expected")]:
        spec = {"dtype": "float64", "shape": shape, "file": {"path": "good.safetensors", "key": key}}
        with pytest.raises(VectorError, match=message):
            decode(spec, tmp_path)


@pytest.mark.parametrize("bits", ["00", "0000000g", "0000803F", "00" * 1025])
def test_bad_bits_are_refused(bits, tmp_path):
    with pytest.raises(VectorError):
        decode({"dtype": "float32", "shape": [1], "bits": bits}, tmp_path)


def test_a_bool_is_zero_or_one(tmp_path):
    with pytest.raises(VectorError, match="bool"):
        decode({"dtype": "bool", "shape": [1], "bits": "02"}, tmp_path)


def test_too_much_inline():
    encode(np.zeros(128))
    with pytest.raises(VectorError, match="1024"):
        encode(np.zeros(129))


def test_encodings_are_json():
    assert json.loads(json.dumps(encode(np.zeros((2, 1), dtype=np.int8)))) == {
        "dtype": "int8",
        "shape": [2, 1],
        "bits": "0000",
    }
