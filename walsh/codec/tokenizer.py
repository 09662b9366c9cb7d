"""The byte-pair tokenizer that a file carries: GPT-2's rules with the file's own ranks.

A token's id is its rank, the end token comes after the last. Splitting and merging are tiktoken's here and
``canister/engine/src/tokenizer.rs`` in the engine; both give the same ids.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from walsh.data.tokenizers import GPT2_PATTERN, Tokenizer
from walsh.errors import DataError, FormatError

if TYPE_CHECKING:
    import tiktoken


class BytePairTokenizer(Tokenizer):
    """Byte pairs by rank.

    Args:
        tokens: bytes of every token in the order of rank.

    Raises:
        FormatError: unless all 256 single bytes are among them and none stands twice.
    """

    kind = "gpt2"

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tuple(tokens)
        known = set(self.tokens)
        if len(known) != len(self.tokens):
            raise FormatError("two tokens have the same bytes")
        if missing := [byte for byte in range(256) if bytes([byte]) not in known]:
            raise FormatError(f"no token is the single byte {missing[0]}")
        self.end_token = len(self.tokens)
        self.vocab_size = self.end_token + 1

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        try:
            import tiktoken
        except ModuleNotFoundError:
            raise DataError(
                "byte pairs are split by tiktoken: pip install 'walsh[data]', or take the engine: --engine wasm"
            ) from None
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        return tiktoken.Encoding("file", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids int64 [T] of a text.

        Raises:
            DataError: if tiktoken is not installed.
        """
        return np.asarray(self._encoding.encode_ordinary(text), dtype=np.int64)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for the end token."""
        return b"" if self.check(token) == self.end_token else self.tokens[token]

    def to_dict(self) -> dict[str, Any]:
        """Its kind; the tokens are a tensor of the file."""
        return {"kind": self.kind}
