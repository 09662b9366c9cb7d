"""The committed vectors: regenerated, complete, reaching, and such that every input matters."""

import hashlib
import json
from collections import Counter, defaultdict
from fnmatch import fnmatchcase

import numpy as np
import pytest

from walsh.errors import VectorError
from walsh.reference import bitmask_decode, bitmask_encode
from walsh.suite.catalog import CALLS, LANES, OPS
from walsh.suite.generate import generate, groups
from walsh.suite.generate.build import Flag, Group
from walsh.suite.generate.evaluate import evaluate
from walsh.suite.generate.grids import GRIDS, accumulator, reach
from walsh.suite.generate.numbers import Draw, fnv1a, splitmix64, unit
from walsh.suite.schema import locate_data
from walsh.suite.tensors import MAX_INLINE, is_float
from walsh.suite.vectors import SMOKE, ExpectedError, load_suite

ROOT = locate_data()

LANES_OF = {
    "ternary": "exact rounded choice gradient invalid",
    "activations": "exact rounded strict choice gradient invalid",
    "cayley_dickson": "exact rounded strict choice gradient invalid",
    "hadamard": "exact rounded strict choice gradient invalid",
    "head_mixer": "exact rounded strict gradient invalid",
    "rms_norm": "exact rounded strict gradient invalid",
    "rope": "exact rounded transcendental strict gradient invalid",
    "attention": "exact rounded strict gradient invalid",
    "kv_cache": "exact rounded strict invalid",
    "swiglu": "exact rounded transcendental strict gradient invalid",
    "embedding": "exact rounded strict gradient invalid",
    "cross_entropy": "exact rounded transcendental gradient invalid",
    "sampling": "exact strict invalid",
    "bitmask": "exact invalid",
    "forward": "strict gradient invalid end_to_end",
}
"""Lanes that apply to each op."""


@pytest.fixture(scope="module")
def cases():
    return load_suite(ROOT).cases


@pytest.fixture(scope="module")
def arrays(cases):
    return {case.name: case.load_inputs() for case in cases}


def settings(case):
    return {key: value for key, value in case.params.items() if key != "call"}


def test_regenerated_equals_committed():
    summary = generate(ROOT, check=True)
    assert summary.total >= 1800
    assert summary.size < 10 * 2**20


def test_an_edit_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("walsh.suite.generate.OPS", ("bitmask",))
    generate(tmp_path)
    assert generate(tmp_path, check=True).ops["bitmask"] > 50
    path = tmp_path / "vectors/bitmask/exact-encode.json"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"row-major", b"row-minor", 1))
    with pytest.raises(VectorError, match=r"bitmask/exact-encode\.json: differs"):
        generate(tmp_path, check=True)
    path.unlink()
    with pytest.raises(VectorError, match=r"exact-encode\.json: not committed"):
        generate(tmp_path, check=True)


def test_only_last_bits_of_float64_may_differ(tmp_path, monkeypatch):
    monkeypatch.setattr("walsh.suite.generate.OPS", ("rope",))
    generate(tmp_path)
    path = tmp_path / "vectors/rope/rounded.json"
    document = json.loads(path.read_bytes())
    result = document["tests"][0]["result"]["y"]
    values = np.frombuffer(bytes.fromhex(result["bits"]))
    for factor, same in ((1 + 2.0**-50, True), (1 + 2.0**-30, False)):
        result["bits"] = (values * factor).tobytes().hex()
        path.write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")
        if same:
            generate(tmp_path, check=True)
        else:
            with pytest.raises(VectorError, match=r"rounded\.json"):
                generate(tmp_path, check=True)


def test_every_call_has_vectors(cases):
    accepted = {case.call.name for case in cases if case.lane != "invalid"}
    assert accepted == set(CALLS)


def test_every_function_refuses_something(cases):
    refusing = {case.call.function for case in cases if case.lane == "invalid"}
    # `uniform` takes any integers.
    assert {call.function for call in CALLS.values()} - refusing == {"uniform"}


