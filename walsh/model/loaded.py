"""The engines behind ``walsh.load``: the Wasm engine, PyTorch on packed weights, and a checkpoint as it was trained.

    model = walsh.load("model.walsh")                      # or a checkpoint, or a published SPIN file
    model.generate("Once upon a time", max_tokens=200)     # a text
    for piece in model.generate("Once", stream=True): ...  # the same, as it comes

What is generated is defined in ``walsh.model.language``. PyTorch and wasmtime are imported by the engine that is asked
for.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from walsh.codec import spin
from walsh.codec.reader import outline
from walsh.codec.sources import Source, detect, naming, read_source, strict_form_of, without_unused_rows
from walsh.codec.writer import dump
from walsh.data.tokenizers import Tokenizer
from walsh.engine.model import Sampling
from walsh.errors import BackendError, DataError, ParameterError
from walsh.model.config import WalshConfig
from walsh.model.language import LanguageModel, TokenSequence, moved_seed

if TYPE_CHECKING:
    from torch import Tensor

    from walsh.engine.model import Engine
    from walsh.model.packed import PackedModel
    from walsh.model.transformer import Walsh

ENGINES = ("wasm", "torch")


class WasmSequence(TokenSequence):
    """A session of the engine."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._session = engine.new_session(capacity)

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        self._session.prefill(ids) if len(ids) > 1 else self._session.step(ids[0])
        self.length += len(ids)

    def clear(self) -> None:
        """Forget all tokens."""
        self._session.truncate(0)
        self.length = 0

    def draw(self, sampling: Sampling, dropped: int) -> int:
        """The next token, which is not read."""
        # The engine counts positions from the start of its session.
        seed = moved_seed(sampling.seed, dropped)
        moved = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty, seed)
        return self._session.sample(moved)

    def close(self) -> None:
        """Let go of it."""
        self._session.close()


class WasmModel(LanguageModel):
    """A model in the engine: one core, no PyTorch.

    Args:
        content: bytes of a .walsh file.
        config, tokenizer: what it says.
        options: of ``Engine``.
    """

    engine = "wasm"

    def __init__(self, content: bytes, config: WalshConfig, tokenizer: Tokenizer | None, **options: Any) -> None:
        from walsh.engine.model import Engine

        super().__init__(config, tokenizer)
        self.inner = Engine(content, **options)

    @property
    def resident(self) -> int:
        """Bytes of the weights and of the tokenizer's tables in memory."""
        memory = self.inner.memory
        return memory.weights + memory.tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids by the engine's own tokenizer: byte pairs need no other package."""
        self._tokenizer()
        return [int(token) for token in self.inner.encode(text)]

    def new_sequence(self, capacity: int) -> TokenSequence:
        """An empty sequence of at most ``capacity`` tokens."""
        return WasmSequence(self.inner, capacity)


class PackedSequence(TokenSequence):
    """A sequence of a packed model in PyTorch."""

    def __init__(self, model: PackedModel, capacity: int) -> None:
        self._model, self._cache = model, model.new_cache(capacity)
        self._ids: list[int] = []
        self._logits: Any = None

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        self._logits = self._model.logits(ids, self._cache)
        self._ids += ids
        self.length = len(self._ids)

    def clear(self) -> None:
        """Forget all tokens."""
        for layer in self._cache:
            layer.truncate(layer.lengths * 0)
        self._ids, self.length = [], 0

    def draw(self, sampling: Sampling, dropped: int) -> int:
        """The next token, which is not read."""
        import torch

        from walsh.kernels import torch as kernels

        chosen = kernels.sample(
            self._logits[None],
            torch.tensor([self._ids], device=self._logits.device),
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.repetition_penalty,
            sampling.seed,
            dropped + self.length,
        )
        return int(chosen[0])


class PackedTorchModel(LanguageModel):
    """A model in PyTorch, weights kept packed; strict where its activations are int8.

    Args:
        source: what a file holds; strict weights.
        device: such as ``cpu`` or ``cuda``.
    """

    engine = "torch"

    def __init__(self, source: Source, device: str | None = None) -> None:
        from walsh.model.packed import PackedModel

        super().__init__(source.config, source.tokenizer)
        self.inner = PackedModel(strict_form_of(source), source.config.to_dict(), device or "cpu")

    @property
    def resident(self) -> int:
        """Bytes of the weights in memory."""
        return self.inner.bytes

    def new_sequence(self, capacity: int) -> TokenSequence:
        """An empty sequence of at most ``capacity`` tokens."""
        return PackedSequence(self.inner, capacity)


