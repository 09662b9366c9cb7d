"""The Walsh language model as PyTorch modules, for training and generation.

    x   = embedding(ids)
    x   = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)            per block
    x   = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
    logits = head(rms_norm(x))

The mathematics is ``walsh.kernels.torch.forward``; the modules here hold its weights, under the names of SPEC.md, and
give training what it needs: blocks that can be wrapped, recomputed and compiled, and an initialisation in which each
layer preserves variance:

    beta = 1 / sqrt(mean(q^2) * fan_in),  fan_in = D*K (Cayley-Dickson) or K (Hadamard)

with q the ternary weights that the latent ones really round to (mean(q^2) = 1 - p0, p0 the fraction of zeros).

Under ``torch.autocast`` the stream between the layers is in autocast's dtype and the parameters stay as they are. Every
kernel accumulates 16-bit tensors in float32 by its own definition, so autocast's own casts are turned off inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from walsh.errors import WalshError
from walsh.kernels import torch as kernels
from walsh.kernels.torch._check import require_integer, require_shape
from walsh.kernels.torch.forward import block, check_weights, embed, head, head_table, start
from walsh.model.cache import GrowingKVCache
from walsh.model.config import WalshConfig

STD = 0.02
"""Standard deviation of latent weights, embedding rows and the mixers' noise."""

ROUND_STD = 0.5
"""Of latent weights under rule ``round``, whose threshold is fixed at 0.5: with ``STD`` all of them would be zeros.

Rule ``absmean`` scales its threshold with the weights.
"""


class _Node(nn.Module):
    """A name on the way to a tensor; holds no mathematics."""