def test_every_lane_that_applies(cases):
    assert set(LANES_OF) == set(OPS)
    found = defaultdict(set)
    for case in cases:
        found[case.op].add(case.lane)
    assert {op: sorted(lanes) for op, lanes in found.items()} == {op: sorted(t.split()) for op, t in LANES_OF.items()}
    assert {lane for lanes in found.values() for lane in lanes} == set(LANES)


def test_floors(cases):
    counts = Counter((case.op, case.lane) for case in cases)
    assert min(Counter(case.op for case in cases).values()) >= 50
    least = {"exact": 5, "rounded": 10, "strict": 8, "gradient": 5, "invalid": 7, "transcendental": 7, "end_to_end": 20}
    assert {key: n for key, n in counts.items() if n < least.get(key[1], 1)} == {}


def test_smoke_cases_span_the_ops(cases):
    smoke = [case for case in cases if SMOKE in case.flags]
    assert 10 <= len(smoke) <= 30
    assert len({case.op for case in smoke}) >= 12


def test_files_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "vectors").rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 10 * 2**20
    assert max(sizes.values()) < 2**20


def test_no_two_cases_are_the_same(cases, arrays):
    seen = {}
    for case in cases:
        content = hashlib.sha256(json.dumps([case.call.name, case.params], sort_keys=True).encode())
        for name, array in arrays[case.name].items():
            content.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        key = content.hexdigest()
        assert key not in seen, f"{case.name} repeats {seen[key]}"
        seen[key] = case.name


def test_dtypes(cases, arrays):
    found = defaultdict(set)
    for case in cases:
        if case.lane != "invalid" and case.call.kind != "strict":
            found[case.call.name] |= {a.dtype.name for a in arrays[case.name].values() if is_float(a.dtype)}
    wide = {name for name, dtypes in found.items() if dtypes >= {"float32", "float64", "bfloat16", "float16"}}
    # Whole models keep to the two dtypes in which layers may be composed without a rounding in between.
    assert {name for name, dtypes in found.items() if dtypes and name not in wide} == {
        "forward",
        "forward.backward",
        "sample",
    }


REACHING = {"float32": 2.0**23, "float64": 2.0**45}


def test_accumulations_come_close_to_what_is_exact(cases, arrays):
    best = defaultdict(float)
    for case in cases:
        inputs = arrays[case.name]
        # Sums of int8 activations are integers, whose scale comes afterwards.
        if case.lane == "exact" and case.call.name in GRIDS and "x_scale" not in inputs:
            dtypes = {array.dtype.name for array in inputs.values() if is_float(array.dtype)}
            units = {}
            if all("float" in output.dtype for output in case.outputs.values()):
                units = reach(case.call.name, settings(case), inputs)
            for dtype in dtypes if units else ():
                best[case.call.name, dtype] = max(best[case.call.name, dtype], *units.values())
            largest = max((size for size in units.values() if np.isfinite(size)), default=0)
            if "unlike_rows" not in case.flags:
                assert largest <= (2.0**53 if accumulator(inputs) == "float64" else 2.0**24), case.name
    for call in ("cayley_dickson_linear", "hadamard_transform", "hadamard_linear", "head_mixer", "lm_head"):
        for dtype in ("float32", "float64", "bfloat16", "float16"):
            assert best[call, dtype] >= REACHING.get(dtype, 2.0**23), (call, dtype)
    for dtype in ("float32", "float64"):
        assert best["hash_embedding", dtype] >= REACHING[dtype]


def test_int32_results_pass_what_float32_holds(cases, arrays):
    largest = defaultdict(int)
    for case in cases:
        if case.lane == "exact" and case.outputs.get("y") and case.outputs["y"].dtype == "int32":
            y = evaluate(case.call, settings(case), arrays[case.name])["y"].astype(np.int64)
            largest[case.call.name] = max(largest[case.call.name], int(np.abs(y[y % 2 == 1]).max(initial=0)))
    assert min(largest["cayley_dickson_linear"], largest["hadamard_transform"]) > 2**24


