"""Corpora, tokenizers and token files."""

from walsh.data.corpora import Corpus, cache_folder, open_corpus
from walsh.data.download import download
from walsh.data.prepare import Dataset, load_dataset, prepare
from walsh.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    Gpt2Tokenizer,
    StreamDecoder,
    Tokenizer,
    from_dict,
)
from walsh.data.tokens import read_tokens, write_tokens

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "Corpus",
    "Dataset",
    "Gpt2Tokenizer",
    "StreamDecoder",
    "Tokenizer",
    "cache_folder",
    "download",
    "from_dict",
    "load_dataset",
    "open_corpus",
    "prepare",
    "read_tokens",
    "write_tokens",
]
