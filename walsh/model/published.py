"""Names, configurations and tokenizers of published Walsh models, and ours for the same things.

    tok_embeddings.weight                                   embedding.weight
    tok_embeddings.emb_tables.{i}.weight, .importance.weight    embedding.tables.{i}, embedding.importance
    tok_embeddings.all_indices                              embedding.indices
    layers.{l}.attention.wq.weight | .beta | .alpha         blocks.{l}.attention.wq.weight | .beta | .alpha
    layers.{l}.attention.head_mixer.W | .beta               blocks.{l}.mixer.weight | .beta
    layers.{l}.feed_forward.gate_proj.weight                blocks.{l}.ffn.gate.weight
    layers.{l}.attention_norm.weight, .ffn_norm.weight      blocks.{l}.attention_norm.weight, .ffn_norm.weight
    norm.weight, output.weight                              norm.weight, head.weight (dropped where it is tied)

``_orig_mod.`` (torch.compile) and ``module.`` (DistributedDataParallel) before a name are dropped, and so is ``inner.``
inside one. The configuration is read from the shapes; what shapes cannot say (heads, context) comes from the file's own
configuration or the caller. Works on whatever has ``shape`` and ``ndim``: tensors and arrays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from walsh.algebra import DIMENSIONS
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer, Gpt2Tokenizer, Tokenizer
from walsh.errors import ParameterError, ShapeError
from walsh.model.config import WalshConfig


class Shaped(Protocol):
    """A tensor or an array."""

    @property
    def shape(self) -> Any:
        """Lengths of its axes."""

    @property
    def ndim(self) -> int:
        """How many they are."""


T = TypeVar("T")
S = TypeVar("S", bound=Shaped)

_RULES = (
    (r"tok_embeddings\.weight", r"embedding.weight"),
    (r"tok_embeddings\.emb_tables\.(\d+)\.weight", r"embedding.tables.\1"),
    (r"tok_embeddings\.importance(?:\.weight)?", r"embedding.importance"),
    (r"tok_embeddings\.(?:hash_|all_)?indices", r"embedding.indices"),
    (r"layers\.(\d+)\.attention\.head_mixer\.W", r"blocks.\1.mixer.weight"),
    (r"layers\.(\d+)\.attention\.head_mixer\.beta", r"blocks.\1.mixer.beta"),
    (r"layers\.(\d+)\.attention\.(w[qkvo])\.(weight|alpha|beta)", r"blocks.\1.attention.\2.\3"),
    (r"layers\.(\d+)\.feed_forward\.(gate|up|down)_proj\.(weight|alpha|beta)", r"blocks.\1.ffn.\2.\3"),
    (r"layers\.(\d+)\.(attention_norm|ffn_norm)\.weight", r"blocks.\1.\2.weight"),
    (r"norm\.weight", r"norm.weight"),
    (r"output\.weight", r"head.weight"),
)

_RECOMPUTED = re.compile(
    r"(.*\.)?(freqs_cis|freqs_cos|freqs_sin|inv_freq|causal_mask|mask|rope\.\w+|H|signs|widx|hash_[ab]|prime)"
)
"""Tables and constants that follow from the configuration or the indices: a file's copy of them says nothing."""

_FROM_FILE = ("n_head", "block_size", "rule", "ste_clip", "hash_scale")
"""Keys that are taken from the file's own configuration; the other ones are seen in the shapes."""

_CHECKED = ("n_layer", "n_embd", "vocab_size")
"""Keys that must be what the weights have."""


