"""Models that continue texts, whatever engine computes them.

    text of a prompt = decoded tokens up to the end token, without the first stop text

The sequence of tokens is defined here once for every engine. Token i of a text is drawn at position i. A context that
is full keeps its last half, the newest token included, which is read anew at positions of the context from 0 on; a
prompt longer than the context loses its beginning. The repetition penalty looks at the tokens in the context. With
strict arithmetic (a file with int8 activations) all engines give the same tokens.

This module needs NumPy only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any, Literal, overload

from walsh.data.tokenizers import StreamDecoder, Tokenizer
from walsh.engine.model import Sampling
from walsh.errors import ParameterError, RangeError
from walsh.model.config import WalshConfig
from walsh.model.stop import StopFilter

_GOLDEN = 0x9E3779B97F4A7C15  # of ``uniform`` in SPEC.md, section *sampling*


def moved_seed(seed: int, places: int) -> int:
    """The seed that draws at position p what ``seed`` draws at position p + places: both add to one 64-bit state."""
    return (seed + places * _GOLDEN) & ((1 << 64) - 1)


class TokenSequence(ABC):
    """One growing sequence of an engine: the tokens in its context, and logits of the last."""

    length: int = 0

    @abstractmethod
    def read(self, ids: Sequence[int]) -> None:
        """Append tokens."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all tokens."""

    @abstractmethod
    def draw(self, sampling: Sampling, dropped: int) -> int:
        """The next token, which is not read; ``dropped`` tokens came before those in the context."""

    def close(self) -> None:  # noqa: B027  # most sequences hold nothing that has to be let go of
        """Let go of it."""


class LanguageModel(ABC):
    """A loaded model.

    Attributes:
        engine: ``wasm`` or ``torch``.
        config: of the model.
        tokenizer: that its file carries, or None.
    """

    engine: str

    def __init__(self, config: WalshConfig, tokenizer: Tokenizer | None) -> None:
        self.config, self.tokenizer = config, tokenizer

    @property
    @abstractmethod
    def resident(self) -> int:
        """Bytes of the weights in memory."""

    @property
    def strict(self) -> bool:
        """Whether the tokens are the same on every engine and machine."""
        return self.config.activation_bits is not None

    @abstractmethod
    def new_sequence(self, capacity: int) -> TokenSequence:
        """An empty sequence of at most ``capacity`` tokens."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            ParameterError: a model without a tokenizer. RangeError: a character that it lacks.
        """
        return [int(token) for token in self._tokenizer().encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer().decode(ids)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ParameterError("the file has no tokenizer: generate from token ids with .tokens()")
        return self.tokenizer

    def tokens(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling | None = None, stop: int | None = None
    ) -> Iterator[int]:
        """Continue token ids.

        Args:
            ids: the prompt, at least one; of one longer than the context the end is read.
            max_tokens: how many to draw at most; the context slides.
            sampling: greedy by default.
            stop: a token that ends the sequence and is not given.

        Yields:
            Token ids.

        Raises:
            ParameterError: sampling that is not defined, no prompt, negative max_tokens. RangeError: an id outside the
            vocabulary.
        """
        sampling = sampling or Sampling()
        sampling.arguments()
        if max_tokens < 0:
            raise ParameterError(f"max_tokens {max_tokens}: expected at least 0")
        if not len(ids):
            raise ParameterError("an empty prompt: begin with at least one token, such as the end token")
        return self._tokens(list(ids), max_tokens, sampling, stop)

    def _tokens(self, known: list[int], max_tokens: int, sampling: Sampling, stop: int | None) -> Iterator[int]:
        window = self.config.block_size
        if max_tokens == 0:
            return
        sequence = self.new_sequence(min(window, len(known) + max_tokens))
        try:
            sequence.read(known[-window:])
            for number in range(max_tokens):
                token = sequence.draw(sampling, len(known) - sequence.length)
                if token == stop:
                    return
                yield token
                known.append(token)
                if number + 1 == max_tokens:
                    return
                if sequence.length < window:
                    sequence.read([token])
                else:
                    sequence.clear()
                    sequence.read(known[-max(window // 2, 1) :])
        finally:
            sequence.close()

    @overload
    def generate(
        self,
        prompt: str = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
        stop: str | Sequence[str] = ...,
        stream: Literal[False] = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str = ...,
        max_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
        stop: str | Sequence[str] = ...,
        *,
        stream: Literal[True],
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str = "",
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Continue a text.

        Args:
            prompt: an empty one stands for the start of a document.
            max_tokens: at most; the end token ends a text sooner.
            temperature: 0 takes the most likely token.
            top_k: choose among so many; 0 for all.
            top_p: choose among the fewest with this much probability.
            repetition_penalty: above 1 makes tokens of the context less likely.
            seed: the same seed gives the same text.
            stop: a text, or several, before which to end.
            stream: give pieces as they come; a piece is never empty and never ends inside a character.

        Returns:
            The continuation, without the prompt; or an iterator over its pieces.

        Raises:
            ParameterError: arguments out of range or of another type, or a model without a tokenizer. RangeError: a
            character that the tokenizer lacks.
        """
        _check_types(prompt, max_tokens, temperature, top_p, repetition_penalty, stop)
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        pieces = self.pieces(prompt, max_tokens, sampling, [stop] if isinstance(stop, str) else list(stop))
        return pieces if stream else "".join(pieces)

    def pieces(self, prompt: str, max_tokens: int, sampling: Sampling, stop: Sequence[str] = ()) -> Iterator[str]:
        """What :meth:`generate` streams; arguments and errors as there, raised at once."""
        tokenizer, held = self._tokenizer(), StopFilter(stop)
        ids = self.encode(prompt) or [tokenizer.end_token]
        if ids[0] >= self.config.vocab_size:
            raise RangeError("an empty prompt for a model without an end token: give at least one character")
        return _texts(self.tokens(ids, max_tokens, sampling, tokenizer.end_token), tokenizer.stream(), held)


def _check_types(prompt: Any, max_tokens: Any, temperature: Any, top_p: Any, penalty: Any, stop: Any) -> None:
    """Raise ParameterError for what is no text, whole number or number; ``Sampling`` checks the others."""
    if not isinstance(prompt, str):
        raise ParameterError(f"prompt {prompt!r}: expected a text; tokens() takes token ids")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, Integral):
        raise ParameterError(f"max_tokens {max_tokens!r}: expected a whole number")
    for name, value in (("temperature", temperature), ("top_p", top_p), ("repetition_penalty", penalty)):
        if not isinstance(value, Real):
            raise ParameterError(f"{name} {value!r}: expected a number")
    if not isinstance(stop, str) and not (isinstance(stop, Sequence) and all(isinstance(one, str) for one in stop)):
        raise ParameterError(f"stop {stop!r}: expected a text or several")


def _texts(tokens: Iterator[int], decoder: StreamDecoder, held: StopFilter) -> Iterator[str]:
    for token in tokens:
        if piece := held.push(decoder.push(token)):
            yield piece
        if held.ended:
            return
    if rest := held.push(decoder.finish()) + held.finish():
        yield rest
