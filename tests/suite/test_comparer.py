"""The comparer, on arrays whose verdict is known."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from walsh.errors import VectorError
from walsh.suite.comparer import Budget, compare, gamma, histogram, ulp_distance, unit_roundoff
from walsh.suite.tensors import encode
from walsh.suite.vectors import Expected, Output

NAN, INF = np.nan, np.inf


def f32(*values):
    return np.array(values, dtype=np.float32)


def check(actual, expected, rule="bits", dtype=None, budget=Budget(), **more):  # noqa: B008  # immutable
    actual = np.asarray(actual)
    spec = {**encode(np.asarray(expected)), "compare": {"rule": rule, **more}}
    output = Output(dtype or actual.dtype.name, np.asarray(expected).shape)
    return compare("y", actual, output, Expected(spec, Path()), budget)


def bound(actual, expected, magnitude=1.0, terms=1, share=1.0):
    more = {"magnitude": encode(np.array(magnitude)), "terms": terms, "unit": "float32"}
    return check(actual, np.array(expected, dtype=np.float64), "bound", budget=Budget(share=share), **more)


def ulp(actual, expected, budget=0.0):
    return check(actual, np.array(expected, dtype=np.float64), "ulp", budget=Budget(ulp=budget))


@pytest.mark.parametrize("judge", [lambda a, e: check(a, e), bound, lambda a, e: ulp(a, e, 2**40)])
@pytest.mark.parametrize(
    ("actual", "expected", "passed"),
    [
        (NAN, 1.0, False),
        (1.0, NAN, False),
        (NAN, NAN, True),
        (INF, INF, True),
        (-INF, INF, False),
        (INF, -INF, False),
        (INF, 3.0e38, False),
        (3.0e38, INF, False),
        (NAN, INF, False),
        (INF, NAN, False),
    ],
)
def test_special_values_under_every_rule(judge, actual, expected, passed):
    found = judge(f32(0.0, actual), f32(0.0, expected))
    assert found.passed is passed
    assert passed or (found.index == (1,) and found.wrong == 1)


def test_nan_payload_and_sign_do_not_matter():
    odd = np.array([0xFFC12345], dtype=np.uint32).view(np.float32)
    assert check(odd, f32(NAN)).passed


def test_signed_zero_matters_to_the_bit_only():
    assert not check(f32(-0.0), f32(0.0)).passed
    assert not check(f32(0.0), f32(-0.0)).passed
    assert ulp(f32(-0.0), [0.0]).passed
    assert bound(f32(-0.0), [0.0]).passed


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8", "int64", "uint64", "bool"])
def test_one_flipped_bit_is_seen(dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    expected = np.ones(5, dtype=kind)
    actual = expected.copy()
    actual.view(f"u{kind.itemsize}")[3] ^= 1
    found = check(actual, expected)
    assert (found.passed, found.wrong, found.index) == (False, 1, (3,))


def test_one_bad_element_in_a_million(tmp_path):
    from walsh.suite.tensors import write_tensors

    exact = np.linspace(1, 2, 1_000_000).reshape(1000, 1000)
    write_tensors(tmp_path / "t.safetensors", {"y": exact})
    spec = {"dtype": "float64", "shape": [1000, 1000], "file": {"path": "t.safetensors", "key": "y"}}
    actual = exact.astype(np.float32)
    output = Output("float32", (1000, 1000))
    magnitude = {"magnitude": encode(np.array(2.0)), "terms": 1, "unit": "float32"}
    for rule in ({"rule": "ulp"}, {"rule": "bound", **magnitude}):
        expected = Expected({**spec, "compare": rule}, tmp_path)
        assert compare("y", actual, output, expected, Budget(ulp=1)).passed
        wrong = actual.copy()
        wrong[613, 7] *= np.float32(1 + 2.0**-20)
        found = compare("y", wrong, output, expected, Budget(ulp=1))
        assert (found.passed, found.wrong, found.index) == (False, 1, (613, 7))


def test_exactly_at_an_ulp_budget_and_one_above():
    three_up = np.array([0x3F800003], dtype=np.uint32).view(np.float32)
    assert ulp(three_up, [1.0], 3).passed
    found = ulp(three_up, [1.0], 2)
    assert not found.passed
    assert (found.error, found.budget, found.ulp, found.share) == (3, 2, 3, 1.5)


def test_exactly_at_a_bound_and_one_ulp_above():
    # terms 0 leave u |expected| + eta: half an ULP of 1, and less than that only from below a power of two.
    at = 1 + 2.0**-24
    assert bound(f32(1.0), [at], magnitude=0.0, terms=0).passed
    # gamma_K * magnitude exactly 3 * 2^-23, so that the allowance ends on a float32.
    magnitude = (3 * 2.0**-23 - 2.0**-24 - 2.0**-150) / gamma(1, "float32")
    ups = np.array([0x3F800000 + n for n in range(6)], dtype=np.uint32).view(np.float32)
    passed = [bound(ups[n : n + 1], [1.0], magnitude=magnitude * (1 + 2**-40)).passed for n in range(6)]
    assert passed == [True, True, True, True, False, False]


SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


@pytest.mark.parametrize("dtype", SMALLEST)
def test_half_of_the_smallest_subnormal_is_allowed_and_no_more(dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    zero, tiny = np.zeros(1, dtype=kind), np.array([SMALLEST[dtype]], dtype=np.float64).astype(kind)
    assert float(tiny[0]) == SMALLEST[dtype]
    assert bound(zero, [0.0], magnitude=0.0, terms=0).budget == SMALLEST[dtype] / 2
    assert not bound(tiny, [0.0], magnitude=0.0, terms=0).passed
    if dtype != "float64":  # half of float64's smallest number is no float64
        assert bound(zero, [SMALLEST[dtype] / 2], magnitude=0.0, terms=0).passed
        assert bound(tiny, [SMALLEST[dtype] / 2], magnitude=0.0, terms=0).passed


@pytest.mark.parametrize(("dtype", "bits"), [("float64", 53), ("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_one_rounding_to_the_output_is_allowed(dtype, bits):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = bound(np.ones(1, dtype=kind), [1.0], magnitude=0.0, terms=0)
    assert found.budget == pytest.approx(2.0**-bits + SMALLEST[dtype] / 2, rel=1e-6)


def test_share_narrows_the_bound():
    up = np.array([0x3F800001], dtype=np.uint32).view(np.float32)
    assert bound(up, [1.0], magnitude=2.0, share=1.0).passed
    assert not bound(up, [1.0], magnitude=2.0, share=0.5).passed


def test_bound_formula():
    error = 2.0**-20
    found = bound(f32(1 + error), [1.0], magnitude=100.0, terms=10)
    allowed = gamma(10, "float32") * 100 + 2.0**-24 + 2.0**-150
    assert found.error == error
    assert found.budget == pytest.approx(allowed, rel=1e-12)
    assert found.share == pytest.approx(error / allowed, rel=1e-12)


def test_a_tiny_result_may_round_to_a_subnormal():
    tiny = np.array([2.0**-24], dtype=np.float16)
    found = check(tiny, np.array([1.4 * 2.0**-24]), "bound", magnitude=encode(np.array(0.0)), terms=0, unit="float32")
    assert found.passed


def test_a_bound_that_allows_everything_is_refused():
    for magnitude, terms in [(INF, 1), (NAN, 1), (-1.0, 1), (1.0, 2**24)]:
        with pytest.raises(VectorError, match="bound"):
            bound(f32(1.0), [1.0], magnitude=magnitude, terms=terms)


def test_gamma_and_roundoff_known_answers():
    assert unit_roundoff("float32") == 2.0**-24
    assert [unit_roundoff(d) for d in ("float64", "float16", "bfloat16")] == [2.0**-53, 2.0**-11, 2.0**-8]
    assert gamma(4, "bfloat16") == (4 / 256) / (1 - 4 / 256)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_ulp_distance_walks_the_number_line(dtype):
    width = np.dtype(dtype).itemsize
    bits = np.array([0, 1, 5, 1 << (8 * width - 1), (1 << (8 * width - 1)) + 2], dtype=f"u{width}")
    values = bits.view(dtype)
    assert ulp_distance(values, values[1:2].repeat(5)).tolist() == [1, 0, 4, 1, 3]


def test_ulp_distance_across_the_whole_line():
    largest = np.finfo(np.float64).max
    assert ulp_distance(np.array([largest]), np.array([-largest]))[0] == 2 * float(0x7FEFFFFFFFFFFFFF)


def test_histogram_known_answer():
    distance = np.array([0, 0, 1, 2, 3, 4, 5, 9, 2000, 2.0**30, INF])
    assert histogram(distance) == {
        "0": 2, "1": 1, "2": 1, "3-4": 2, "5-8": 1, "9-16": 1, "1025-1048576": 1, ">1048576": 1, "nan/inf": 1
    }  # fmt: skip
    assert sum(histogram(distance).values()) == distance.size


def test_wrong_shape_or_dtype():
    expected = f32(1, 2)
    assert not check(f32(1, 2, 3), expected).passed
    assert "float64" in check(np.ones(2), expected, dtype="float32").message


def test_choice():
    preferred, other = np.array([1, 2], dtype=np.int8), np.array([1, 3], dtype=np.int8)
    more = {"alternatives": [encode(other)]}
    assert check(preferred, preferred, "choice", **more).note == ""
    taken = check(other, preferred, "choice", **more)
    assert taken.passed
    assert "alternative 1 of 1" in taken.note
    assert not check(other, preferred, "choice", budget=Budget(preferred=True), **more).passed
    neither = check(np.array([1, 4], dtype=np.int8), preferred, "choice", **more)
    assert not neither.passed
    assert neither.index == (1,)


def test_digest_rule():
    from walsh.suite.tensors import digest

    y = f32(1, 2)
    spec = {"dtype": "float32", "shape": [2], "digest": digest(y), "compare": {"rule": "bits"}}
    assert compare("y", y, Output("float32", (2,)), Expected(spec, Path()), Budget()).passed
    assert not compare("y", f32(1, 3), Output("float32", (2,)), Expected(spec, Path()), Budget()).passed


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_scalars_and_empty_tensors(shape):
    zeros = np.zeros(shape, dtype=np.float32)
    assert check(zeros, zeros).passed
    assert ulp(zeros, np.zeros(shape)).passed
    assert bound(zeros, np.zeros(shape)).passed
    if zeros.size:
        assert check(zeros + 1, zeros).index == ()
        assert ulp(zeros + 1, np.zeros(shape)).index == ()


@pytest.mark.parametrize(
    ("distance", "label"),
    [(0, "0"), (1, "1"), (2, "2"), (3, "3-4"), (4, "3-4"), (5, "5-8"), (9, "9-16"), (16, "9-16"), (17, "17-64"),
     (65, "65-1024"), (1025, "1025-1048576"), (2**20, "1025-1048576"), (2**20 + 1, ">1048576"), (np.inf, "nan/inf")],
)  # fmt: skip  # a table
def test_every_distance_has_its_bin(distance, label):
    assert histogram(np.array([distance], dtype=np.float64)) == {label: 1}


def test_no_error_takes_no_share_of_a_budget_of_nothing():
    assert Budget().share == 1.0
    assert ulp(f32(1.0), [1.0]).share == 0.0
    assert bound(f32(2.0), [2.0], magnitude=0.0).share == 0.0


def test_the_worst_place_is_told_among_right_ones():
    found = ulp(f32(1.0, 1.0, 1.0 + 2**-23, 1.0 + 2**-22), [1.0, 1.0, 1.0, 1.0], budget=0.5)
    assert list(found.index) == [3]
    assert found.ulp == 2
