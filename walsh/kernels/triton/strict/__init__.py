"""Strict arithmetic in Triton: every float32 step pinned, equal to ``walsh.reference.strict`` to the bit.

Kernels are launched without fused multiply-add; quotients and roots are correctly rounded; nothing is multiplied in
tf32. ``walsh.kernels.triton.compile`` searches their machine code for anything else.
"""

from walsh.kernels.torch.strict.export import export
from walsh.kernels.torch.strict.weights import strict_weight_shapes
from walsh.kernels.triton.strict._arithmetic import exp, hsum, psum, sincos
from walsh.kernels.triton.strict.attention import Int8KVCache, attention
from walsh.kernels.triton.strict.embedding import embedding, hash_embedding, hash_lm_head, lm_head
from walsh.kernels.triton.strict.forward import forward, generate
from walsh.kernels.triton.strict.layers import (
    cayley_dickson_linear,
    hadamard_linear,
    hadamard_transform,
    head_mixer,
    quantize_activations,
    rms_norm,
    rope,
    swiglu,
)
from walsh.kernels.triton.strict.sampling import sample, uniform

__all__ = [
    "Int8KVCache",
    "attention",
    "cayley_dickson_linear",
    "embedding",
    "exp",
    "export",
    "forward",
    "generate",
    "hadamard_linear",
    "hadamard_transform",
    "hash_embedding",
    "hash_lm_head",
    "head_mixer",
    "hsum",
    "lm_head",
    "psum",
    "quantize_activations",
    "rms_norm",
    "rope",
    "sample",
    "sincos",
    "strict_weight_shapes",
    "swiglu",
    "uniform",
]
