"""A model in PyTorch whose weights stay in memory as small as a file has them.

    ternary codes     four to a byte, uint8 [n, N, ceil(K / 4)]        unpacked for one layer's product and let go again
    tables            int8 [V, C], or two codes to a byte [V, C / 2]   looked up by row; the head takes them in tiles
    everything else   as stored

With int8 activations all arithmetic is strict (SPEC.md, *Strict arithmetic*): logits equal those of the engine to the
bit. With float activations, as published models have them, it is ordinary arithmetic on the same codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from walsh.codec.layout import strict_form
from walsh.codec.packings import fits_int4
from walsh.codec.rows import table_stems
from walsh.errors import CapacityError, RangeError
from walsh.kernels import torch as kernels
from walsh.kernels.torch import strict
from walsh.kernels.torch.forward import block as float_block

# The strict blocks, without the checks of every weight that ``strict.forward`` repeats at each call.
from walsh.kernels.torch.strict.forward import _attention_branch, _ffn_branch
from walsh.reference.config import complete_config
from walsh.reference.strict.weights import check_weights

TILE = 4096
"""Rows of a table that the head unpacks at once."""


class _Rows:
    """A table of int8 or int4 codes with one scale per row."""

    def __init__(self, codes: NDArray[np.int8], scale: NDArray[np.float32], device: torch.device) -> None:
        self.height, self.width = codes.shape
        self._halved = fits_int4(codes)
        stored = torch.from_numpy(np.ascontiguousarray(codes)).to(device)
        if self._halved:
            halves = (stored + 8).to(torch.uint8).reshape(self.height, -1, 2)
            stored = halves[..., 0] | (halves[..., 1] << 4)
        self._stored = stored
        self.scale = torch.from_numpy(np.array(scale)).to(device)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self._stored.nbytes + self.scale.nbytes

    def _codes(self, stored: Tensor) -> Tensor:
        """Int8 [rows, C] of stored rows."""
        if not self._halved:
            return stored
        halves = torch.stack([stored & 15, stored >> 4], dim=-1)
        return halves.flatten(-2).view(torch.int8) - 8

    def rows(self, ids: Tensor) -> Tensor:
        """float32 [..., C], codes times scale."""
        return self._codes(self._stored[ids]).to(torch.float32) * self.scale[ids][..., None]

    def tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(codes int8 [tile, C], scale [tile]) from the first row to the last."""
        step = TILE if self._halved else max(self.height, 1)
        for start in range(0, self.height, step):
            part = slice(start, start + step)
            yield self._codes(self._stored[part]), self.scale[part]