def _grow(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a tensor under a dotted name, making the modules on the way.

    Floats become parameters. Integers (codes of a model that is not trained, stored indices) become buffers.
    """
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, _Node())
        root = root.get_submodule(part)
    if tensor.is_floating_point():
        root.register_parameter(leaf, nn.Parameter(tensor))
    else:
        root.register_buffer(leaf, tensor)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


class Block(nn.Module):
    """One block: attention half and feed-forward half.

    Args:
        config: of the model.
        weights: tensors of this block by their names within it.
    """

    def __init__(self, config: WalshConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._config = config.to_dict()
        for name, tensor in weights.items():
            _grow(self, name, tensor)

    def forward(self, x: Tensor, positions: Tensor, cache: kernels.KVCache | None = None) -> Tensor:
        """From x [B, T, C] at integer positions [T] or [B, T] to [B, T, C]."""
        weights = {f"block.{name}": tensor for name, tensor in _tensors(self)}
        return block("block", x, weights, self._config, positions, cache)


class Walsh(nn.Module):
    """A Walsh language model.

    Args:
        config: its shape.
        seed: of the initialisation.
        weights: take these instead, by the names of SPEC.md; they are copied. Linear weights may be int8 codes or
            packed uint8, which are not trained; hash tables may have any heights that their indices fit.

    Attributes:
        config: as given.
        activation_checkpointing: recompute blocks in the backward instead of keeping what they made; off at first.
        chunk_size: tokens per chunk of the loss.

    Raises:
        ParameterError: a weight is missing or superfluous. ShapeError: one has another shape.
    """

    def __init__(self, config: WalshConfig, seed: int = 0, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.chunk_size = 1024
        if weights is None:
            tensors = _initialise(config, seed)
        else:
            check_weights(weights, config.to_dict())
            # In our order, not the mapping's: norms over all parameters are sums, whose last bits depend on it.
            names = [*config.weight_shapes(), "embedding.indices"]
            tensors = {name: weights[name].detach().clone() for name in names if name in weights}
        for name, tensor in tensors.items():
            if not name.startswith("blocks."):
                _grow(self, name, tensor)
        blocks = []
        for layer in range(config.n_layer):
            prefix = f"blocks.{layer}."
            mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            blocks.append(Block(config, mine))
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: Sequence[kernels.KVCache] | None = None,
        probes: MutableMapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits, or the loss if there are targets.

        Args:
            ids: integer [B, T].
            targets: integer [B, T], -1 where there is none.
            cache: one per layer with the tokens before these (:meth:`make_cache`); they are appended.
            probes: receives ``x.0`` after the embedding and ``x.{l+1}`` after block l.

        Returns:
            logits [B, T, V]; or the mean loss over targets in nats, a scalar, without ever holding the logits.

        Raises:
            RangeError: an id or target outside the vocabulary. CapacityError: more tokens than block_size or the cache
            holds; the cache is then unchanged. ShapeError, DTypeError: ids that are not integers [B, T].
        """
        require_integer("ids", ids)
        require_shape("ids", ids, (None, None), "[B, T]")
        device = ids.device.type
        stream = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            x = self.features(ids, cache, probes, stream)
            config, outer = self.config.to_dict(), self._outer()
            if targets is None:
                return head(x, outer, config)
            # The loss is the one number that 8 bits of mantissa would spoil.
            table = head_table(outer, config)
            return kernels.linear_cross_entropy(x.float() if stream else x, table, targets, self.chunk_size)

    def features(
        self,
        ids: Tensor,
        cache: Sequence[kernels.KVCache] | None = None,
        probes: MutableMapping[str, Tensor] | None = None,
        stream: torch.dtype | None = None,
    ) -> Tensor:
        """What the head is applied to: the normed output [B, T, C] of the last block.

        Args:
            ids, cache, probes: as of :meth:`forward`.
            stream: dtype between the layers; that of the parameters if None.
        """
        config, outer = self.config.to_dict(), self._outer()
        before = start(cache, ids, config)
        steps = torch.arange(ids.shape[1], device=ids.device)
        # Without a cache all sequences begin at 0, and rope forms its angles once for all of them.
        positions = steps if cache is None else before[:, None] + steps
        probes = {} if probes is None else probes
        try:
            x = embed(ids, outer, config)
            x = probes["x.0"] = x if stream is None else x.to(stream)
            for layer, module in enumerate(self.blocks):
                held = None if cache is None else cache[layer]
                if self.activation_checkpointing and torch.is_grad_enabled():
                    x = checkpoint(module, x, positions, held, use_reentrant=False)
                else:
                    x = module(x, positions, held)
                probes[f"x.{layer + 1}"] = x
            return kernels.rms_norm(x, outer["norm.weight"])
        except WalshError:
            # No layer may keep tokens that the others have not seen.
            for part in cache or ():
                part.truncate(before)
            raise

    def logits(self, features: Tensor) -> Tensor:
        """The head: logits [..., V] of normed features [..., C]."""
        return head(features, self._outer(), self.config.to_dict())

    def make_cache(self, batch: int, capacity: int | None = None, growing: bool = False) -> list[kernels.KVCache]:
        """An empty cache per layer for ``batch`` sequences of at most ``capacity`` (block_size) tokens.

        Args:
            batch: B.
            capacity: tokens.
            growing: take memory as sequences need it (``GrowingKVCache``) instead of at once.
        """
        capacity = self.config.block_size if capacity is None else capacity
        shape = (batch, capacity, self.config.n_head, self.config.head_dim)
        kind = GrowingKVCache if growing else kernels.KVCache
        dtype = self.get_parameter("norm.weight").dtype
        return [kind(*shape, dtype=dtype, device=self.device) for _ in range(self.config.n_layer)]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.get_parameter("norm.weight").device

    def _outer(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in _tensors(self) if not name.startswith("blocks.")}


def _initialise(config: WalshConfig, seed: int) -> dict[str, Tensor]:
    """All weights; each linear layer's beta follows from its own weights, and nothing touches it afterwards."""
    generator = torch.Generator().manual_seed(seed)
    shapes = config.weight_shapes()
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        if layer.endswith("mixer") and leaf == "weight":
            tensors[name] = _identity_mixer(config, shape) + STD * torch.randn(shape, generator=generator)
        elif leaf in ("alpha", "beta", "importance") or "norm" in layer:
            tensors[name] = torch.ones(shape)
        else:
            fixed_threshold = len(shape) == 3 and config.ternary and config.rule == "round"
            tensors[name] = (ROUND_STD if fixed_threshold else STD) * torch.randn(shape, generator=generator)
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "beta" and not layer.endswith("mixer"):
            tensors[name] = torch.full(shape, preserving_scale(tensors[f"{layer}.weight"], config))
    return tensors


def preserving_scale(weight: Tensor, config: WalshConfig) -> float:
    """The beta with which a linear layer keeps the variance of its input.

    Args:
        weight: latent [n, N, K].
        config: of the model: algebra, rule, whether weights are ternary.
    """
    used = kernels.ternary(weight, config.rule)[0].float() if config.ternary else weight
    fan_in = weight.shape[2] * (1 if config.algebra == "hadamard" else weight.shape[0])
    return 1.0 / math.sqrt(max(float(used.detach().square().mean()), 1e-12) * fan_in)


def _identity_mixer(config: WalshConfig, shape: Sequence[int]) -> Tensor:
    """[n, d, d]: W_0 = I and the others 0; for Hadamard every W_g = I."""
    weight = torch.zeros(*shape)
    weight[slice(None) if config.algebra == "hadamard" else 0] = torch.eye(shape[1])
    return weight
