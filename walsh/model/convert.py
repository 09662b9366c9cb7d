"""Published PyTorch checkpoints of Walsh models, read without unpickling code.

    tok_embeddings.weight                                   embedding.weight
    tok_embeddings.emb_tables.{i}.weight, .importance.weight    embedding.tables.{i}, embedding.importance
    layers.{l}.attention.wq.weight | .beta | .alpha         blocks.{l}.attention.wq.weight | .beta | .alpha
    layers.{l}.attention.head_mixer.W | .beta               blocks.{l}.mixer.weight | .beta
    layers.{l}.feed_forward.gate_proj.weight                blocks.{l}.ffn.gate.weight
    layers.{l}.attention_norm.weight, .ffn_norm.weight      blocks.{l}.attention_norm.weight, .ffn_norm.weight
    norm.weight, output.weight                              norm.weight, head.weight (dropped where it is tied)

``_orig_mod.`` (torch.compile) and ``module.`` (DistributedDataParallel) before a name are dropped. The configuration is
read from the shapes; what shapes cannot say (heads, context) comes from the file's own configuration or the caller.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from walsh.algebra import DIMENSIONS
from walsh.data.tokenizers import ByteTokenizer, Gpt2Tokenizer, Tokenizer
from walsh.errors import DataError, FormatError, ParameterError, ShapeError
from walsh.model.checkpoint import Checkpoint
from walsh.model.config import WalshConfig

_RULES = (
    (r"tok_embeddings\.weight", r"embedding.weight"),
    (r"tok_embeddings\.emb_tables\.(\d+)\.weight", r"embedding.tables.\1"),
    (r"tok_embeddings\.importance(?:\.weight)?", r"embedding.importance"),
    (r"tok_embeddings\.(?:hash_)?indices", r"embedding.indices"),
    (r"layers\.(\d+)\.attention\.head_mixer\.W", r"blocks.\1.mixer.weight"),
    (r"layers\.(\d+)\.attention\.head_mixer\.beta", r"blocks.\1.mixer.beta"),
    (r"layers\.(\d+)\.attention\.(w[qkvo])\.(weight|alpha|beta)", r"blocks.\1.attention.\2.\3"),
    (r"layers\.(\d+)\.feed_forward\.(gate|up|down)_proj\.(weight|alpha|beta)", r"blocks.\1.ffn.\2.\3"),
    (r"layers\.(\d+)\.(attention_norm|ffn_norm)\.weight", r"blocks.\1.\2.weight"),
    (r"norm\.weight", r"norm.weight"),
    (r"output\.weight", r"head.weight"),
)

_RECOMPUTED = re.compile(r"(.*\.)?(freqs_cis|freqs_cos|freqs_sin|inv_freq|causal_mask|mask|rope\.\w+)")
"""Tables that follow from the configuration, so that a file's copy of them says nothing."""

_FROM_FILE = ("n_head", "block_size", "rule", "ste_clip", "hash_scale")
"""Keys that are taken from the file's own configuration; the other ones are seen in the shapes."""


