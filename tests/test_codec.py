from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from walsh import codec
from walsh.codec import packings, spin
from walsh.codec.fuzz import painted
from walsh.codec.rows import table_stems
from walsh.data.tokenizers import CharacterTokenizer, Tokenizer
from walsh.errors import FormatError, ParameterError, ShapeError, StrictError, WalshError

CONFIG = {"algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 32, "vocab_size": 50, "block_size": 16}


def ternary_codes(size, zeros, seed=1):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 1, -1], dtype=np.int8), size=size, p=[zeros, (1 - zeros) / 2, (1 - zeros) / 2])


@pytest.mark.parametrize("packing", packings.TERNARY)
@pytest.mark.parametrize("size", [0, 1, 4, 5, 7, 8, 9, 40, 41, 130])
def test_packings_round_trip(packing, size):
    codes = ternary_codes(size, 0.4)
    stored = codec.pack(codes, packing)
    assert stored.dtype == np.uint8
    assert (codec.unpack(stored, packing, codes.shape) == codes).all()


def test_packings_are_the_documented_bytes():
    codes = np.array([1, 0, -1, -1, 1], dtype=np.int8)
    assert codec.pack(codes, "two_bits").tolist() == [6, 86]
    assert codec.pack(codes, "base3").tolist() == [2 + 1 * 3 + 0 * 9 + 0 * 27 + 2 * 81]
    assert codec.pack(codes, "bitmask").tolist() == [0b11101, 0b1001]
    assert zlib.decompress(codec.pack(codes, "base3_deflate").tobytes()) == bytes([167])
    assert codec.pack(np.array([[-7, 7], [0, 1]], dtype=np.int8), "int4").tolist() == [0xF1, 0x98]


@pytest.mark.parametrize(
    ("packing", "stored", "shape"),
    [
        ("two_bits", [6], (5,)),
        ("two_bits", [6, 87], (5,)),
        ("two_bits", [7, 86], (5,)),
        ("base3", [243], (5,)),
        ("base3", [121, 121], (5,)),
        ("base3", [2], (4,)),
        ("bitmask", [5], (9,)),
        ("bitmask", [5, 3, 5], (9,)),
        ("bitmask", [5, 1, 13], (9,)),
        ("bitmask", [5, 1], (9,)),
        ("bitmask", [5, 1, 5, 0], (9,)),
        ("base3_deflate", [1, 2, 3], (5,)),
        ("base3_deflate", list(zlib.compress(bytes([121, 121]))), (5,)),
        ("base3_deflate", list(zlib.compress(bytes([121])))[:-1], (5,)),
        ("base3_deflate", [*zlib.compress(bytes([121])), 0], (5,)),
        ("int4", [0x10], (1, 2)),
        ("int4", [0x11], (1, 3)),
        ("nonsense", [0], (1,)),
    ],
)
def test_malformed_packings_are_refused(packing, stored, shape):
    with pytest.raises(FormatError):
        codec.unpack(np.array(stored, dtype=np.uint8), packing, shape)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="expected -1, 0 or 1"):
        codec.pack(np.array([2], dtype=np.int8), "base3")
    with pytest.raises(ParameterError, match=r"-7 \.\. 7"):
        codec.pack(np.array([[8, 0]], dtype=np.int8), "int4")
    with pytest.raises(ShapeError):
        codec.pack(np.array([[1]], dtype=np.int8), "int4")


