"""Walsh tokenizers for the package transformers.

    token of id i = the bytes that i stands for, one character each (Latin-1); text = their UTF-8

The end token, which never comes out of a text, begins, ends and pads sequences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from walsh.data.tokenizers import ByteTokenizer, Tokenizer, from_dict

END = "<|endoftext|>"

FILE = "walsh_tokenizer.json"


class WalshTokenizer(PreTrainedTokenizer):  # type: ignore[misc]  # transformers is not typed
    """A tokenizer of ``walsh.data`` with the interface of transformers.

    Args:
        vocab_file: that :meth:`save_vocabulary` wrote; bytes if there is none.
        given: what transformers passes on.
    """

    vocab_files_names = {"vocab_file": FILE}  # noqa: RUF012  # transformers' own way
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012  # likewise

    def __init__(self, vocab_file: str | None = None, **given: Any) -> None:
        record = json.loads(Path(vocab_file).read_text(encoding="utf-8")) if vocab_file else ByteTokenizer().to_dict()
        self.inside: Tokenizer = from_dict(record)
        self._tokens = [self.inside.token_bytes(i).decode("latin-1") for i in range(self.inside.vocab_size)]
        self._tokens[self.inside.end_token] = END
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        # Written in a text, the name of the end token is text.
        usual = {"bos_token": END, "eos_token": END, "pad_token": END, "split_special_tokens": True}
        usual["padding_side"] = "left"  # where a continuation needs it
        super().__init__(**usual | given)

    @property
    def vocab_size(self) -> int:
        """V, the end token counted."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        return dict(self._ids)

    def _tokenize(self, text: str, **_ignored: Any) -> list[str]:
        return [self._tokens[i] for i in self.inside.encode(text)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[self.inside.check(index)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return "".join(tokens).encode("latin-1").decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the tokenizer's record."""
        path = Path(save_directory) / (f"{filename_prefix}-{FILE}" if filename_prefix else FILE)
        path.write_text(json.dumps(self.inside.to_dict(), sort_keys=True) + "\n", encoding="utf-8")
        return (str(path),)
