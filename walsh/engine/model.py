"""Models and sequences in the engine: what Python programs use.

    engine = Engine("model.walsh")
    for text in engine.generate("Once upon a time", max_new_tokens=200):
        print(text, end="")

Everything is strict arithmetic: the same file, prompt and seed give the same tokens on every backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.engine.host import Arrays, Instance
from walsh.errors import CapacityError, DTypeError, FormatError, ParameterError, ShapeError, WalshError

LAYOUTS = ("auto", "fast", "fast_packed", "pairs", "packed")
"""How linear layers are kept: 2, 1.25, 1 and 0.25 bytes a weight; ``auto`` takes the first within the memory limit."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a loaded model.

    Attributes:
        file: as it was loaded.
        weights: all that is kept of it, in kernel layout.
        tokenizer: its tables.
        peak: linear memory, which never shrinks: file, weights, sequences and scratch.
    """

    file: int
    weights: int
    tokenizer: int
    peak: int


@dataclass(frozen=True)
class Costs:
    """Predicted Internet Computer instructions of the pieces of a token, pages and system calls apart.

    Attributes:
        begin: to start on it.
        layer: per block.
        begin_head: to quantise it for the head.
        head: for the logits that were asked for.
        sample: to draw from all logits, at most.
    """

    begin: int
    layer: int
    begin_head: int
    head: int
    sample: int


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn (SPEC.md, *sampling*); the defaults are greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def arguments(self) -> tuple[float, int, float, float, int]:
        """As the engine takes them.

        Raises:
            ParameterError: top_p or top_k that float32 or 64 bits would make valid or change.
        """
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int | np.integer) or self.top_k < 0:
            raise ParameterError(f"top_k {self.top_k!r}: expected an integer from 0 (all) up")
        if not 0 < self.top_p <= 1:
            raise ParameterError(f"top_p {self.top_p!r}: expected more than 0 and at most 1")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise DTypeError(f"seed {self.seed!r}: expected an integer")
        with np.errstate(over="ignore"):
            temperature, penalty = (float(np.float32(v)) for v in (self.temperature, self.repetition_penalty))
        seed = int(self.seed) & ((1 << 64) - 1)
        signed = seed - (1 << 64) if seed >> 63 else seed  # wasmtime takes i64 as signed
        # A top_p that float32 rounds to 0 keeps the first id, as the smallest positive number does.
        top_p = float(np.float32(self.top_p)) or float(np.finfo(np.float32).smallest_subnormal)
        return temperature, min(int(self.top_k), (1 << 31) - 1), top_p, penalty, signed


def _read(model: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(model, bytes):
        return model
    try:
        return Path(model).read_bytes()
    except OSError as error:
        raise FormatError(f"{os.fspath(model)}: {error.strerror}") from None


class Engine:
    """A loaded model.

    Attributes:
        n_layer, n_embd, vocab_size, block_size: sizes of the model.
        end_token: the tokenizer's end token, None without one.
        layout: one of ``LAYOUTS``, how linear layers are kept.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        layout: str = "auto",
        verify: bool = True,
        instance: Instance | None = None,
    ) -> None:
        """Load a ``.walsh`` file.

        Args:
            model: path of the file, or its bytes.
            layout: how linear layers are kept.
            verify: compare SHA-256 of every tensor.
            instance: shared with other models; a new one by default.

        Raises:
            FormatError: a file that breaks its format.
            ParameterError, ShapeError, DTypeError, StrictError: weights that are not those of the configuration.
            CapacityError: a model that does not fit into linear memory.
        """
        if layout not in LAYOUTS:
            raise ParameterError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
        content = _read(model)
        self.instance = instance or Instance()
        pointer = int(self.instance.call("file", len(content))) & 0xFFFFFFFF
        if pointer == 0:
            raise CapacityError(f"a file of {len(content)} bytes does not fit into linear memory (4 GiB)")
        self.instance.view(pointer, (len(content),), "uint8")[...] = np.frombuffer(content, dtype=np.uint8)
        self.handle = int(self.instance.call("load", int(verify), LAYOUTS.index(layout)))
        sizes = self._numbers("describe", 6)
        self.n_layer, self.n_embd, self.vocab_size, self.block_size = sizes[:4]
        self.end_token = sizes[4] if sizes[4] >= 0 else None
        self.layout = LAYOUTS[sizes[5]]

    def _numbers(self, function: str, count: int) -> list[int]:
        with self.instance.arrays() as arrays:
            pointer = arrays.room(8 * count)
            self.instance.call(function, self.handle, pointer)
            return [int(value) for value in arrays.get(pointer, (count,), "int64")]

    @property
    def memory(self) -> Memory:
        """Bytes of this model."""
        file, weights, tokenizer = self._numbers("memory", 3)
        return Memory(file, weights, tokenizer, self.instance.memory_bytes)

    def close(self) -> None:
        """Let go of the model; its sessions are useless then."""
        self.instance.call("drop_model", self.handle)

    def new_session(self, capacity: int | None = None) -> Session:
        """A sequence of at most ``capacity`` tokens, by default as many as the model can hold.

        Raises:
            CapacityError: if its cache does not fit into linear memory.
        """
        wanted = self.block_size if capacity is None else min(capacity, self.block_size)
        return Session(self, int(self.instance.call("new_session", self.handle, wanted)))

    def restore_session(self, saved: bytes) -> Session:
        """A sequence from :meth:`Session.save`; its logits come back with :meth:`Session.head`.

        Raises:
            FormatError: bytes that are no saved sequence. ShapeError: one of a model of other sizes.
        """
        with self.instance.arrays() as arrays:
            given = arrays.put(np.frombuffer(saved, dtype=np.uint8)), len(saved)
            return Session(self, int(self.instance.call("restore_session", self.handle, *given)))

    def advance_batch(self, sessions: Sequence[Session]) -> list[bool | WalshError]:
        """One block of the tokens in work of many sequences, weights being read once for all.

        Sequences may be in any phase. A sequence that fails forgets its tokens in work; the others are not affected.

        Returns:
            Per sequence: whether nothing is in work any more, or the error (all with the text of the first).

        Raises:
            ParameterError: a sequence that is closed, named twice, or of another model.
        """
        with self.instance.arrays() as arrays:
            results = arrays.room(4 * len(sessions))
            self.instance.call("advance_batch", self._handles(arrays, sessions), len(sessions), results)
            codes = arrays.get(results, (len(sessions),), "int32")
        return [bool(code) if code >= 0 else self.instance.error(int(code)) for code in codes]

    def head_batch(self, sessions: Sequence[Session]) -> None:
        """Logits of the last token of many sequences, rows being read once for all.

        Raises:
            ShapeError: if one of them has read no token. ParameterError: as :meth:`advance_batch`.
        """
        with self.instance.arrays() as arrays:
            self.instance.call("head_batch", self._handles(arrays, sessions), len(sessions))

    def head_range_batch(self, sessions: Sequence[Session], start: int, stop: int) -> None:
        """Logits of ids start .. stop - 1 of many sequences, each after :meth:`Session.begin_head`."""
        with self.instance.arrays() as arrays:
            given = self._handles(arrays, sessions), len(sessions)
            self.instance.call("head_range_batch", *given, start, stop)

    def step_batch(self, sessions: Sequence[Session], tokens: Sequence[int]) -> None:
        """Read one token each, to the bits that :meth:`Session.step` gives.

        Raises:
            RangeError, CapacityError: as :meth:`Session.step`, before anything is read.
            NonFiniteError: from a sequence whose activations overflow; the others have read their token then.
        """
        for session, token in zip(sessions, tokens, strict=True):
            session.begin(token)
        results = self.advance_batch(sessions)
        while not all(isinstance(result, WalshError) or result for result in results):
            later = self.advance_batch(sessions)
            results = [old if isinstance(old, WalshError) else new for old, new in zip(results, later, strict=True)]
        for result in results:
            if isinstance(result, WalshError):
                raise result
        self.head_batch(sessions)

    @staticmethod
    def _handles(arrays: Arrays, sessions: Sequence[Session]) -> int:
        return arrays.put(np.array([session.handle for session in sessions], dtype=np.int32))

    def costs(self, position: int, rows: int | None = None) -> Costs:
        """Predicted instructions of one token after ``position`` others, the head for ``rows`` ids (all by default)."""
        with self.instance.arrays() as arrays:
            pointer = arrays.room(8 * 5)
            self.instance.call("costs", self.handle, position, self.vocab_size if rows is None else rows, pointer)
            return Costs(*(int(value) for value in arrays.get(pointer, (5,), "int64")))

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids int64 [T] of a text.

        Raises:
            ParameterError: if the file has no tokenizer.
            RangeError: for a character that a character vocabulary lacks.
        """
        content = text.encode("utf-8", errors="replace")
        with self.instance.arrays() as arrays:
            pointer = arrays.put(np.frombuffer(content, dtype=np.uint8))
            count = int(self.instance.call("encode", self.handle, pointer, len(content)))
        return np.frombuffer(self.instance.result(4 * count), dtype="<u4").astype(np.int64)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; empty for the end token.

        Raises:
            ParameterError: if the file has no tokenizer. RangeError: if there is no such token.
        """
        return self.instance.result(int(self.instance.call("token", self.handle, max(int(token), -1) & 0xFFFFFFFF)))

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """Text of token ids [T]; bytes that are no UTF-8 become U+FFFD, end tokens vanish."""
        return b"".join(self.token_bytes(int(token)) for token in ids).decode("utf-8", errors="replace")

    def generate(
        self, prompt: str, max_new_tokens: int = 200, sampling: Sampling | None = None, stop_at_end: bool = True
    ) -> Iterator[str]:
        """Continue a text, piece by piece; a piece never ends inside a character.

        Args:
            prompt: if empty, the end token stands for it: the start of a document. A prompt longer than the context is
                cut at its beginning.
            max_new_tokens: how many tokens at most.
            sampling: greedy by default.
            stop_at_end: stop after the end token.

        Yields:
            Text, never empty.
        """
        ids = self.encode(prompt)
        if ids.size == 0:
            if self.end_token is None or self.end_token >= self.vocab_size:
                raise ShapeError("an empty prompt for a model without an end token: give at least one token")
            ids = np.array([self.end_token], dtype=np.int64)
        ids = ids[-self.block_size :]
        count = min(max_new_tokens, self.block_size - ids.size + 1)
        session = self.new_session(ids.size + count)
        try:
            session.prefill(ids)
            for i in range(count):
                token = session.sample(sampling)
                if token == self.end_token and stop_at_end:
                    break
                if text := session.text(token):
                    yield text
                if i + 1 < count:
                    session.step(token)
            if text := session.text(None):
                yield text
        finally:
            session.close()


