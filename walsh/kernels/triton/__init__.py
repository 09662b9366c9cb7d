"""Triton kernels: fused, differentiable, under the names of SPEC.md.

On a GPU they are compiled; on a CPU they run in Triton's interpreter if ``TRITON_INTERPRET=1`` was set before Triton
was imported. Ordinary arithmetic lives here, strict arithmetic (inference, equal to the bit everywhere) in ``strict``.
Beyond SPEC.md there are ``hadamard_transform_`` (in place), the transforms' ``n=`` (across blocks),
``rms_norm_quantize``, ``ternary_packed`` and ``decode_attention`` (int8 keys and values).
"""

from walsh.kernels.triton import strict
from walsh.kernels.triton.activations import fake_quantize_activations, quantize_activations
from walsh.kernels.triton.attention import attention, decode_attention
from walsh.kernels.triton.bitmask import bitmask_decode, bitmask_encode
from walsh.kernels.triton.cayley_dickson import cayley_dickson_bit_linear, cayley_dickson_linear
from walsh.kernels.triton.cross_entropy import cross_entropy, linear_cross_entropy
from walsh.kernels.triton.embedding import embedding, hash_embedding, hash_indices
from walsh.kernels.triton.embedding_head import hash_lm_head, lm_head
from walsh.kernels.triton.forward import forward
from walsh.kernels.triton.hadamard import (
    hadamard_bit_linear,
    hadamard_linear,
    hadamard_transform,
    hadamard_transform_,
)
from walsh.kernels.triton.head_mixer import head_mixer
from walsh.kernels.triton.kv_cache import KVCache
from walsh.kernels.triton.rms_norm import rms_norm, rms_norm_quantize
from walsh.kernels.triton.rope import rope
from walsh.kernels.triton.sampling import sample, uniform
from walsh.kernels.triton.swiglu import swiglu, swiglu_hidden
from walsh.kernels.triton.ternary import ternary, ternary_packed, ternary_ste
from walsh.kernels.triton.ternary_packing import pack_ternary, unpack_ternary

__all__ = [
    "KVCache",
    "attention",
    "bitmask_decode",
    "bitmask_encode",
    "cayley_dickson_bit_linear",
    "cayley_dickson_linear",
    "cross_entropy",
    "decode_attention",
    "embedding",
    "fake_quantize_activations",
    "forward",
    "hadamard_bit_linear",
    "hadamard_linear",
    "hadamard_transform",
    "hadamard_transform_",
    "hash_embedding",
    "hash_indices",
    "hash_lm_head",
    "head_mixer",
    "linear_cross_entropy",
    "lm_head",
    "pack_ternary",
    "quantize_activations",
    "rms_norm",
    "rms_norm_quantize",
    "rope",
    "sample",
    "strict",
    "swiglu",
    "swiglu_hidden",
    "ternary",
    "ternary_packed",
    "ternary_ste",
    "uniform",
    "unpack_ternary",
]
