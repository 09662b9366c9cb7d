"""What random mutations of the codec survived (``run.py``), noticed from now on."""

import resource
from pathlib import Path

import numpy as np
import pytest

from walsh import codec
from walsh.codec import loss, measure, reader, report, spin
from walsh.codec.fuzz import painted
from walsh.codec.layout import strict_form
from walsh.codec.tokenizer import BytePairTokenizer
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


def pairs(extra=(b"ab", b" ab")):
    return [*(bytes([byte]) for byte in range(256)), *extra]


def test_a_byte_pair_tokenizer_ends_after_its_tokens():
    tokenizer = BytePairTokenizer(pairs())
    assert (tokenizer.end_token, tokenizer.vocab_size) == (258, 259)
    assert tokenizer.token_bytes(258) == b""
    assert [tokenizer.token_bytes(token) for token in (0, 97, 257)] == [b"\0", b"a", b" ab"]
    assert tokenizer.encode("ab ab a").tolist() == [256, 257, 32, 97]
    assert tokenizer._encoding is tokenizer._encoding
    assert tokenizer.to_dict() == {"kind": "gpt2"}


@pytest.mark.parametrize("byte", [0, 97, 255])
def test_every_byte_is_a_token_and_none_stands_twice(byte):
    with pytest.raises(FormatError, match=f"no token is the single byte {byte}"):
        BytePairTokenizer([token for token in pairs() if token != bytes([byte])])
    with pytest.raises(FormatError, match="the same bytes"):
        BytePairTokenizer(pairs((b"ab", b"ab")))


def test_the_tensors_of_a_file_begin_at_a_multiple_of_64():
    for vocabulary in (50, 51, 1000):
        config = CONFIG | {"vocab_size": vocabulary}
        content = codec.dump(painted(config), config)
        assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0


def test_a_bitmask_states_its_non_zeros_exactly():
    content = spin.dump({"w": np.array([1, 0, -1], dtype=np.int8)}, {}, {"w": "B"})
    at = content.index(b"B\x01\0w") + 4 + 1 + 4
    assert content[at : at + 4] == b"\x02\0\0\0"
    for stated in (1, 3):
        with pytest.raises(FormatError, match=f"the {stated} that it states"):
            spin.load(content[:at] + bytes([stated, 0, 0, 0]) + content[at + 4 :])


@pytest.mark.parametrize(("places", "signs"), [([[0, 1], [1, 2]], [1]), ([[0, 1]], [1, -1]), ([[0], [1]], [1, 1])])
def test_a_sparse_tensor_has_a_sign_for_every_place(places, signs):
    stated, rank = 2, len(places[0])
    head = b"\x02" + b"\x02\0\0\0" + b"\x03\0\0\0" + stated.to_bytes(4, "little")
    rows = (
        b"\x01\x02" + len(places).to_bytes(4, "little") + rank.to_bytes(4, "little") + np.array(places, "<i4").tobytes()
    )
    ends = b"\0\x01" + len(signs).to_bytes(4, "little") + np.array(signs, np.int8).tobytes()
    with pytest.raises(FormatError, match="expected 2 places of 2 indices"):
        spin.load(b"SPIN\x01\0" + b"\x02\0\0\0{}" + b"T\x01\0w" + head + rows + ends + b"END!")
