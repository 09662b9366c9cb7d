"""Corpora, tokenizers, token files and downloads, with every way they break."""

from __future__ import annotations

import hashlib
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walsh import data
from walsh.errors import DataError, FormatError, ParameterError, RangeError

MIXED = 'He said: "café" — 漢字, emoji 🦜🏽, tabs\t\tand  double  spaces\n\n  indented\r\nend. It\'s 2026!'


def tokenizers() -> list[data.Tokenizer]:
    return [data.CharacterTokenizer(MIXED), data.ByteTokenizer(), data.Gpt2Tokenizer()]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_text_survives(tokenizer: data.Tokenizer) -> None:
    ids = tokenizer.encode(MIXED)
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.end_token not in ids
    assert tokenizer.decode(ids) == MIXED


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_streaming_equals_decoding_and_never_shows_half_a_character(tokenizer: data.Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(int(token)) for token in tokenizer.encode(MIXED)]
    assert "".join(pieces) + stream.finish() == MIXED
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(st.text())
def test_bytes_and_gpt2_lose_nothing(text: str) -> None:
    clean = text.encode("utf-8", errors="replace").decode("utf-8")
    for tokenizer in (data.ByteTokenizer(), data.Gpt2Tokenizer()):
        assert tokenizer.decode(tokenizer.encode(clean)) == clean


def test_gpt2_known_answers() -> None:
    # The first two are the examples that GPT-2's own repository and model card show.
    tokenizer = data.Gpt2Tokenizer()
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.encode("<|endoftext|>").tolist() != [50256]
    assert tokenizer.vocab_size == 50257


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(RangeError, match=r"'é' at position 3"):
        data.CharacterTokenizer("abcdefgh").encode("cafébe")


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_a_token_outside_the_vocabulary_is_refused(tokenizer: data.Tokenizer) -> None:
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(RangeError):
            tokenizer.decode([token])
    assert tokenizer.decode([tokenizer.end_token]) == ""


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_a_tokenizer_is_its_record(tokenizer: data.Tokenizer) -> None:
    again = data.from_dict(tokenizer.to_dict())
    assert again.digest == tokenizer.digest
    assert again.encode(MIXED).tolist() == tokenizer.encode(MIXED).tolist()


@pytest.mark.parametrize(
    "record", [{}, {"kind": "words"}, {"kind": "characters"}, {"kind": "characters", "characters": "ba"}]
)
def test_a_bad_tokenizer_record_is_refused(record: dict[str, str]) -> None:
    with pytest.raises(FormatError):
        data.from_dict(record)


