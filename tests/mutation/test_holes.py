"""What random mutations of the suite's own files survived (``run.py``), noticed from now on."""

import hashlib
import struct

import numpy as np
import pytest

from walsh.suite.guard import GuardedOutput, WatchedInputs
from walsh.suite.tensors import DTYPES, digest, round_to
from walsh.suite.vectors import Output, decode_params


def test_guard_zones_are_two_rows_wide():
    for width, rows in ((3, 2), (1000, 4)):
        output = GuardedOutput(Output("float32", (rows, width)), 0)
        zones = output._buffer.nbytes - 4 * rows * width
        assert zones >= 2 * 2 * 4 * width
        assert zones >= 2 * 256


def test_the_nearest_element_before_the_start_is_named():
    output = GuardedOutput(Output("float32", (2, 2)), 0)
    start = output.array.ctypes.data - output._buffer.ctypes.data
    for element in (2, 3):
        output._buffer[start - 4 * element : start - 4 * element + 4] = 0
    assert output.overrun() == "2 element(s) before its start"


def test_bits_of_a_byte_string_stay_in_their_place():
    string = np.array([1, 2, 3, 4], dtype=np.uint8)
    assert not WatchedInputs({"mask": string.copy()}, strided=False).disguise()
    packed = WatchedInputs({"w": np.array([[1, 2], [3, 4]], dtype=np.uint8)}, strided=False)
    assert packed.disguise()
    assert packed.arrays["w"].tolist() == [[3, 4], [1, 2]]
    single = WatchedInputs({"w": np.array([[1, 2]], dtype=np.uint8)}, strided=False)
    assert not single.disguise()


def test_float64_keeps_all_its_bits():
    assert round_to(np.array([1 / 3]), DTYPES["float64"])[0] == 1 / 3
    assert round_to(np.array([1 / 3]), DTYPES["float32"])[0] == np.float32(1 / 3)


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_every_nan_has_one_digest(bits):
    array = np.array([bits, 0x3F800000], dtype=np.uint32).view(np.float32)
    expected = hashlib.sha256(b"float32[2]\n" + struct.pack("<II", 0x7FC00000, 0x3F800000)).hexdigest()
    assert digest(array) == expected


def test_special_numbers_of_params_keep_their_sign():
    found = decode_params({"call": "sample", "a": "inf", "b": "-inf", "c": "nan"})
    assert (found["a"], found["b"]) == (np.inf, -np.inf)
    assert np.isnan(found["c"])
