"""What random mutations of the codec survived (``run.py``), noticed from now on."""

import resource
from pathlib import Path

import numpy as np
import pytest

from walsh import codec
from walsh.codec import loss, measure, reader, report
from walsh.codec.fuzz import painted
from walsh.codec.layout import strict_form
from walsh.errors import FormatError

CONFIG = {"algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 32, "vocab_size": 50, "block_size": 16}


def test_float_activations_are_stored_as_if_they_were_int8():
    assert strict_form({"activation_bits": None, "n_head": 8}) == {"activation_bits": 8, "n_head": 8}
    assert strict_form({"n_head": 8}) == {"n_head": 8}


@pytest.mark.parametrize("elements", [5200, 5201])
def test_a_byte_stands_for_at_most_5200_elements(elements):
    record = {"tensors": {"x": {"packing": "base3_deflate", "shape": [elements], "sha256": ""}}}
    tensors = {"x": np.zeros(1, dtype=np.uint8)}
    if elements == 5200:
        assert reader._describe(record, tensors, False)["x"].shape == (5200,)
    else:
        with pytest.raises(FormatError, match="claims 5201 elements in 1 bytes"):
            reader._describe(record, tensors, False)


@pytest.mark.parametrize(
    ("data", "packing"),
    [(np.zeros((1, 2), np.uint8), "base3"), (np.zeros(2, np.int8), "base3"), (np.zeros(2, np.uint8), 7)],
)
def test_packed_tensors_are_bytes_of_one_axis_with_a_named_packing(data, packing):
    record = {"tensors": {"x": {"packing": packing, "shape": [2], "sha256": ""}}}
    with pytest.raises(FormatError, match="U8 of one axis"):
        reader._describe(record, {"x": data}, False)


def test_the_tensor_that_only_one_side_knows_is_named():
    described = {"packing": "raw", "shape": [1], "sha256": ""}
    record, zeros = {"tensors": {"a": described, "b": described}}, np.zeros(1, dtype=np.float32)
    with pytest.raises(FormatError, match="'b'"):
        reader._describe(record, {"a": zeros}, False)
    with pytest.raises(FormatError, match="'c'"):
        reader._describe(record, {"a": zeros, "b": zeros, "c": zeros}, False)


def test_bits_are_eight_a_byte_over_the_elements():
    file = codec.load(codec.dump(painted(CONFIG), CONFIG))
    for row in reader.summary(file):
        assert row["bits"] == 8 * row["bytes"] / np.prod(row["shape"])
    row = report.Row("ffn", "base3", 1, 100, 25, {"base3": 25, "two_bits": 26, "bitmask": 50})
    assert row.bits == 2.0
    assert row.reason == "smallest; bits of others: two_bits 2.08, bitmask 4.00"
    empty = report.Row("ffn", "base3", 1, 0, 2, {"base3": 2, "bitmask": 3})
    assert empty.bits == 16.0
    assert empty.reason == "smallest; bits of others: bitmask 24.00"


def test_four_bit_rows_come_from_the_trained_tables_of_hash_embeddings():
    config = CONFIG | {"hash_embeddings": 2, "tied_head": False}
    weights = painted(config)
    rng = np.random.default_rng(3)
    names = {
        "embedding.tables.0": "embedding.tables.0",
        "embedding.tables.1": "embedding.tables.1",
        "head": "head.weight",
    }
    trained = {source: rng.normal(size=weights[f"{stem}.codes"].shape) for stem, source in names.items()}
    found = codec.four_bit_rows(weights, config, trained)
    for stem, source in names.items():
        codes, scale = codec.quantise_rows(trained[source], 4)
        assert (found[f"{stem}.codes"] == codes).all()
        assert (found[f"{stem}.scale"] == scale).all()


def test_so_many_windows_of_a_text_and_no_more():
    ids = list(range(100))
    assert list(loss._windows(ids, 8, 3)) == [ids[0:9], ids[8:17], ids[16:25]]
    assert [len(window) for window in loss._windows(ids[:12], 8, 3)] == [9, 4]


def test_memory_is_in_bytes():
    found = measure._memory()
    if found is None:
        pytest.skip("this system does not say what a process takes")
    now, most = found
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert 0.5 < now / (pages * resource.getpagesize()) < 2
    assert now <= most * 1.05 < 1 << 40


def test_int4_needs_pairs_and_packings_take_no_codes_at_all():
    assert codec.pack(np.zeros((0,), dtype=np.int8), "base3").tolist() == []
    with pytest.raises(FormatError):
        codec.unpack(np.zeros(1, dtype=np.uint8), "int4", (1, 1))