def test_token_file_round_trip(tmp_path: Path) -> None:
    tokenizer = data.ByteTokenizer()
    count = data.write_tokens(tmp_path / "a.tokens", map(tokenizer.encode, ["ab", "", "c"]), tokenizer)
    ids = data.read_tokens(tmp_path / "a.tokens", tokenizer)
    assert count == 6
    assert ids.tolist() == [97, 98, 256, 256, 99, 256]
    assert not ids.flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokens"]


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def documents() -> Iterator[np.ndarray]:
        yield np.array([1, 2, 3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.write_tokens(tmp_path / "a.tokens", documents(), data.ByteTokenizer())
    assert list(tmp_path.iterdir()) == []


def test_missing_foreign_and_damaged_token_files_are_errors(tmp_path: Path) -> None:
    tokenizer, path = data.ByteTokenizer(), tmp_path / "a.tokens"
    with pytest.raises(DataError, match="no such token file"):
        data.read_tokens(path, tokenizer)
    data.write_tokens(path, [np.arange(10)], tokenizer)
    with pytest.raises(DataError, match="made by tokenizer"):
        data.read_tokens(path, data.CharacterTokenizer("ab"))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:20], b"", b"x" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            data.read_tokens(path, tokenizer)


def test_prepare_holds_out_the_tail_and_opens_what_it_made(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("".join(chr(97 + i % 26) for i in range(1000)), encoding="utf-8")
    corpus = data.open_corpus(f"file:{source}")
    first = data.prepare(corpus, tmp_path / "out")
    assert first.tokenizer.decode(first.train) == source.read_text()[:900]
    assert first.tokenizer.decode(first.validation) == source.read_text()[900:]
    again = data.prepare(corpus, tmp_path / "out")
    assert again.train.tolist() == first.train.tolist()
    with pytest.raises(DataError, match="use another folder"):
        data.prepare(corpus, tmp_path / "out", tokenizer="characters")
    characters = data.prepare(corpus, tmp_path / "chars", tokenizer="characters")
    assert characters.tokenizer.vocab_size == 27
    with pytest.raises(DataError, match="limit None; asked was 3"):
        data.prepare(corpus, tmp_path / "out", limit=3)
    with pytest.raises(DataError, match=r"made of corpus file:.*; asked was pydoc"):
        data.prepare(data.open_corpus("pydoc"), tmp_path / "out")
    source.write_text("another text", encoding="utf-8")
    with pytest.raises(DataError, match="changed since"):
        data.prepare(corpus, tmp_path / "out")
    (tmp_path / "out" / "corpus.json").write_text("[1]")
    with pytest.raises(FormatError, match="anew"):
        data.prepare(corpus, tmp_path / "out")


def test_the_offline_default_is_there(tmp_path: Path) -> None:
    dataset = data.prepare(data.open_corpus("pydoc"), tmp_path)
    assert len(dataset.train) > 300_000
    assert 0.09 < len(dataset.validation) / (len(dataset.train) + len(dataset.validation)) < 0.11


def test_a_stream_is_read_once_and_every_so_many_documents_are_held_out(tmp_path: Path) -> None:
    passes = []

    def documents() -> Iterator[str]:
        passes.append(1)
        yield from (f"[{i}]" for i in range(100_000))

    corpus = data.Corpus("web", "bytes", 0.1, documents, streamed=True)
    seen: list[tuple[int, int]] = []
    made = data.prepare(corpus, tmp_path / "out", limit=25, progress=lambda *counts: seen.append(counts))
    assert made.tokenizer.decode(made.train) == "".join(f"[{i}]" for i in range(25) if i % 10)
    assert made.tokenizer.decode(made.validation) == "[0][10][20]"
    assert len(passes) == 1
    assert seen[21] == (22, len(made.train))
    with pytest.raises(DataError, match="too small"):
        data.prepare(corpus, tmp_path / "less", limit=1)


def test_a_stream_that_breaks_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LostError(Exception):
        """As of an HTTP client that knows nothing of OSError."""

    def load_dataset(*args: object, **options: object) -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        yield {"text": "two"}
        raise LostError("connection lost")

    datasets = types.ModuleType("datasets")
    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(DataError, match=r"LostError: connection lost.*pydoc"):
        data.prepare(data.open_corpus("fineweb-edu"), tmp_path / "out", "bytes")
    assert list((tmp_path / "out").iterdir()) == []
    made = data.prepare(data.open_corpus("fineweb-edu"), tmp_path / "out", "bytes", limit=2)
    assert (made.tokenizer.decode(made.train), made.tokenizer.decode(made.validation)) == ("two", "one")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        next(data.open_corpus("fineweb-edu").train())


def test_bad_corpora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="pydoc, shakespeare"):
        data.open_corpus("wikipedia")
    with pytest.raises(DataError, match="no such file"):
        data.open_corpus(f"file:{tmp_path}/none.txt")
    with pytest.raises(DataError, match=r"holds no \*.txt"):
        data.open_corpus(f"file:{tmp_path}")
    with pytest.raises(ParameterError, match="expected a path after the colon"):
        data.open_corpus("file:")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="byte 3 is not UTF-8"):
        data.prepare(data.open_corpus(f"file:{tmp_path}/latin.txt"), tmp_path / "out")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="too small"):
        data.prepare(data.open_corpus(f"file:{tmp_path}/empty.txt"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tokens"))


CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Unreliable(BaseHTTPRequestHandler):
    """Serves CONTENT; ``server.plan`` says what goes wrong with the first requests."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        step = self.server.plan.pop(0) if self.server.plan else "serve"  # type: ignore[attr-defined]  # set below
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and step != "ignore range" else 0
        self.server.asked.append((step, start))  # type: ignore[attr-defined]  # set below
        if step == "fail":
            self.send_error(503)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if step == "truncate":
            body = body[: len(body) // 2]
        if step == "corrupt":
            body = body[:-1] + b"!"
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(302)
        for name, value in self.server.announced.items():  # type: ignore[attr-defined]  # set below
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Unreliable)
    httpd.plan, httpd.asked, httpd.announced = [], [], {}  # type: ignore[attr-defined]  # read by the handler
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def fetch(server: ThreadingHTTPServer, target: Path, sha256: str | None = DIGEST, attempts: int = 5) -> Path:
    return data.download(f"http://127.0.0.1:{server.server_port}/f", target, sha256, attempts=attempts, pause=0.0)


@pytest.mark.parametrize(
    "plan",
    [
        [],
        ["fail"],
        ["truncate"],
        ["truncate", "fail", "truncate"],
        ["corrupt"],
        ["truncate", "ignore range"],
        ["truncate", "corrupt"],
    ],
    ids="-".join,
)
def test_download_survives(server: ThreadingHTTPServer, tmp_path: Path, plan: list[str]) -> None:
    server.plan = list(plan)  # type: ignore[attr-defined]  # read by the handler
    assert fetch(server, tmp_path / "sub" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["file"]


def test_download_resumes_where_it_stopped(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.plan = ["truncate"]  # type: ignore[attr-defined]  # read by the handler
    with pytest.raises(DataError, match="goes on from it"):
        fetch(server, tmp_path / "file", attempts=1)
    assert not (tmp_path / "file").exists()
    fetch(server, tmp_path / "file")
    (first, start), (second, resumed) = server.asked  # type: ignore[attr-defined]  # set by the handler
    assert (first, start, second) == ("truncate", 0, "serve")
    assert len(CONTENT) // 2 - (1 << 16) < resumed <= len(CONTENT) // 2
    fetch(server, tmp_path / "file")  # there already: nothing more is asked
    assert len(server.asked) == 2  # type: ignore[attr-defined]  # by the handler


def test_download_checks_the_digest_that_the_server_announces(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.announced = {"X-Linked-Etag": f'"{DIGEST}"'}  # type: ignore[attr-defined]  # read by the handler
    server.plan = ["corrupt"]  # type: ignore[attr-defined]  # likewise
    assert fetch(server, tmp_path / "file", None).read_bytes() == CONTENT
    server.announced = {"X-Linked-Etag": '"' + "0" * 64 + '"'}  # type: ignore[attr-defined]  # likewise
    with pytest.raises(DataError, match="expected 000000"):
        fetch(server, tmp_path / "other", None, attempts=2)
    server.announced = {"X-Linked-Etag": '"some-tag"'}  # type: ignore[attr-defined]  # likewise
    assert fetch(server, tmp_path / "other", None).read_bytes() == CONTENT


def test_download_gives_up_with_a_remedy(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.plan = ["corrupt"] * 9  # type: ignore[attr-defined]  # read by the handler
    with pytest.raises(DataError, match=r"sha256 .* expected"):
        fetch(server, tmp_path / "file", attempts=2)
    assert list(tmp_path.iterdir()) == []


def test_download_offline_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="corpus pydoc, which needs no network"):
        data.download("http://127.0.0.1:9/f", tmp_path / "file", DIGEST, attempts=1)