def test_no_exact_zero_of_ambiguous_sign(cases):
    """Rule bits tells +0 from -0; a sum whose order is free must not end in a zero of the definition's choice."""
    signed = ("cayley_dickson_linear", "cayley_dickson_bit_linear")
    for case in cases:
        if case.lane == "exact" and case.call.function in signed and case.call.kind == "ordinary":
            for expected in case.expected.values():
                if expected.digest is None and expected.spec["dtype"].startswith(("float", "bfloat")):
                    assert (expected.value() != 0).all(), case.name


STRUCTURAL = {
    ("hadamard_transform.backward", "x"): "the transform is linear",
    ("rope.backward", "x"): "the rotation is linear",
    ("embedding.backward", "table"): "a copy is linear",
    ("fake_quantize_activations.backward", "x"): "straight-through",
    ("ternary_ste.backward", "w"): "straight-through; only a clip looks at w, in the cases named clip",
}
"""Arguments without influence in any case, which the signature asks for."""

EXEMPT = [
    ("*", "*", "empty_batch", "no rows, no influence"),
    ("*/all-ignored", "*", "ignored_target", "no target counts: the loss is 0 whatever the rest"),
    ("attention/exact/uniform-*", "k", None, "q is 0: all scores are 0"),
    ("attention/*one-key*", "[qkv]", None, "softmax of one score is 1, and its gradient 0"),
    ("attention/exact/first-key", "[qk]", None, "softmax of one score is 1"),
    ("bitmask/exact-decode/n1", "mask", None, "no other mask has as many ones"),
    ("bitmask/exact-decode/zeros", "mask", None, "no other mask has as many ones"),
    ("bitmask/exact-decode/all-*", "mask", None, "no other mask has as many ones"),
    (
        "cayley_dickson/exact-linear/unlike-rows",
        "*",
        None,
        "one feature of three tokens is not 0, so that sums stay exact",
    ),
    ("attention/strict/1x1x1x1x1", "[qk]", None, "softmax of one score is 1"),
    ("cayley_dickson/rounded-bit-linear/below-epsilon", "*", None, "all codes are 0, which is what is tried"),
    ("cross_entropy/*uniform*", "*", None, "equal logits stay equal, and so do all targets"),
    ("cross_entropy/rounded/one-class", "*", None, "log softmax of one class is 0"),
    ("cross_entropy/rounded/nan", "*", None, "NaN in, NaN out"),
    ("embedding/exact-embedding/one-row", "ids", None, "there is one id"),
    ("embedding/strict-embedding/1x1", "ids", None, "there is one id"),
    ("forward/*/one-token", "*w[qk]*", None, "softmax of one score is 1"),
    ("forward/*/one-token", "*inv_freq", None, "position 0 is not rotated"),
    ("rope/strict/1x1x2", "inv_freq", None, "position 0 is not rotated"),
    ("kv_cache/exact/count-0", "[kv].b", None, "none of it is added, which is what is tried"),
    ("kv_cache/exact/reset-all", "[kv].a", None, "forgotten, which is what is tried"),
    ("kv_cache/*/one-by-one*", "q.c", None, "softmax of one score is 1"),
    ("sampling/strict-filters/top-*", "*", None, "one candidate is left, or the same one is drawn"),
    ("sampling/strict-filters/exact-p-*", "*", None, "all logits are equal; one candidate may be left"),
    ("sampling/strict-*/one-id", "*", None, "there is one id"),
    ("sampling/strict-sample/ties", "logits", None, "equal logits stay equal"),
    ("sampling/strict-sample/on-the-border", "logits", None, "equal logits stay equal"),
    ("sampling/strict-sample/vanishing", "[ps]*", None, "all other probabilities are 0, which is what is tried"),
    ("sampling/strict-sample/v1", "*", None, "there is one id"),
]
"""(case, input, flag the case must carry, reason)."""

