"""Data that cannot be trusted is refused."""

import json

import numpy as np
import pytest

from walsh.errors import VectorError
from walsh.suite.schema import check, dump_canonical, load_canonical
from walsh.suite.tensors import encode, write_tensors
from walsh.suite.vectors import MIN_CASES, decode_params, load_suite, write_group, write_manifest


def load(root):
    return load_suite(root, min_cases=1)


def test_a_good_suite_loads(small):
    suite = load(small)
    assert [case.name for case in suite.cases] == [
        "hadamard/exact/case-0",
        "hadamard/exact/case-1",
        "hadamard/exact/case-2",
        "hadamard/invalid/three",
    ]
    assert suite.cases[0].load_inputs()["x"].tolist() == [[0, 3], [6, 9], [12, 15]]
    assert suite.cases[1].notes[0].bug == "swapped halves"
    assert load(small).digest == suite.digest


def test_the_code_has_a_floor_of_its_own(small, full):
    assert MIN_CASES == 400
    with pytest.raises(VectorError, match="4 cases, expected at least 400"):
        load_suite(small)


def test_enough_cases_load(full):
    assert len(load_suite(full).cases) == 401


def test_one_edited_byte(small):
    path = small / "vectors/hadamard/exact.json"
    data = bytearray(path.read_bytes())
    data[data.index(b"sums")] ^= 1
    path.write_bytes(data)
    with pytest.raises(VectorError, match="edited"):
        load(small)


def test_a_deleted_file(small):
    (small / "vectors/hadamard/invalid.json").unlink()
    with pytest.raises(VectorError, match="incomplete"):
        load(small)


def test_an_unlisted_file(small):
    (small / "vectors/hadamard/more.txt").write_text("")
    with pytest.raises(VectorError, match="not in the manifest"):
        load(small)


def test_an_empty_directory(tmp_path):
    with pytest.raises(VectorError, match="manifest"):
        load(tmp_path)


def test_no_vectors_behind_a_manifest(small):
    for path in (small / "vectors/hadamard").iterdir():
        path.unlink()
    with pytest.raises(VectorError, match="incomplete"):
        load(small)


def edit_manifest(root, change):
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_bytes(dump_canonical(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["floors"].update(total=5), "at least 5"),
        (lambda m: m["floors"]["ops"].update(rope=1), "rope"),
        (lambda m: m["floors"]["lanes"].update({"hadamard/strict": 1}), "hadamard/strict"),
        (lambda m: m["files"]["vectors/hadamard/exact.json"].update(cases=9), "9"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["floors"].pop("ops"), "ops"),
        (lambda m: m["files"].pop("vectors/hadamard/invalid.json"), "not in the manifest"),
    ],
)
def test_a_manifest_that_does_not_fit(small, change, message):
    edit_manifest(small, change)
    with pytest.raises(VectorError, match=message):
        load(small)


def test_floors_do_not_sink_by_accident(small):
    (small / "vectors/hadamard/invalid.json").unlink()
    with pytest.raises(VectorError, match="lower_floors"):
        write_manifest(small)
    write_manifest(small, lower_floors=True)
    assert len(load(small).cases) == 3


def test_duplicate_ids(toys, tmp_path):
    with pytest.raises(VectorError, match="2 times"):
        write_group(tmp_path, toys.group([toys.exact_test(1), toys.exact_test(1)]))


def test_json_must_be_canonical(small):
    path = small / "vectors/hadamard/exact.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(VectorError, match="canonical"):
        write_manifest(small)


def test_canonical_json_known_answer():
    data = dump_canonical({"b": [1, 2.5], "a": {"ü": None}})
    assert data == b'{\n "a": {\n  "\\u00fc": null\n },\n "b": [\n  1,\n  2.5\n ]\n}\n'
    assert load_canonical(data, "here") == {"b": [1, 2.5], "a": {"ü": None}}
    for broken in (
        data[:-1],
        data.replace(b" ", b"  "),
        data.replace(b"\n", b"\r\n"),
        b"{",
        b'{\n "a": 1,\n "a": 1\n}\n',
    ):
        with pytest.raises(VectorError):
            load_canonical(broken, "here")
    with pytest.raises(ValueError, match="JSON compliant"):
        dump_canonical(float("nan"))


def test_no_unknown_key_anywhere(toys):
    document = toys.group([toys.exact_test(1)])
    check("vector", document, "here")

    def places(node, path=()):
        if isinstance(node, dict):
            if path[-1:] != ("params",):
                yield path
            for key, value in node.items():
                yield from places(value, (*path, key))
        elif isinstance(node, list):
            for key, value in enumerate(node):
                yield from places(value, (*path, key))

    found = list(places(document))
    assert len(found) > 8
    for path in found:
        changed = json.loads(json.dumps(document))
        node = changed
        for key in path:
            node = node[key]
        node["un-known"] = {}
        with pytest.raises(VectorError):
            check("vector", changed, "here")