@pytest.mark.parametrize("zeros", [0.2, 1 / 3, 0.5, 0.9])
def test_the_entropy_coder_is_near_the_bound_and_the_choice_is_the_smallest(zeros):
    codes = ternary_codes(200_000, zeros)
    shares = np.array([zeros, (1 - zeros) / 2, (1 - zeros) / 2])
    entropy = -(shares * np.log2(shares)).sum()
    bits = 8 * codec.pack(codes, "base3_deflate").size / codes.size
    # Whole bits per symbol of five weights cost at most a few percent; a stored block at worst 1.6 bits and a header.
    assert bits <= max(1.05 * entropy, 1.601)
    packing, stored = codec.choose(codes)
    assert stored.size == min(codec.pack(codes, name).size for name in packings.TERNARY)
    assert codec.choose(codes, "speed")[0] == "two_bits"
    assert (codec.unpack(stored, packing, codes.shape) == codes).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_rounded_to_the_nearest_code(bits):
    weight = np.random.default_rng(2).normal(size=(7, 12))
    weight[3] = 0
    codes, scale = codec.quantise_rows(weight, bits)
    limit = {4: 7, 8: 127}[bits]
    assert np.abs(codes).max() == limit
    assert scale[3] == 0
    assert not codes[3].any()
    alive = scale > 0
    error = np.abs(codes[alive] * scale[alive, None].astype(np.float64) - weight[alive])
    assert (error <= scale[alive, None] * 0.501).all()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"algebra": "hadamard", "hadamard_size": 8, "head_mixing": True},
        {"algebra": "dense", "tied_head": False},
        {"hash_embeddings": 2, "hash_scale": True},
    ],
)
@pytest.mark.parametrize("prefer", ["size", "speed"])
def test_a_file_gives_back_what_was_put_in(tmp_path, change, prefer):
    config = CONFIG | change
    weights = painted(config)
    if "hash_embeddings" in change:
        weights["embedding.indices"] = np.stack([np.arange(50) % 7, np.zeros(50, dtype=np.int64)], axis=1)
    path = tmp_path / "model.walsh"
    size = codec.write_walsh(path, weights, config, CharacterTokenizer("abc"), prefer)
    assert size == path.stat().st_size
    file = codec.read_walsh(path)
    assert set(file.weights) == set(weights)
    for name, weight in weights.items():
        assert file.weights[name].dtype == weight.dtype
        assert (file.weights[name] == weight).all()
    assert file.config == config
    assert file.tokenizer is not None
    assert file.tokenizer.to_dict() == {"kind": "characters", "characters": "abc"}
    assert list(tmp_path.iterdir()) == [path]
    # Any safetensors reader opens it.
    with safetensors.safe_open(path, framework="numpy") as other:
        assert set(other.keys()) == set(weights)
        assert set(other.metadata()) == {"walsh"}
    first = min(file.stored, key=lambda name: _offset(path, name))
    assert first in {f"{stem}.codes" for stem in table_stems(config)}


def _offset(path: Path, name: str) -> int:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return int(header[name]["data_offsets"][0])


def test_four_bit_tables_are_stored_in_four_bits_without_loss():
    weights = codec.four_bit_rows(painted(CONFIG), CONFIG)
    file = codec.load(codec.dump(weights, CONFIG))
    assert file.stored["embedding.codes"].packing == "int4"
    assert (file.weights["embedding.codes"] == weights["embedding.codes"]).all()


def test_the_same_model_gives_the_same_bytes():
    weights = painted(CONFIG)
    shuffled = dict(sorted(weights.items(), reverse=True))
    assert codec.dump(weights, CONFIG) == codec.dump(shuffled, CONFIG)


def test_wrong_models_are_not_written():
    weights = painted(CONFIG)
    with pytest.raises(ParameterError, match="missing"):
        codec.dump({name: w for name, w in weights.items() if name != "norm.weight"}, CONFIG)
    with pytest.raises(ParameterError, match="superfluous"):
        codec.dump(weights | {"more": weights["norm.weight"]}, CONFIG)
    with pytest.raises(StrictError):
        codec.dump(weights, CONFIG | {"ternary": False})
    with pytest.raises(ParameterError, match="size or speed"):
        codec.dump(weights, CONFIG, prefer="beauty")


def _with_record(content: bytes, change) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    record = json.loads(header["__metadata__"]["walsh"])
    change(header, record)
    header["__metadata__"]["walsh"] = json.dumps(record)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _set(path: str, value):
    def change(header, record):
        *parents, last = path.split("/")
        place = {"header": header, "record": record}[parents[0]]
        for key in parents[1:]:
            place = place[key]
        place[last] = value

    return change