class CheckpointModel(LanguageModel):
    """A checkpoint in PyTorch, in ordinary arithmetic: as it was trained.

    Args:
        path: of the checkpoint's or run's folder.
        device: such as ``cpu`` or ``cuda``.
    """

    engine = "torch"
    strict = False

    def __init__(self, path: Path, device: str | None = None) -> None:
        from walsh.model.text import load_model

        self.inner: Walsh
        self.inner, tokenizer = load_model(path, device or "cpu")
        super().__init__(self.inner.config, tokenizer)

    @property
    def resident(self) -> int:
        """Bytes of the weights in memory."""
        return sum(tensor.nbytes for tensor in self.inner.state_dict().values())

    def new_sequence(self, capacity: int) -> TokenSequence:
        """An empty sequence of at most ``capacity`` tokens."""
        return FloatSequence(self.inner, capacity, self._tokenizer().vocab_size)


class FloatSequence(PackedSequence):
    """A sequence of a checkpoint, in ordinary arithmetic; ids from ``vocabulary`` up are never drawn."""

    def __init__(self, model: Walsh, capacity: int, vocabulary: int) -> None:
        self._walsh, self._vocabulary = model, vocabulary
        self._cache = model.make_cache(1, capacity)
        self._ids, self._logits = [], None

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens."""
        import torch

        with torch.no_grad():
            tokens = torch.tensor([list(ids)], device=self._walsh.device)
            features = self._walsh.features(tokens, cache=self._cache)[:, -1]
            self._logits = self._walsh.logits(features)[0, : self._vocabulary].float()
        self._ids += ids
        self.length = len(self._ids)


def load(
    path: str | os.PathLike[str], engine: str | None = None, device: str | None = None, strict: bool = False
) -> LanguageModel:
    """Load a model for generation.

    Args:
        path: of a .walsh or SPIN file, a published .pt file, or the folder of a checkpoint or run.
        engine: ``wasm`` (a core of this machine, no PyTorch needed) or ``torch``. By default files are loaded by the
            first that is installed, checkpoints by ``torch``.
        device: for ``torch``, such as ``cuda``; the CPU by default.
        strict: of a checkpoint under ``torch``: round it as ``walsh compress`` does and use strict arithmetic, so that
            the tokens are those of the file. Files always do, where their activations are int8.

    Raises:
        DataError: nothing is there. FormatError: a damaged file. ParameterError: another engine. BackendError: an
        engine that is not installed. StrictError: a model that strict arithmetic cannot have.
    """
    path = Path(path)
    kind = detect(path)
    engine = engine or ("torch" if kind == "checkpoint" or not _installed("wasmtime") else "wasm")
    if engine not in ENGINES:
        raise ParameterError(f"engine {engine!r}: expected {' or '.join(ENGINES)}")
    if not _installed({"wasm": "wasmtime", "torch": "torch"}[engine]):
        raise BackendError(f"engine {engine!r} is not installed: pip install 'walsh[{engine}]'")
    if engine == "wasm" and device not in (None, "cpu"):
        raise ParameterError(f"device {device!r} with engine wasm: expected none; take --engine torch")
    if engine == "torch" and device is not None:
        from walsh.training.distributed import choose_device

        choose_device(device)  # one that cannot be used is told before anything is read
    if engine == "torch" and kind == "checkpoint" and not strict:
        return CheckpointModel(path, device)
    if engine == "wasm" and kind == "walsh":
        content = path.read_bytes()
        with naming(path):
            file = outline(content, verify=False)  # the engine compares the digests
            return WasmModel(content, WalshConfig.from_dict(file.config), file.tokenizer)
    source = without_unused_rows(read_source(path))
    if engine == "torch":
        return PackedTorchModel(source, device)
    content = dump(strict_form_of(source), source.config.to_dict(), source.tokenizer, prefer="speed")
    return WasmModel(content, source.config, source.tokenizer, verify=False)


def load_walsh(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of a file, as the guide of the published models has it.

    A SPIN file gives the published names, for published code: ``model.load_state_dict(state_dict, strict=False)``;
    ternary weights are float32. A .walsh file gives those of SPEC.md, for
    ``Walsh(WalshConfig.from_dict(config), weights=state_dict)``; ternary weights are int8 codes.

    Returns:
        (state_dict, config).

    Raises:
        DataError: nothing is there, or neither kind of file. FormatError: a damaged file.
    """
    import torch

    path = Path(path)
    kind = detect(path)
    if kind == "walsh":
        source = read_source(path)
        weights, config = source.trained, source.config.to_dict()
    elif kind == "spin":
        weights, config = spin.load_walsh(path)
        weights = {name: w.astype(np.float32) if w.dtype == np.int8 else w for name, w in weights.items()}
    else:
        raise DataError(f"{path} is a {kind}: expected a .walsh or SPIN file; load it with walsh.load")
    return {name: torch.from_numpy(np.ascontiguousarray(weight)) for name, weight in weights.items()}, config


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