def read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a ``.pt`` file.

    Raises:
        DataError: no such file. FormatError: not a checkpoint, or one that holds code besides tensors.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a checkpoint that torch.save wrote")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise FormatError(
            f"{path}: holds more than tensors and plain values, which is not loaded ({reason}); save its state_dict() "
            "and a plain dict of its configuration"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise FormatError(f"{path}: not a PyTorch checkpoint ({str(error).partition(chr(10))[0][:200]})") from None
    if not isinstance(record, Mapping):
        raise FormatError(f"{path}: holds {type(record).__name__}: expected a dict of tensors")
    config: Any = next((record[k] for k in ("config", "model_args", "model_config") if k in record), {})
    states: Any = next((record[k] for k in ("model", "model_state_dict", "state_dict") if k in record), record)
    if not isinstance(config, Mapping) or not isinstance(states, Mapping):
        raise FormatError(f"{path}: its configuration or state is no dict; save plain dicts")
    tensors = {str(name): tensor for name, tensor in states.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise FormatError(f"{path}: holds no tensors under model, model_state_dict or state_dict")
    return tensors, dict(config)


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of SPEC.md.

    Raises:
        ParameterError: a name that published models do not have, or two names for one weight.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = re.sub(r"^(?:_orig_mod\.|module\.)+", "", name).replace("._orig_mod.", ".")
        if _RECOMPUTED.fullmatch(short):
            continue
        new = next((re.sub(pattern, to, short) for pattern, to in _RULES if re.fullmatch(pattern, short)), None)
        if new is None:
            raise ParameterError(f"weight {name!r} is unknown: no published Walsh model has it")
        if new in result:
            raise ParameterError(f"weight {name!r} occurs twice, with and without a prefix; keep one")
        result[new] = tensor
    return result


def infer_config(weights: Mapping[str, Tensor], given: Mapping[str, Any]) -> WalshConfig:
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
    except KeyError as error:
        raise ParameterError(f"weight {error.args[0]!r} is missing: is this a Walsh model?") from None
    if wq.ndim != 3:
        raise ShapeError(f"weight 'blocks.0.attention.wq.weight' has shape {list(wq.shape)}: expected [n, N, K]")
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
        "vocab_size": weights["embedding.importance"].shape[0] if tables else table.shape[0],
        "ffn_hidden": gate.shape[0] * gate.shape[1],
        "head_mixing": "blocks.0.mixer.weight" in weights,
        "hash_embeddings": tables,
        "tied_head": "head.weight" not in weights,
    }
    if hadamard:
        seen["hadamard_size"] = n
    for key, value in seen.items():
        if key in given and key in ("n_layer", "n_embd", "vocab_size") and given[key] != value:
            raise ParameterError(f"config {key} is {given[key]}, the weights have {value}: which file is this from?")
    if seen["head_mixing"]:
        seen["n_head"] = table.shape[1] // weights["blocks.0.mixer.weight"].shape[1]
    known = {key: given[key] for key in _FROM_FILE if key in given}
    defaults = {"block_size": 1024, "hash_scale": tables == 3, "activation_bits": given.get("activation_bits")}
    if "n_head" not in {**seen, **known}:
        raise ParameterError("n_head is not in the file and cannot be seen in the weights; give it: --set n_head=8")
    return WalshConfig.from_dict({**defaults, **seen, **known})


def convert(path: Path, given: Mapping[str, Any] | None = None) -> Checkpoint:
    """A checkpoint of ours from a published one.

    Args:
        path: of the ``.pt`` file.
        given: configuration keys that the file lacks or has wrong.

    Raises:
        As :func:`read_published`, :func:`rename` and :func:`infer_config`; ShapeError: a weight of another shape.
    """
    tensors, config = read_published(path)
    weights = rename(tensors)
    head, table = weights.get("head.weight"), weights.get("embedding.weight")
    hashed = "embedding.tables.0" in weights
    if head is not None and table is not None and torch.equal(head, table):
        del weights["head.weight"]
    if hashed and (indices := weights.get("embedding.indices")) is not None and len(indices) < indices.shape[-1]:
        weights["embedding.indices"] = indices.t().contiguous()
    found = infer_config(weights, {**config, **(given or {})})
    shapes = found.weight_shapes()
    fitted = {name: _fit(name, tensor, shapes.get(name)) for name, tensor in weights.items()}
    return Checkpoint(fitted, found.to_dict(), _tokenizer(found.vocab_size).to_dict(), state={"converted": path.name})


def _fit(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Scales may be stored as one number, or with axes of length 1; everything else is checked where it is loaded."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if shape is None or not name.endswith((".alpha", ".beta")) or tuple(tensor.shape) == shape:
        return tensor
    if tensor.numel() == 1:
        return tensor.reshape(()).expand(shape).clone()
    return tensor.reshape(shape) if tuple(tensor.squeeze().shape) == shape else tensor


def _tokenizer(vocab_size: int) -> Tokenizer:
    """GPT-2's for its 50,257 tokens or that number padded to 50,304; bytes for 257."""
    known: dict[int, type[Gpt2Tokenizer] | type[ByteTokenizer]] = {
        50257: Gpt2Tokenizer,
        50304: Gpt2Tokenizer,
        257: ByteTokenizer,
    }
    if vocab_size not in known:
        raise ParameterError(
            f"a vocabulary of {vocab_size}: expected {', '.join(map(str, known))}; no tokenizer is known for it"
        )
    return known[vocab_size]()
