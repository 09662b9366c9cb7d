"""The same model in plain PyTorch: what somebody without hyper-complex kernels would run.

Every ternary layer becomes one dense matrix, signs, transforms and scales folded in, with 8 (octonion) or 32 (Hadamard)
times the weights; attention is ``scaled_dot_product_attention``, the cache a static buffer, the loss that of the whole
logits. It computes the function of the model with float activations, so its outputs can be checked against the same
definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, rms_norm, scaled_dot_product_attention, silu

from walsh.algebra import sylvester
from walsh.kernels.torch.convolution import expand
from walsh.reference.config import complete_config, weight_shapes

Weights = dict[str, Tensor]


def make_config(
    n_layer: int, n_head: int, n_embd: int, vocabulary: int, bits: int | None = 8, algebra: str = "octonion"
) -> dict[str, Any]:
    """A model of this size."""
    given = {
        "algebra": algebra,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "vocab_size": vocabulary,
        "block_size": 1024,
        "activation_bits": bits,
    }
    return dict(complete_config(given))


def make_weights(config: Mapping[str, Any], seed: int, device: str) -> Weights:
    """Weights whose signal neither grows nor vanishes: ternary codes (float32), beta = 1 / sqrt(2/3 fan-in), alpha = 1.

    Each output of a Cayley-Dickson layer sums over all D K inputs, each block of a Hadamard layer over its own K.
    """
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith(".beta"):
            d, _, k = weight_shapes(config)[name.removesuffix(".beta") + ".weight"]
            value = torch.full(shape, (2 / 3 * k * (1 if config["algebra"] == "hadamard" else d)) ** -0.5)
        elif len(shape) == 3:
            value = torch.randint(-1, 2, shape, generator=random).float()
        elif len(shape) == 1 or name.endswith(".alpha"):
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=random) * 0.5
        weights[name] = value.to(device)
    return weights


def as_codes(weights: Weights) -> Weights:
    """The same with int8 weights of linear layers, as inference has them."""
    return {name: w.to(torch.int8) if w.ndim == 3 else w for name, w in weights.items()}


def densify(weights: Weights) -> Weights:
    """One dense matrix [D*N, D*K] per linear layer, alpha and beta folded in; everything else as it is."""
    dense = {}
    for name, w in weights.items():
        if name.endswith((".alpha", ".beta")):
            continue
        if w.ndim == 3:
            layer = name.removesuffix(".weight")
            alpha, beta = weights.get(f"{layer}.alpha"), weights[f"{layer}.beta"]
            w = expand(w) * beta.repeat(w.shape[0])[:, None] if alpha is None else expand_hadamard(w, alpha, beta)
        dense[name] = w
    return dense


def expand_hadamard(w: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Beta (H (x) I) diag(w_1 ... w_n) (H (x) I) alpha as one matrix [n*N, n*K], H orthonormal."""
    n = w.shape[0]
    h = torch.tensor(sylvester(n).tolist(), dtype=w.dtype, device=w.device) / n**0.5
    return torch.einsum("aj,ag,gji,gh,hi->ajhi", beta, h, w, h, alpha).reshape(beta.numel(), alpha.numel())


@dataclass
class StaticCache:
    """Keys and values [layers, B, H, S, d] and the number of tokens in them."""

    keys: Tensor
    values: Tensor
    length: int = 0


class Plain:
    """A Llama-style transformer on dense weights.

    Args:
        weights: of :func:`densify`.
        config: of the model.
    """

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        self.weights, self.config = weights, config
        head_dim = config["n_embd"] // config["n_head"]
        device = weights["norm.weight"].device
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim)
        angles = torch.arange(config["block_size"], device=device)[:, None] * frequency
        self.table = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)

    def make_cache(self, batch: int, capacity: int) -> StaticCache:
        """An empty cache."""
        heads = self.config["n_head"]
        shape = (self.config["n_layer"], batch, heads, capacity, self.config["n_embd"] // heads)
        embedding = self.weights["embedding.weight"]
        return StaticCache(embedding.new_zeros(shape), embedding.new_zeros(shape))

    def __call__(self, ids: Tensor, cache: StaticCache | None = None, last: bool = False) -> Tensor:
        """Logits [B, T, V] of ids [B, T]; with a cache they follow the tokens in it and join them.

        With ``last`` those of the last token only, [B, 1, V].
        """
        w, past = self.weights, cache.length if cache is not None else 0
        x = w["embedding.weight"][ids]
        for layer in range(self.config["n_layer"]):
            block = f"blocks.{layer}"
            h = rms_norm(x, x.shape[-1:], w[f"{block}.attention_norm.weight"], 1e-6)
            x = x + self._attend(h, f"{block}.attention", layer, past, cache)
            h = rms_norm(x, x.shape[-1:], w[f"{block}.ffn_norm.weight"], 1e-6)
            gated = silu(linear(h, w[f"{block}.ffn.gate.weight"])) * linear(h, w[f"{block}.ffn.up.weight"])
            x = x + linear(gated, w[f"{block}.ffn.down.weight"])
        if cache is not None:
            cache.length = past + ids.shape[1]
        x = x[:, -1:] if last else x
        return linear(rms_norm(x, x.shape[-1:], w["norm.weight"], 1e-6), w["embedding.weight"])

    def _attend(self, h: Tensor, name: str, layer: int, past: int, cache: StaticCache | None) -> Tensor:
        b, t, c = h.shape
        heads = self.config["n_head"]
        q, k, v = (linear(h, self.weights[f"{name}.{n}.weight"]).view(b, t, heads, -1) for n in ("wq", "wk", "wv"))
        q, k = self._rotate(q, past), self._rotate(k, past)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if cache is not None:
            cache.keys[layer, :, :, past : past + t] = k
            cache.values[layer, :, :, past : past + t] = v
            k, v = cache.keys[layer, :, :, : past + t], cache.values[layer, :, :, : past + t]
        o = scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        return linear(o.transpose(1, 2).reshape(b, t, c), self.weights[f"{name}.wo.weight"])

    def _rotate(self, x: Tensor, past: int) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turned = pairs * self.table[past : past + x.shape[1], None]
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over all tokens."""
        logits = self(ids)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)