BAD_RECORDS = {
    "version": _set("record/version", 2),
    "boolean version": _set("record/version", True),
    "format": _set("record/format", "other"),
    "extra key": _set("record/more", 1),
    "config": _set("record/config", []),
    "tokenizer": _set("record/tokenizer", 7),
    "tokenizer kind": _set("record/tokenizer", {"kind": "words"}),
    "packing": _set("record/tensors/blocks.0.ffn.up.codes/packing", "none"),
    "packing of floats": _set("record/tensors/norm.weight/packing", "base3"),
    "shape": _set("record/tensors/blocks.0.ffn.up.codes/shape", [8, 11, 5]),
    "huge shape": _set("record/tensors/blocks.0.ffn.up.codes/shape", [1 << 29]),
    "overflowing shape": _set("record/tensors/blocks.0.ffn.up.codes/shape", [1 << 40, 1 << 40]),
    "negative shape": _set("record/tensors/blocks.0.ffn.up.codes/shape", [-1, 2]),
    "digest": _set("record/tensors/norm.weight/sha256", "00"),
    "missing description": lambda header, record: record["tensors"].pop("norm.weight"),
    "dtype": _set("header/norm.weight/dtype", "F16"),
    "list dtype": _set("header/norm.weight/dtype", []),
    "offsets": _set("header/norm.weight/data_offsets", [0, 128]),
    "backward offsets": _set("header/norm.weight/data_offsets", [128, 0]),
    "offsets past the end": _set("header/norm.weight/data_offsets", [0, 1 << 60]),
    "second metadata key": _set("header/__metadata__/more", "x"),
}


@pytest.mark.parametrize("name", sorted(BAD_RECORDS))
def test_malformed_records_are_refused(name):
    content = codec.dump(painted(CONFIG), CONFIG)
    with pytest.raises(WalshError):
        codec.load(_with_record(content, BAD_RECORDS[name]))


def test_duplicate_keys_and_other_bytes_are_refused():
    for header in (b'{"a":1,"a":2}', b"[]", b"{", b'{"__metadata__":{"walsh":"{}"}}', b"[" * 100_000, b'{"a":NaN}'):
        with pytest.raises(FormatError):
            codec.load(len(header).to_bytes(8, "little") + header)
    for content in (b"", b"1234567", (1 << 62).to_bytes(8, "little"), bytes(8)):
        with pytest.raises(FormatError):
            codec.load(content)
    with pytest.raises(FormatError, match="No such file"):
        codec.read_walsh("/nonexistent.walsh")


# ---- SPIN


def spin_example():
    rng = np.random.default_rng(5)
    weights = {
        "tok": (rng.integers(-127, 128, (6, 4)) * 0.5).astype(np.float32),
        "table": (rng.integers(-127, 128, (3, 4)) * 0.25).astype(np.float32),
        "importance": rng.normal(size=(6, 2)).astype(np.float16).astype(np.float32),
        "indices": rng.integers(0, 3, (6, 2)).astype(np.int32),
        "w": ternary_codes(77, 0.5).reshape(7, 11),
        "norm": rng.normal(size=4).astype(np.float16).astype(np.float32),
        "mixer": rng.normal(size=(2, 2)).astype(np.float32),
    }
    weights["tok"].flat[0] = 63.5  # 127 steps of a half, so that the scale is exact
    weights["table"].flat[0] = 31.75
    markers = {"tok": "E", "table": "A", "importance": "I", "indices": "J", "w": "B", "norm": "N", "mixer": "R"}
    return weights, {"dim": 4, "vocab": 6}, markers


def test_spin_round_trips(tmp_path):
    weights, config, markers = spin_example()
    path = tmp_path / "model.spin"
    spin.write_spin(path, weights, config, markers)
    found, read_config = spin.load_walsh(path)
    assert read_config == config
    assert list(found) == list(markers)
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype
        assert (found[name] == weight).all(), name
    assert spin.load(path.read_bytes())[2] == markers