SAMPLED = {"generate.strict": "64 evaluations for each weight; forward.strict has the same models, weight by weight"}


def variants(case, name, array):
    """Other values of an input; some must be valid and change the result."""
    if array.dtype.kind not in "iu":
        wide = array.astype(np.float64)
        changed = [wide * 2, wide * -3 + 1, wide + 7, np.full(wide.shape, 0.25), np.full(wide.shape, 1.0)]
        return [value.astype(array.dtype) for value in changed]
    if array.dtype == np.uint8 and name in ("w", "packed"):
        # Padding codes stay what they are: only the first code of each byte is moved on.
        first = array & 3
        return [(array & 0xFC) | (first + 1) % 3]
    if name == "mask":
        q = bitmask_decode(array, case.load_inputs()["signs"], case.params["shape"])
        return [bitmask_encode(np.flip(q))[0], bitmask_encode(np.roll(q, 1))[0]]
    if array.dtype == np.uint8:
        return [array ^ np.uint8(1), array * 0]
    return [array + 1, array - 1, -array, array * 0, np.roll(array, 1)] if array.dtype != np.uint64 else [array - 7]


def differs(case, base, inputs):
    try:
        with np.errstate(all="ignore"):
            changed = evaluate(case.call, settings(case), inputs)
    except Exception:
        return False  # a refusal proves nothing about the values
    return any(not np.array_equal(changed[key], base[key], equal_nan=is_float(base[key].dtype)) for key in base)


def exempt(case, name):
    if (case.call.name, name) in STRUCTURAL:
        return True
    return any(
        fnmatchcase(case.name, pattern) and fnmatchcase(name, inputs) and (flag is None or flag in case.flags)
        for pattern, inputs, flag, _ in EXEMPT
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # changed inputs may overflow, which is no matter here
def test_every_input_matters(cases, arrays):
    inert = []
    for case in cases:
        if case.lane == "invalid" or case.call.name in SAMPLED or "large" in case.flags:
            continue
        inputs = arrays[case.name]
        base = evaluate(case.call, settings(case), inputs)
        for name, array in inputs.items():
            if array.size and not exempt(case, name):
                tried = variants(case, name, array)
                if not any(differs(case, base, {**inputs, name: value}) for value in tried):
                    inert.append(f"{case.name}: {name}")
    assert inert == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # as above
def test_every_element_matters_where_sums_are_exact(cases, arrays):
    """An element without influence is one that a wrong index could miss unseen."""
    inert, tried = [], 0
    for case in cases:
        if case.lane not in ("exact", "gradient") or case.call.name not in GRIDS or "float" not in str(case.outputs):
            continue
        inputs = arrays[case.name]
        finite = all(np.isfinite(array.astype(np.float64)).all() for array in inputs.values())
        if not finite or sum(array.size for array in inputs.values()) > 200:
            continue
        base = evaluate(case.call, settings(case), inputs)
        for name, array in inputs.items():
            if not is_float(array.dtype) or exempt(case, name) or "bit_linear" in case.call.name:
                continue
            for i in range(array.size):
                other = array.copy()
                other.flat[i] = array.flat[i] * 2 + 1
                tried += 1
                if array.flat[i] != -1 and not differs(case, base, {**inputs, name: other}):
                    inert.append(f"{case.name}: {name}.flat[{i}]")
    assert tried > 3000
    assert inert == []


def test_exemptions_are_used(cases):
    for pattern, _, flag, _ in EXEMPT:
        assert any(fnmatchcase(case.name, pattern) and (flag is None or flag in case.flags) for case in cases), pattern
    assert {call for call, _ in STRUCTURAL} <= set(CALLS)


def test_large_cases_are_flagged(cases, arrays):
    for case in cases:
        if sum(array.size for array in arrays[case.name].values()) > 2**17:
            assert "large" in case.flags, case.name


def test_inline_data_is_small(cases):
    for case in cases:
        for spec in case.inputs.values():
            assert len(spec.get("bits", "")) <= 2 * MAX_INLINE


def test_notes_explain_flags(cases):
    described = {}
    for case in cases:
        for note in case.notes:
            assert described.setdefault(note.flag, note) == note, f"flag {note.flag} is described in two ways"
            assert len(note.description) > 20
    assert len(described) >= 40


def test_expected_errors_cover_the_classes(cases):
    classes = {case.expected.error for case in cases if isinstance(case.expected, ExpectedError)}
    assert classes == {
        "FormatError",
        "ShapeError",
        "DTypeError",
        "NonFiniteError",
        "ParameterError",
        "RangeError",
        "StrictError",
        "CapacityError",
    }


def test_drawn_words_are_splitmix64():
    """First outputs of splitmix64 from state 1234567 (the sequence that Vigna's reference code prints)."""
    steps = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1234567)
    assert splitmix64(steps).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert fnv1a("a") == 0xAF63DC4C8601EC8C


