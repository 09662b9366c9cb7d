"""From a corpus to two token files, ``train.tokens`` and ``validation.tokens``, and the tokenizer beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walsh.data.corpora import Corpus
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer, Gpt2Tokenizer, Tokenizer, from_dict
from walsh.data.tokens import read_tokens, write_tokens
from walsh.errors import DataError, FormatError, ParameterError


@dataclass(frozen=True)
class Dataset:
    """Token ids of one corpus, mapped into memory.

    Attributes:
        tokenizer: whose ids they are.
        train: uint16 or uint32 [tokens].
        validation: likewise, held out.
    """

    tokenizer: Tokenizer
    train: NDArray[np.unsignedinteger]
    validation: NDArray[np.unsignedinteger]


def make_tokenizer(kind: str, corpus: Corpus) -> Tokenizer:
    """A tokenizer of this kind; characters are counted over the whole corpus, held-out part included."""
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "gpt2":
        return Gpt2Tokenizer()
    if kind == "characters":
        characters: set[str] = set()
        for documents in filter(None, (corpus.train, corpus.validation)):
            for text in documents():
                characters.update(text)
        return CharacterTokenizer(characters)
    raise ParameterError(f"tokenizer {kind!r}: expected characters, bytes or gpt2")


def prepare(corpus: Corpus, folder: Path, tokenizer: str | None = None, limit: int | None = None) -> Dataset:
    """Tokenize a corpus into a folder, or open what an earlier call made there.

    The held-out part is the tail of the last documents by number of characters: a document that straddles the border is
    cut there, so that a corpus of one document can be split too.

    Args:
        corpus: what to tokenize.
        folder: for ``tokenizer.json``, ``train.tokens`` and ``validation.tokens``.
        tokenizer: its kind; the corpus's own choice by default.
        limit: documents to take at most, for corpora that are streamed.

    Raises:
        DataError: for an empty corpus, or a folder that holds another tokenizer's files.
    """
    kind = tokenizer or corpus.tokenizer
    record = folder / "tokenizer.json"
    if record.exists():
        made = load_dataset(folder)
        if made.tokenizer.kind != kind:
            raise DataError(f"{folder}: holds {made.tokenizer.kind} tokens, {kind} was asked; use another folder")
        return made
    made_by = make_tokenizer(kind, corpus)
    if corpus.validation is not None:
        write_tokens(folder / "train.tokens", _encode(corpus.train(), made_by, limit), made_by)
        write_tokens(folder / "validation.tokens", _encode(corpus.validation(), made_by, limit), made_by)
    else:
        texts = list(_take(corpus.train(), limit))
        train, held_out = split(texts, corpus.held_out)
        if not train or not held_out:
            raise DataError(f"corpus {corpus.name}: too small to hold out {corpus.held_out:.0%} of it")
        write_tokens(folder / "train.tokens", _encode(iter(train), made_by, None), made_by)
        write_tokens(folder / "validation.tokens", _encode(iter(held_out), made_by, None), made_by)
    # Last, and by a rename: whoever finds it finds everything.
    partial = folder / "tokenizer.json.partial"
    partial.write_text(json.dumps(made_by.to_dict(), sort_keys=True, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
    return load_dataset(folder)


def load_dataset(folder: Path) -> Dataset:
    """Open what :func:`prepare` made.

    Raises:
        DataError: if it is missing, or its files are of different tokenizers.
        FormatError: if a file is damaged.
    """
    record = folder / "tokenizer.json"
    if not record.is_file():
        raise DataError(f"{folder}: no prepared data there; make it with: walsh data prepare")
    try:
        tokenizer = from_dict(json.loads(record.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise FormatError(f"{record}: not a tokenizer; remove the folder and prepare it anew") from None
    train = read_tokens(folder / "train.tokens", tokenizer)
    return Dataset(tokenizer, train, read_tokens(folder / "validation.tokens", tokenizer))


def split(texts: list[str], held_out: float) -> tuple[list[str], list[str]]:
    """Cut a list of documents so that the second part has the last ``held_out`` of all characters."""
    border = round(sum(map(len, texts)) * (1.0 - held_out))
    first: list[str] = []
    second: list[str] = []
    position = 0
    for text in texts:
        cut = min(max(border - position, 0), len(text))
        if cut:
            first.append(text[:cut])
        if cut < len(text):
            second.append(text[cut:])
        position += len(text)
    return first, second


def _take(documents: Iterator[str], limit: int | None) -> Iterator[str]:
    for i, text in enumerate(documents):
        if i == limit:
            return
        yield text


def _encode(documents: Iterator[str], tokenizer: Tokenizer, limit: int | None) -> Iterator[NDArray[np.int64]]:
    for text in _take(documents, limit):
        yield tokenizer.encode(text)
