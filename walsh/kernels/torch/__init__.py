"""PyTorch kernels: vectorised, differentiable, on CPU and GPU, under the names of SPEC.md.

Ordinary arithmetic lives here, strict arithmetic (inference, equal to the bit everywhere) in ``strict``.
"""

from walsh.kernels.torch import strict
from walsh.kernels.torch.activations import fake_quantize_activations, quantize_activations
from walsh.kernels.torch.attention import attention
from walsh.kernels.torch.bitmask import bitmask_decode, bitmask_encode
from walsh.kernels.torch.cayley_dickson import cayley_dickson_bit_linear, cayley_dickson_linear
from walsh.kernels.torch.cross_entropy import cross_entropy, linear_cross_entropy
from walsh.kernels.torch.embedding import embedding, hash_embedding, hash_indices, hash_lm_head, lm_head
from walsh.kernels.torch.forward import forward
from walsh.kernels.torch.hadamard import hadamard_bit_linear, hadamard_linear
from walsh.kernels.torch.hadamard_transform import hadamard_transform
from walsh.kernels.torch.head_mixer import head_mixer
from walsh.kernels.torch.kv_cache import KVCache
from walsh.kernels.torch.rms_norm import rms_norm
from walsh.kernels.torch.rope import rope
from walsh.kernels.torch.sampling import sample, uniform
from walsh.kernels.torch.swiglu import swiglu, swiglu_hidden
from walsh.kernels.torch.ternary import pack_ternary, ternary, ternary_ste, unpack_ternary

__all__ = [
    "KVCache",
    "attention",
    "bitmask_decode",
    "bitmask_encode",
    "cayley_dickson_bit_linear",
    "cayley_dickson_linear",
    "cross_entropy",
    "embedding",
    "fake_quantize_activations",
    "forward",
    "hadamard_bit_linear",
    "hadamard_linear",
    "hadamard_transform",
    "hash_embedding",
    "hash_indices",
    "hash_lm_head",
    "head_mixer",
    "linear_cross_entropy",
    "lm_head",
    "pack_ternary",
    "quantize_activations",
    "rms_norm",
    "rope",
    "sample",
    "strict",
    "swiglu",
    "swiglu_hidden",
    "ternary",
    "ternary_ste",
    "uniform",
    "unpack_ternary",
]
