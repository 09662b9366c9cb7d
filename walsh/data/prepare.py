"""From a corpus to two token files, ``train.tokens`` and ``validation.tokens``, and the tokenizer beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walsh.data.corpora import Corpus
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer, Gpt2Tokenizer, Tokenizer, from_dict
from walsh.data.tokens import read_tokens, write_tokens
from walsh.errors import DataError, FormatError, ParameterError

Progress = Callable[[int, int], None]
"""Called after each document with documents and tokens so far."""


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


def prepare(
    corpus: Corpus,
    folder: Path,
    tokenizer: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Tokenize a corpus into a folder, or open what an earlier call made there.

    The held-out part is the tail of the last documents by number of characters: a document that straddles the border is
    cut there, so that a corpus of one document can be split too. Of a streamed corpus it is every so many documents,
    the first one included; only those are held in memory.

    Args:
        corpus: what to tokenize.
        folder: for ``tokenizer.json``, ``corpus.json``, ``train.tokens`` and ``validation.tokens``.
        tokenizer: its kind; the corpus's own choice by default.
        limit: documents to take at most, for corpora that are streamed.
        progress: told of every document.

    Raises:
        DataError: for a corpus that is too small, or a folder that holds another tokenizer's or corpus's files.
    """
    kind = tokenizer or corpus.tokenizer
    record = folder / "tokenizer.json"
    origin = {"corpus": corpus.name, "limit": limit, "digest": corpus.digest()}
    if record.exists():
        made = load_dataset(folder)
        if made.tokenizer.kind != kind:
            raise DataError(f"{folder}: holds {made.tokenizer.kind} tokens, {kind} was asked; use another folder")
        _check_origin(folder, origin)
        return made
    made_by = make_tokenizer(kind, corpus)
    held_out: list[str] = []
    train: Iterator[str]
    validation: Iterator[str]
    if corpus.validation is not None:
        train, validation = islice(corpus.train(), limit), islice(corpus.validation(), limit)
    elif corpus.streamed:
        train = _without_every(round(1 / corpus.held_out), islice(corpus.train(), limit), held_out)
        validation = iter(held_out)
    else:
        kept, held_out = split(list(islice(corpus.train(), limit)), corpus.held_out)
        train, validation = iter(kept if held_out else []), iter(held_out)
    for name, texts in (("train", train), ("validation", validation)):
        if not write_tokens(folder / f"{name}.tokens", _encode(texts, made_by, progress), made_by):
            for part in ("train", "validation"):
                (folder / f"{part}.tokens").unlink(missing_ok=True)
            raise DataError(f"corpus {corpus.name}: too small to hold out {corpus.held_out:.1%} of it")
    (folder / "corpus.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
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


def _check_origin(folder: Path, asked: Mapping[str, object]) -> None:
    """Raise DataError if the folder says that it was made of something else; token files made by hand say nothing."""
    record = folder / "corpus.json"
    if not record.is_file():
        return
    try:
        found = dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise FormatError(f"{record}: not a record of a corpus; remove the folder and prepare it anew") from None
    for key, value in asked.items():
        if found.get(key) != value:
            what = f"{key} {found.get(key)}; asked was {value}"
            what = "a text that was changed since" if key == "digest" else what
            raise DataError(f"{folder}: was made of {what}: use another folder, or remove this one")


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


def _without_every(period: int, documents: Iterator[str], held_out: list[str]) -> Iterator[str]:
    """All but the first of every ``period`` documents, which are put into ``held_out``."""
    for i, text in enumerate(documents):
        if i % period:
            yield text
        else:
            held_out.append(text)


def _encode(documents: Iterator[str], tokenizer: Tokenizer, progress: Progress | None) -> Iterator[NDArray[np.int64]]:
    tokens = 0
    for number, text in enumerate(documents, start=1):
        ids = tokenizer.encode(text)
        yield ids
        tokens += len(ids) + 1
        if progress is not None:
            progress(number, tokens)
