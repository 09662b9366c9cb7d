"""Strict arithmetic on PyTorch tensors: every float32 step pinned, equal to ``walsh.reference.strict`` to the bit."""

from walsh.kernels.torch.strict._arithmetic import exp, hsum, psum, sincos
from walsh.kernels.torch.strict.activations import quantize_activations
from walsh.kernels.torch.strict.attention import attention
from walsh.kernels.torch.strict.cayley_dickson import cayley_dickson_linear
from walsh.kernels.torch.strict.embedding import embedding, hash_embedding, hash_lm_head, lm_head
from walsh.kernels.torch.strict.export import export
from walsh.kernels.torch.strict.forward import forward, generate
from walsh.kernels.torch.strict.hadamard import hadamard_linear, hadamard_transform
from walsh.kernels.torch.strict.head_mixer import head_mixer
from walsh.kernels.torch.strict.kv_cache import Int8KVCache, kv_cache
from walsh.kernels.torch.strict.rms_norm import rms_norm
from walsh.kernels.torch.strict.rope import rope
from walsh.kernels.torch.strict.sampling import sample, uniform
from walsh.kernels.torch.strict.swiglu import swiglu
from walsh.kernels.torch.strict.weights import strict_weight_shapes

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
    "kv_cache",
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