class Session:
    """One sequence: its tokens, its cache and the logits of its last token. Made by :meth:`Engine.new_session`."""

    def __init__(self, engine: Engine, handle: int) -> None:
        self._engine, self._instance, self.handle = engine, engine.instance, handle

    def __len__(self) -> int:
        return int(self._instance.call("length", self.handle))

    def close(self) -> None:
        """Let go of the sequence."""
        self._instance.call("drop_session", self.handle)

    def prefill(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Read tokens [T]; on an error the sequence is as it was.

        Raises:
            RangeError: an id outside the vocabulary. CapacityError: more tokens than fit.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        with self._instance.arrays() as arrays:
            self._instance.call("prefill", self.handle, arrays.put(tokens), tokens.size)

    def step(self, token: int) -> None:
        """Read one token; errors as :meth:`prefill`."""
        self._instance.call("step", self.handle, int(token))

    def begin(self, token: int) -> None:
        """Start on a token: :meth:`advance` until it is true, then :meth:`head`."""
        self._instance.call("begin", self.handle, int(token))

    def begin_tokens(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Start on tokens [T] that follow each other, to be read together; on an error nothing has changed."""
        tokens = np.asarray(ids, dtype=np.int64)
        with self._instance.arrays() as arrays:
            self._instance.call("begin_tokens", self.handle, arrays.put(tokens), tokens.size)

    def advance(self) -> bool:
        """One block of the token in work; true once it is part of the sequence."""
        return bool(self._instance.call("advance", self.handle))

    def begin_head(self) -> None:
        """Quantise the last token for the head; :meth:`Engine.head_range_batch` does the rest."""
        self._instance.call("begin_head", self.handle)

    def save(self) -> bytes:
        """The sequence as bytes, tokens in work included, logits not: for :meth:`Engine.restore_session`."""
        return self._instance.result(int(self._instance.call("save_session", self.handle)))

    def head(self) -> None:
        """Logits of the last token."""
        self._instance.call("head", self.handle)

    @property
    def logits(self) -> NDArray[np.float32]:
        """float32 [V] of the last token; a copy.

        Raises:
            ShapeError: if no token has been read.
        """
        pointer = self._instance.call("logits", self.handle)
        if pointer == 0:
            raise ShapeError("no logits: read at least one token first")
        return np.array(self._instance.view(pointer, (self._engine.vocab_size,), "float32"))

    @property
    def hidden(self) -> NDArray[np.float32]:
        """float32 [C], the residual stream of the token in work, or of the last one; a copy."""
        return np.array(
            self._instance.view(self._instance.call("hidden", self.handle), (self._engine.n_embd,), "float32")
        )

    def sample(self, sampling: Sampling | None = None) -> int:
        """Draw the next token from the logits; it is not read.

        Raises:
            ParameterError: sampling that is not defined. ShapeError: without logits.
        """
        return int(self._instance.call("sample", self.handle, *(sampling or Sampling()).arguments()))

    def generate(
        self, max_new_tokens: int, sampling: Sampling | None = None, stop: int | None = None
    ) -> NDArray[np.int64]:
        """Draw tokens and read each but the last, in one call of the engine.

        Args:
            max_new_tokens: how many at most.
            sampling: greedy by default.
            stop: a token that ends it.

        Returns:
            int64 [drawn].
        """
        drawing = (sampling or Sampling()).arguments()
        with self._instance.arrays() as arrays:
            pointer = arrays.room(8 * max_new_tokens)
            end = -1 if stop is None else stop
            count = int(self._instance.call("generate", self.handle, max_new_tokens, end, *drawing, pointer))
            return arrays.get(pointer, (count,), "int64")

    def text(self, token: int | None) -> str:
        """Text that a token completes, possibly none; None ends the text and gives what is left."""
        end = -1 if token is None else int(token)
        return self._instance.result(int(self._instance.call("text", self.handle, end))).decode("utf-8")

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens; logits are gone.

        Raises:
            RangeError: for a length that the sequence does not have.
        """
        self._instance.call("truncate", self.handle, length)

    def fork(self) -> Session:
        """An independent copy."""
        return Session(self._engine, int(self._instance.call("fork", self.handle)))