class _Unpacking(Mapping[str, Tensor]):
    """Weights by name as a block takes them; packed ones are unpacked when they are asked for."""

    def __init__(self, held: Mapping[str, Tensor], widths: Mapping[str, int], floats: bool) -> None:
        self._held, self._widths, self._floats = held, widths, floats

    def __getitem__(self, name: str) -> Tensor:
        if self._floats and name.endswith(".weight"):
            stem = name.removesuffix(".weight")
            if stem.endswith(".mixer"):
                return self._held[f"{stem}.codes"].to(torch.float32) * self._held[f"{stem}.scale"]
            if f"{stem}.codes" in self._widths:
                return self._held[f"{stem}.codes"]  # the ordinary kernels take packed weights
        found = self._held[name]
        if self._floats or name not in self._widths:
            return found
        return kernels.unpack_ternary(found, self._widths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class PackedModel:
    """A loaded model.

    Args:
        weights: strict weights by name, as ``walsh.codec.load`` gives them.
        config: the model's configuration; ``activation_bits`` may be null.
        device: where the weights live.

    Attributes:
        config: complete.
        strict: whether arithmetic is strict.
        device: as given.

    Raises:
        ParameterError, ShapeError, DTypeError, StrictError: weights that are not those of the configuration.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        check_weights(weights, strict_form(config))
        self.config = complete_config(config)
        self.strict = self.config["activation_bits"] is not None
        self.device = torch.device(device)
        stems = table_stems(self.config)
        self._tables = {stem: _Rows(weights[f"{stem}.codes"], weights[f"{stem}.scale"], self.device) for stem in stems}
        self._held: dict[str, Tensor] = {}
        widths = {}
        for name, weight in weights.items():
            if name.rpartition(".")[0] in self._tables:
                continue
            tensor = torch.from_numpy(np.ascontiguousarray(weight) if weight.ndim else np.array(weight))
            if name.endswith(".codes") and ".mixer." not in name:
                widths[name] = tensor.shape[-1]
                tensor = kernels.pack_ternary(tensor)
            self._held[name] = tensor.to(self.device)
        self._weights = _Unpacking(self._held, widths, not self.strict)
        self._check_indices()

    def _places(self, ids: Tensor) -> list[Tensor]:
        """Row of each hash table that belongs to each id, int64 like ids; formed anew where the file stores none."""
        tables = self.config["hash_embeddings"]
        stored = self._held.get("embedding.indices")
        found = kernels.hash_indices(ids, tables) if stored is None else stored[ids]
        return [found[..., i].long() for i in range(tables)]

    def _check_indices(self) -> None:
        if not self.config["hash_embeddings"]:
            return
        for i, column in enumerate(self._places(torch.arange(self.config["vocab_size"], device=self.device))):
            height = self._tables[f"embedding.tables.{i}"].height
            if not 0 <= int(column.min()) <= int(column.max()) < height:
                raise RangeError(f"indices of tables.{i} leave its {height} rows: this is not one model's file")

    @property
    def bytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(part.nbytes for part in self._held.values()) + sum(part.bytes for part in self._tables.values())

    def new_cache(self, capacity: int) -> list[Any]:
        """An empty cache of one sequence per layer, for at most ``capacity`` tokens."""
        d = self.config["n_embd"] // self.config["n_head"]
        sizes = (1, capacity, self.config["n_head"], d)
        if self.strict:
            return [strict.Int8KVCache(*sizes, device=self.device) for _ in range(self.config["n_layer"])]
        return [kernels.KVCache(*sizes, device=self.device) for _ in range(self.config["n_layer"])]

    @torch.no_grad()
    def logits(self, ids: Sequence[int] | Tensor, cache: Sequence[Any] | None = None, last_only: bool = True) -> Tensor:
        """Read tokens of one sequence.

        Args:
            ids: integers [T], at least one.
            cache: of :meth:`new_cache`, with the tokens before these; it gains these. None: ids are all there is.
            last_only: give the logits of the last token.

        Returns:
            float32 [V], or [T, V].

        Raises:
            RangeError: an id outside the vocabulary. CapacityError: more tokens than the cache or the context holds;
            the cache is then as it was.
        """
        tokens = torch.as_tensor(ids, dtype=torch.int64, device=self.device).reshape(1, -1)
        vocabulary = self.config["vocab_size"]
        if tokens.numel() == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
            raise RangeError(f"tokens {tokens.tolist()}: expected at least one, each from 0 to {vocabulary - 1}")
        start = int(cache[0].lengths[0]) if cache else 0
        room = min([self.config["block_size"], *(layer.capacity for layer in cache or ())])
        if start + tokens.shape[1] > room:
            raise CapacityError(f"{start + tokens.shape[1]} tokens, cached ones counted in, where {room} fit")
        positions = start + torch.arange(tokens.shape[1], device=self.device)[None]
        x = self._embed(tokens)
        try:
            for layer in range(self.config["n_layer"]):
                x = self._block(f"blocks.{layer}", x, positions, None if cache is None else cache[layer])
        except Exception:
            for layer_cache in cache or ():  # half of the layers must not keep tokens that the others never saw
                layer_cache.truncate(torch.tensor([start], device=self.device))
            raise
        x = x[:, -1:] if last_only else x
        norm = self._held["norm.weight"]
        result = self._head(strict.rms_norm(x, norm) if self.strict else kernels.rms_norm(x, norm))[0]
        return result[0] if last_only else result

    def _block(self, name: str, x: Tensor, positions: Tensor, cache: Any) -> Tensor:
        if not self.strict:
            return float_block(name, x, self._weights, self.config, positions, cache)
        h = strict.rms_norm(x, self._held[f"{name}.attention_norm.weight"])
        x = x + _attention_branch(h, self._weights, name, self.config, positions, cache)
        return x + _ffn_branch(strict.rms_norm(x, self._held[f"{name}.ffn_norm.weight"]), self._weights, name)

    def _embed(self, ids: Tensor) -> Tensor:
        if not self.config["hash_embeddings"]:
            return self._tables["embedding"].rows(ids)
        parts = [self._tables[f"embedding.tables.{i}"].rows(column) for i, column in enumerate(self._places(ids))]
        total = self._weighted(self._held["embedding.importance"][ids], parts)
        # The factor is rounded to float32, as strict arithmetic has it.
        factor = float(np.float32(math.sqrt(self.config["n_embd"]))) if self.config["hash_scale"] else 1.0
        return total if factor == 1.0 else total * factor

    @staticmethod
    def _weighted(importance: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Sum of importance[..., i] times part i, left to right."""
        total = importance[..., 0, None] * parts[0]
        for i in range(1, len(parts)):
            total = total + importance[..., i, None] * parts[i]
        return total

    def _product(self, x: Tensor, table: _Rows) -> Tensor:
        """X times all rows of a table, tile by tile: float32 [1, T, rows]."""
        if self.strict:
            tiles = [strict.lm_head(x, codes, scale) for codes, scale in table.tiles()]
        else:
            tiles = [(x @ codes.to(x.dtype).t()) * scale for codes, scale in table.tiles()]
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)

    def _head(self, x: Tensor) -> Tensor:
        if not self.config["tied_head"] or not self.config["hash_embeddings"]:
            return self._product(x, self._tables["embedding" if self.config["tied_head"] else "head"])
        columns = self._places(torch.arange(self.config["vocab_size"], device=self.device))
        parts = [
            self._product(x, self._tables[f"embedding.tables.{i}"])[..., column, None]
            for i, column in enumerate(columns)
        ]
        return self._weighted(self._held["embedding.importance"], parts)[..., 0]