def broken(toys, change, lane="exact"):
    test = toys.exact_test(1)
    document = toys.group([test], lane=lane)
    change(document, test)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d["params"].update(call="rope"), "call"),
        (lambda d, t: d["params"].update(colour=1), "colour"),
        (lambda d, t: d.update(lane="fast"), "lane"),
        (lambda d, t: t["flags"].append("mystery"), "mystery"),
        (lambda d, t: d["notes"].update(extra=d["notes"]["halves"]), "extra"),
        (lambda d, t: t["inputs"].update(z=t["inputs"]["x"]), "arguments"),
        (lambda d, t: t["inputs"].clear(), "missing"),
        (lambda d, t: t["outputs"]["y"].update(dtype="float16"), "expected float16"),
        (lambda d, t: t["outputs"]["y"].update(shape=[6]), "shape"),
        (lambda d, t: t["outputs"].update(q=t["outputs"]["y"]), "results of"),
        (lambda d, t: t["inputs"]["x"].update(bits="00"), "bytes"),
        (lambda d, t: t["inputs"]["x"].pop("bits"), "x"),
        (lambda d, t: t["result"]["y"].update(digest="0" * 64), "y"),
        (lambda d, t: t["result"]["y"]["compare"].update(rule="ulp"), "float64"),
        (lambda d, t: t["result"]["y"]["compare"].update(rule="near"), "near"),
        (lambda d, t: t.update(result={"error": "ShapeError", "phase": "validate"}), "lane"),
        (lambda d, t: t.update(result={"error": "OSError", "phase": "run"}), "OSError"),
    ],
)
def test_vectors_that_contradict_themselves(toys, tmp_path, change, message):
    with pytest.raises(VectorError, match=message):
        write_group(tmp_path, broken(toys, change))


def test_an_error_has_one_phase(toys, tmp_path):
    test = toys.invalid_test()
    test["result"]["phase"] = "run"
    with pytest.raises(VectorError, match="validate"):
        write_group(tmp_path, toys.group([test], "invalid", "invalid"))


def test_invalid_lane_needs_an_error(toys, tmp_path):
    with pytest.raises(VectorError, match="must expect an error"):
        write_group(tmp_path, toys.group([toys.exact_test(1)], "invalid", "invalid"))


def test_params_of_a_test_extend_those_of_the_group(toys, tmp_path):
    test = {**toys.exact_test(1), "params": {"normalize": "nan"}}
    toys.write_suite(tmp_path, [toys.group([test])])
    case = load(tmp_path).cases[0]
    assert case.params == {"call": "hadamard_transform", "normalize": "nan"}
    assert np.isnan(decode_params(case.params)["normalize"])


def test_files_beside_vectors_are_watched(toys, tmp_path):
    test = toys.exact_test(1)
    folder = tmp_path / "vectors/hadamard"
    folder.mkdir(parents=True)
    write_tensors(folder / "big.safetensors", {"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    test["inputs"]["x"] = {"dtype": "float32", "shape": [3, 2], "file": {"path": "big.safetensors", "key": "x"}}
    toys.write_suite(tmp_path, [toys.group([test])])
    assert load(tmp_path).cases[0].load_inputs()["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    write_tensors(folder / "big.safetensors", {"x": np.zeros((3, 2), dtype=np.float32)})
    with pytest.raises(VectorError, match="edited"):
        load(tmp_path)


def test_bound_needs_a_fitting_magnitude(toys, tmp_path):
    test = toys.exact_test(1)
    value = np.zeros((3, 2))
    compare = {"rule": "bound", "magnitude": encode(np.zeros(3)), "terms": 2, "unit": "float32"}
    test["result"] = {"y": {**encode(value), "compare": compare}}
    with pytest.raises(VectorError, match="magnitude"):
        write_group(tmp_path, toys.group([test], lane="rounded"))
    compare["magnitude"] = encode(np.array(1.0))
    write_group(tmp_path, toys.group([test], lane="rounded"))


def test_what_cannot_be_decoded_is_not_written(toys, tmp_path):
    test = toys.exact_test(1)
    recipe = {"mul": 1, "add": 0, "mod": 2**30, "sub": 0, "shift": -200}
    test["inputs"]["x"] = {"dtype": "float32", "shape": [3, 2], "paint": recipe}
    with pytest.raises(VectorError, match="case-1: paint"):
        write_group(tmp_path, toys.group([test]))


@pytest.mark.parametrize(("magnitude", "fits"), [([0, 1, np.nan], True), ([0, np.nan, 1], False), ([-1, 1, 1], False)])
def test_a_magnitude_is_finite_where_the_result_is(toys, tmp_path, magnitude, fits):
    test = toys.exact_test(1)
    test["outputs"]["y"]["shape"] = [3]
    compare = {"rule": "bound", "magnitude": encode(np.array(magnitude, dtype=float)), "terms": 2, "unit": "float32"}
    test["result"] = {"y": {**encode(np.array([1, 2, np.inf])), "compare": compare}}
    document = toys.group([test], lane="rounded")
    if fits:
        write_group(tmp_path, document)
    else:
        with pytest.raises(VectorError, match="magnitude of y"):
            write_group(tmp_path, document)


@pytest.mark.parametrize("place", ["attention/exact.json", "swiglu/exact.json", "hadamard/a.json", "hadamard/z.json"])
def test_a_file_lies_where_it_says(toys, tmp_path, place):
    toys.write_suite(tmp_path, [toys.group([toys.exact_test(1)])])
    wrong = tmp_path / "vectors" / place
    wrong.parent.mkdir(exist_ok=True)
    (tmp_path / "vectors/hadamard/exact.json").rename(wrong)
    with pytest.raises(VectorError, match=r"the file must be hadamard/exact\.json"):
        write_manifest(tmp_path)