def test_spin_bytes_are_the_published_ones():
    content = spin.dump({"w": np.array([1, 0, -1], dtype=np.int8)}, {}, {"w": "B"})
    expected = b"SPIN" + b"\x04\0" + b"\x02\0\0\0{}" + b"B" + b"\x01\0w"
    expected += b"\x01" + b"\x03\0\0\0" + b"\x02\0\0\0" + b"\x01\0\0\0" + b"\x05" + b"\x01\0\0\0" + b"\x01" + b"END!"
    assert content == expected


def _older(version, payload):
    return b"SPIN" + bytes([version, 0]) + b"\x02\0\0\0{}" + b"T\x01\0w" + payload + b"END!"


def test_spin_version_2_pads_every_row():
    shape = b"\x02" + b"\x02\0\0\0" + b"\x05\0\0\0"
    stored = bytes([0b10010000, 0b10010101, 0b01010101, 0b00010101])
    array = b"\0\x02" + b"\x02\0\0\0" + b"\x02\0\0\0" + stored
    weights, _, _ = spin.load(_older(2, shape + array))
    assert weights["w"].tolist() == [[1, 0, -1, -1, 1], [0, 0, 0, 0, -1]]
    with pytest.raises(FormatError, match="code 3"):
        spin.load(_older(2, shape + array[:-1] + b"\xff"))
    with pytest.raises(FormatError, match="version 3 does not describe"):
        spin.load(_older(3, shape + array))


def test_spin_version_1_is_sparse():
    def payload(places, signs):
        head = b"\x02" + b"\x02\0\0\0" + b"\x03\0\0\0" + len(signs).to_bytes(4, "little")
        rows = b"\x01\x02" + len(signs).to_bytes(4, "little") + b"\x02\0\0\0" + np.array(places, "<i4").tobytes()
        return head + rows + b"\0\x01" + len(signs).to_bytes(4, "little") + np.array(signs, np.int8).tobytes()

    weights, _, _ = spin.load(_older(1, payload([[0, 1], [1, 2]], [-1, 1])))
    assert weights["w"].tolist() == [[0, -1, 0], [0, 0, 1]]
    for places, signs in (([[0, 3]], [1]), ([[0, -1]], [1]), ([[0, 1]], [2]), ([[0, 1], [0, 1]], [1, 1])):
        with pytest.raises(FormatError):
            spin.load(_older(1, payload(places, signs)))


def test_spin_refuses():
    weights, config, markers = spin_example()
    content = spin.dump(weights, config, markers)
    for length in range(len(content)):
        with pytest.raises(FormatError):
            spin.load(content[:length])
    with pytest.raises(FormatError, match="after the end"):
        spin.load(content + b"x")
    with pytest.raises(FormatError, match="version 5"):
        spin.load(content[:4] + b"\x05\0" + content[6:])
    with pytest.raises(ParameterError, match="no marker"):
        spin.dump(weights, config, {"tok": "E"})
    with pytest.raises(ParameterError, match="missing"):
        spin.dump({}, config, {"tok": "E"})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_spin_survives_any_bytes(tail):
    with pytest.raises(FormatError):
        spin.load(b"SPIN\x04\0\x02\0\0\0{}" + tail + b"?")


def test_tokens_of_a_byte_pair_tokenizer_travel_inside():
    class Pairs(Tokenizer):
        kind, end_token, vocab_size = "gpt2", 258, 259
        tokens = (*(bytes([i]) for i in range(256)), b"ab", b" ab")

        def encode(self, text):
            raise NotImplementedError

        def token_bytes(self, token):
            return self.tokens[token]

        def to_dict(self):
            return {"kind": "gpt2"}

    config = CONFIG | {"vocab_size": 259}
    file = codec.load(codec.dump(painted(config), config, Pairs()))
    assert file.tokens == Pairs.tokens
