"""Published PyTorch checkpoints of Walsh models, read without unpickling code (names: ``walsh.model.published``).

FILE.pt   {"model": tensors by published name, "model_args" or "config": a dict}   -> a checkpoint of ours
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from walsh.errors import DataError, FormatError
from walsh.model.checkpoint import Checkpoint
from walsh.model.published import infer_config, rename, tokenizer_for


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


def convert(path: Path, given: Mapping[str, Any] | None = None, characters: str | None = None) -> Checkpoint:
    """A checkpoint of ours from a published one.

    Args:
        path: of the ``.pt`` file.
        given: configuration keys that the file lacks or has wrong.
        characters: of a model whose vocabulary is characters; those of tiny Shakespeare if it has 65.

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
    return Checkpoint(
        fitted, found.to_dict(), tokenizer_for(found.vocab_size, characters).to_dict(), state={"converted": path.name}
    )


def _fit(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Scales may be stored as one number, or with axes of length 1; everything else is checked where it is loaded."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if shape is None or not name.endswith((".alpha", ".beta")) or tuple(tensor.shape) == shape:
        return tensor
    if tensor.numel() == 1:
        return tensor.reshape(()).expand(shape).clone()
    return tensor.reshape(shape) if tuple(tensor.squeeze().shape) == shape else tensor
