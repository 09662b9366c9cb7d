"""Strict arithmetic: every float32 step pinned, so that backends agree to the bit (SPEC.md, *Strict arithmetic*)."""

from walsh.reference.strict._arithmetic import exp, hsum, psum, sincos
from walsh.reference.strict.activations import quantize_activations
from walsh.reference.strict.attention import attention
from walsh.reference.strict.cayley_dickson import cayley_dickson_linear
from walsh.reference.strict.embedding import embedding, hash_embedding, hash_lm_head, lm_head
from walsh.reference.strict.export import export
from walsh.reference.strict.forward import forward, generate
from walsh.reference.strict.hadamard import hadamard_linear, hadamard_transform
from walsh.reference.strict.head_mixer import head_mixer
from walsh.reference.strict.kv_cache import Int8KVCache, kv_cache
from walsh.reference.strict.rms_norm import rms_norm
from walsh.reference.strict.rope import rope
from walsh.reference.strict.sampling import sample, uniform
from walsh.reference.strict.swiglu import swiglu
from walsh.reference.strict.weights import strict_weight_shapes

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