def test_grid_units():
    assert unit(np.array([0.75, -6.0])) == 0.25
    assert unit(np.array([0, 12, -4])) == 4.0
    assert unit(np.zeros(3)) == 1.0
    assert unit(np.array([2.0**-149], dtype=np.float32)) == 2.0**-149


def _group(lane="exact"):
    return Group("cayley_dickson", "toy", lane, "cayley_dickson_linear")


def test_a_sum_that_could_round_is_refused():
    x = np.array([[2.0**24, 1.0]], dtype=np.float32)
    with pytest.raises(VectorError, match="grid units"):
        _group().add("case", "too large", {"x": x, "w": np.ones((1, 1, 2), dtype=np.float32)})


def test_an_ambiguous_zero_is_refused():
    x = np.array([[1.0, -1.0]], dtype=np.float32)
    with pytest.raises(VectorError, match="ambiguous sign"):
        _group().add("case", "cancels", {"x": x, "w": np.ones((1, 1, 2), dtype=np.float32)})


def test_a_refusal_must_be_the_expected_one():
    x, w = np.ones((1, 3), dtype=np.float32), np.ones((1, 1, 2), dtype=np.float32)
    with pytest.raises(VectorError, match="expected RangeError"):
        _group("invalid").add("case", "features", {"x": x, "w": w}, error="RangeError")
    with pytest.raises(VectorError, match="accepts"):
        _group("invalid").add("case", "sound", {"x": x[:, :2], "w": w}, error="ShapeError")


def test_flags_bring_their_notes():
    group = _group()
    flag = Flag("toy", "a toy bug", "It is only a toy.", ("https://example.org",))
    w = np.ones((1, 1, 1), dtype=np.float32)
    group.add("case", "one product", {"x": np.ones((1, 1), dtype=np.float32), "w": w}, flags=[flag, "smoke"])
    document = group.document()
    assert document["notes"] == {
        "toy": {"bug": "a toy bug", "description": "It is only a toy.", "links": ["https://example.org"]}
    }
    assert document["tests"][0]["flags"] == ["toy", "smoke"]


def test_a_search_ends_at_the_first_that_is_accepted():
    draw = Draw("label")
    found = draw.search(lambda d: d.integers("x", (1,), 0, 99), lambda x: bool(x[0] > 90))
    assert found[0] > 90
    with pytest.raises(VectorError, match="none of 3"):
        draw.search(lambda d: d.integers("x", (1,), 0, 9), lambda x: bool(x[0] > 90), tries=3)


def test_every_op_has_a_module():
    for op in OPS:
        assert all(group.op == op for group in groups(op))
