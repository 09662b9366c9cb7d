"""Corpora: named sources of documents.

===============  =====================================================  ==========================================
name             what it is                                             source
===============  =====================================================  ==========================================
``pydoc``        0.47 MB of English on Python; always there, offline    ``pydoc_data.topics`` of the running CPython
``shakespeare``  1.1 MB of plays, the usual toy                         karpathy/char-rnn
``tinystories``  2.1 GB of stories for children (Eldan and Li, 2023)    roneneldan/TinyStories
``fineweb-edu``  10 billion tokens of web text, streamed                HuggingFaceFW/fineweb-edu, sample-10BT
``file:PATH``    your own: a text file, or a folder of ``*.txt``        -
===============  =====================================================  ==========================================

A document is what an end token follows: a topic, a story, a web page, a file. Each corpus says how it is held out: by a
published validation file, else its last part; of a stream, whose end nobody waits for, every 1000th document.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from walsh.data.download import Progress, download, file_digest
from walsh.errors import DataError, ParameterError

Documents = Iterator[str]

STORY_END = "<|endoftext|>"
"""How TinyStories separates its stories."""

_HUB = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"


@dataclass(frozen=True)
class Corpus:
    """A source of documents.

    Attributes:
        name: as it was asked for.
        tokenizer: the kind of tokenizer that suits it (``characters``, ``bytes``, ``gpt2``).
        held_out: the fraction that is kept for validation, or 0 where a validation file is published.
        train: documents for training; called anew for each pass.
        validation: documents of the published validation file, or None.
        streamed: too large to be held in memory, and read once only.
        digest: sha256 (hex) of a text that may change under its name; None for others.
    """

    name: str
    tokenizer: str
    held_out: float
    train: Callable[[], Documents]
    validation: Callable[[], Documents] | None = None
    streamed: bool = False
    digest: Callable[[], str | None] = lambda: None


def cache_folder() -> Path:
    """Where downloads live: ``WALSH_DATA``, else ``~/.cache/walsh``."""
    return Path(os.environ.get("WALSH_DATA") or Path.home() / ".cache" / "walsh")


def open_corpus(name: str, cache: Path | None = None, progress: Progress | None = None) -> Corpus:
    """The corpus of this name; nothing is fetched before its documents are asked for.

    Args:
        name: one of the table above.
        cache: folder for downloads, :func:`cache_folder` by default.
        progress: told of downloaded bytes.

    Raises:
        ParameterError: for an unknown name.
        DataError: for ``file:PATH`` that is not there, or holds no text.
    """
    folder = cache or cache_folder()
    if name == "file:":
        raise ParameterError("corpus 'file:': expected a path after the colon, of a text file or a folder of *.txt")
    if name.startswith("file:"):
        return _files(name, Path(name.removeprefix("file:")))
    if name == "pydoc":
        return Corpus(name, "bytes", 0.1, _pydoc)
    if name == "shakespeare":
        return Corpus(name, "characters", 0.1, lambda: iter([_shakespeare(folder, progress)]))
    if name == "tinystories":
        return Corpus(
            name,
            "gpt2",
            0.0,
            lambda: _stories(folder, "TinyStories-train.txt", progress),
            lambda: _stories(folder, "TinyStories-valid.txt", progress),
        )
    if name == "fineweb-edu":
        return Corpus(name, "gpt2", 0.001, _fineweb, streamed=True)
    raise ParameterError(f"corpus {name!r}: expected pydoc, shakespeare, tinystories, fineweb-edu or file:PATH")


def _pydoc() -> Documents:
    """Topics in the order of their names, so that the split is the same everywhere for one CPython version."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise DataError("this Python lacks pydoc_data; use corpus file:PATH with a text of your own") from None
    for name in sorted(topics):
        yield topics[name]


def _shakespeare(folder: Path, progress: Progress | None) -> str:
    path = download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        folder / "shakespeare" / "input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        progress,
    )
    return path.read_text(encoding="utf-8")


def _stories(folder: Path, name: str, progress: Progress | None) -> Documents:
    # No digest is pinned for these: the one that the hub announces is checked.
    path = download(f"{_HUB}/{name}", folder / "tinystories" / name, None, progress)
    with path.open(encoding="utf-8", errors="replace") as file:
        lines: list[str] = []
        for line in file:
            if line.strip() == STORY_END:
                yield "".join(lines).strip()
                lines = []
            else:
                lines.append(line)
        if rest := "".join(lines).strip():
            yield rest


def _fineweb() -> Documents:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise DataError("fineweb-edu is streamed by package datasets: pip install datasets") from None
    try:
        rows = load_dataset("HuggingFaceFW/fineweb-edu", name="sample-10BT", split="train", streaming=True)
        for row in rows:
            yield str(row["text"])
    except Exception as error:  # whatever the HTTP client of that package's version raises
        raise DataError(
            f"fineweb-edu could not be streamed ({type(error).__name__}: {str(error)[:200]}); offline: use corpus "
            "pydoc or file:PATH"
        ) from error


def _files(name: str, path: Path) -> Corpus:
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: no such file or folder; give file:PATH of a text file or a folder of *.txt")
    if not files:
        raise DataError(f"{path}: holds no *.txt file")

    def documents() -> Documents:
        for file in files:
            try:
                yield file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file}: byte {error.start} is not UTF-8; convert the file first") from None

    def digest() -> str:
        return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()

    return Corpus(name, "bytes", 0.1, documents, digest=digest)