def rename(tensors: Mapping[str, T]) -> dict[str, T]:
    """Published names to those of SPEC.md.

    Raises:
        ParameterError: a name that published models do not have, or two names for one weight.
    """
    result: dict[str, T] = {}
    for name, tensor in tensors.items():
        short = re.sub(r"^(?:_orig_mod\.|module\.)+", "", name).replace("._orig_mod.", ".").replace(".inner.", ".")
        if _RECOMPUTED.fullmatch(short):
            continue
        new = next((re.sub(pattern, to, short) for pattern, to in _RULES if re.fullmatch(pattern, short)), None)
        if new is None:
            raise ParameterError(f"weight {name!r} is unknown: no published Walsh model has it")
        if new in result:
            raise ParameterError(f"weight {name!r} occurs twice, with and without a prefix; keep one")
        result[new] = tensor
    return result


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a setting that :func:`infer_config` would not heed.

    Raises:
        ParameterError: a key that is no part of a configuration, or that is seen in the weights.
    """
    heeded = {*_FROM_FILE, *_CHECKED, "activation_bits"}
    for key in settings:
        if key not in heeded:
            raise ParameterError(f"setting {key!r}: expected one of {', '.join(sorted(heeded))}; weights say the rest")


def infer_config(weights: Mapping[str, S], given: Mapping[str, Any]) -> WalshConfig:
    """The configuration that weights have.

    Args:
        weights: under the names of SPEC.md.
        given: what is known otherwise; keys other than ours are the file's own affair (dropout, learning rates).

    Raises:
        ParameterError: a weight or a key is missing, or one contradicts the weights.
    """
    try:
        table = weights["embedding.tables.0"] if "embedding.tables.0" in weights else weights["embedding.weight"]
        wq, gate = weights["blocks.0.attention.wq.weight"], weights["blocks.0.ffn.gate.weight"]
        entries = weights["embedding.importance"] if "embedding.tables.0" in weights else table
    except KeyError as error:
        raise ParameterError(f"weight {error.args[0]!r} is missing: is this a Walsh model?") from None
    mixer = weights.get("blocks.0.mixer.weight", wq)
    parts = (("embedding", table, 2), ("importance", entries, 2), ("wq", wq, 3), ("gate", gate, 3), ("mixer", mixer, 3))
    for name, weight, axes in parts:
        if weight.ndim != axes or 0 in weight.shape:
            raise ShapeError(f"the weight of {name} has shape {list(weight.shape)}: expected {axes} axes, none empty")
    n = wq.shape[0]
    hadamard = "blocks.0.attention.wq.alpha" in weights
    names = {size: name for name, size in DIMENSIONS.items()}
    if not hadamard and n not in names:
        raise ParameterError(f"linear layers have {n} blocks: expected one of {sorted(names)}, or a Hadamard's alpha")
    tables = sum(name.startswith("embedding.tables.") for name in weights)
    seen: dict[str, Any] = {
        "algebra": "hadamard" if hadamard else names[n],
        "n_layer": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "n_embd": table.shape[1],
        "vocab_size": entries.shape[0],
        "ffn_hidden": gate.shape[0] * gate.shape[1],
        "head_mixing": "blocks.0.mixer.weight" in weights,
        "hash_embeddings": tables,
        "tied_head": "head.weight" not in weights,
    }
    if hadamard:
        seen["hadamard_size"] = n
    for key, value in seen.items():
        if key in given and key in _CHECKED and given[key] != value:
            raise ParameterError(f"config {key} is {given[key]}, the weights have {value}: which file is this from?")
    if seen["head_mixing"]:
        seen["n_head"] = table.shape[1] // weights["blocks.0.mixer.weight"].shape[1]
    known = {key: given[key] for key in _FROM_FILE if key in given}
    defaults = {"block_size": 1024, "hash_scale": tables == 3, "activation_bits": given.get("activation_bits")}
    if "n_head" not in {**seen, **known}:
        raise ParameterError("n_head is not in the file and cannot be seen in the weights; give it: --set n_head=8")
    return WalshConfig.from_dict({**defaults, **seen, **known})


def published_names(config: WalshConfig, indices: bool = False) -> dict[str, str]:
    """Our name of every weight and the published one, in the order of the forward pass.

    Args:
        config: of the model.
        indices: whether a hash embedding stores its indices.
    """
    names = [*config.weight_shapes(), *(["embedding.indices"] if indices else [])]
    result = {}
    for name in names:
        new = re.sub(r"^blocks\.", "layers.", name)
        new = re.sub(
            r"\.mixer\.(weight|beta)$", lambda m: f".attention.head_mixer.{'W' if m[1] == 'weight' else m[1]}", new
        )
        new = re.sub(r"\.ffn\.(gate|up|down)\.", r".feed_forward.\1_proj.", new)
        new = re.sub(r"^head\.", "output.", new)
        new = re.sub(r"^embedding\.tables\.(\d+)$", r"tok_embeddings.emb_tables.\1.weight", new)
        new = new.replace("embedding.importance", "tok_embeddings.importance.weight")
        new = new.replace("embedding.indices", "tok_embeddings.all_indices")
        result[name] = re.sub(r"^embedding\.weight$", "tok_embeddings.weight", new)
    return result


def published_config(config: WalshConfig) -> dict[str, Any]:
    """The configuration as published code takes it.

    Raises:
        ParameterError: for a model that published code cannot be told of.
    """
    known = config.algebra == "octonion" or (config.algebra == "hadamard" and config.hadamard_size == 32)
    standard = WalshConfig.from_dict({**config.to_dict(), "ffn_hidden": None}).ffn_hidden == config.ffn_hidden
    if not (known and standard and config.ternary and config.tied_head and config.hash_embeddings in (0, 3)):
        raise ParameterError(
            "published code knows ternary octonion and 32-component Hadamard models with a tied head, the standard "
            "hidden width and 0 or 3 hash tables: keep others as .walsh"
        )
    if config.hash_embeddings and not config.hash_scale:
        raise ParameterError("published code scales hash embeddings by sqrt(C), this model does not: keep it as .walsh")
    keys = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "algebra", "head_mixing")
    return {key: getattr(config, key) for key in keys} | {
        "hash_embeddings": bool(config.hash_embeddings),
        "dropout": 0.0,
        "bias": False,
    }


SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The 65 characters of tiny Shakespeare, which published character models were trained on."""


def tokenizer_for(vocab_size: int, characters: str | None = None) -> Tokenizer:
    """The tokenizer of a published model, of which its file has only the size.

    Args:
        vocab_size: 65 characters, 257 bytes, GPT-2's 50,257 tokens, or that number padded to 50,304.
        characters: those of a vocabulary of at most 256.

    Raises:
        ParameterError: no tokenizer is known for this size, or the characters are not as many.
    """
    if characters is None and vocab_size == len(SHAKESPEARE):
        characters = SHAKESPEARE
    if characters is not None:
        tokenizer = CharacterTokenizer(characters)
        if vocab_size not in (tokenizer.end_token, tokenizer.vocab_size):
            raise ParameterError(f"{tokenizer.end_token} different characters for a vocabulary of {vocab_size}")
        return tokenizer
    known: dict[int, type[Gpt2Tokenizer] | type[ByteTokenizer]] = {
        50257: Gpt2Tokenizer,
        50304: Gpt2Tokenizer,
        257: ByteTokenizer,
    }
    if vocab_size not in known:
        raise ParameterError(
            f"a vocabulary of {vocab_size}: expected {', '.join(map(str, known))}; no tokenizer is known for it; "
            "if it is one of characters, give them: --characters"
        )
    return known[vocab_size]()
