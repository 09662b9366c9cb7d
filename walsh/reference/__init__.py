"""The definitions: every operation of SPEC.md in NumPy and float64, slow, short and obviously right.

``walsh.reference`` computes in ordinary arithmetic, ``walsh.reference.strict`` in pinned float32. Every function takes
any float dtype and returns float64; ``NAME_backward`` returns a tuple of gradients, None for what is absent.
"""

from walsh.reference.activations import (
    fake_quantize_activations,
    fake_quantize_activations_backward,
    quantize_activations,
)
from walsh.reference.attention import attention, attention_backward
from walsh.reference.bitmask import bitmask_decode, bitmask_encode
from walsh.reference.cayley_dickson import (
    cayley_dickson_bit_linear,
    cayley_dickson_bit_linear_backward,
    cayley_dickson_linear,
    cayley_dickson_linear_backward,
)
from walsh.reference.config import complete_config, weight_shapes
from walsh.reference.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
)
from walsh.reference.embedding import (
    embedding,
    embedding_backward,
    hash_embedding,
    hash_embedding_backward,
    hash_indices,
    hash_lm_head,
    hash_lm_head_backward,
    lm_head,
    lm_head_backward,
)
from walsh.reference.forward import forward, forward_backward
from walsh.reference.hadamard import (
    hadamard_bit_linear,
    hadamard_bit_linear_backward,
    hadamard_linear,
    hadamard_linear_backward,
    hadamard_transform,
    hadamard_transform_backward,
)
from walsh.reference.head_mixer import head_mixer, head_mixer_backward
from walsh.reference.kv_cache import KVCache, kv_cache
from walsh.reference.rms_norm import rms_norm, rms_norm_backward
from walsh.reference.rope import rope, rope_backward
from walsh.reference.sampling import sample, uniform
from walsh.reference.swiglu import swiglu, swiglu_backward, swiglu_hidden
from walsh.reference.ternary import pack_ternary, ternary, ternary_ste, ternary_ste_backward, unpack_ternary

__all__ = [
    "KVCache",
    "attention",
    "attention_backward",
    "bitmask_decode",
    "bitmask_encode",
    "cayley_dickson_bit_linear",
    "cayley_dickson_bit_linear_backward",
    "cayley_dickson_linear",
    "cayley_dickson_linear_backward",
    "complete_config",
    "cross_entropy",
    "cross_entropy_backward",
    "embedding",
    "embedding_backward",
    "fake_quantize_activations",
    "fake_quantize_activations_backward",
    "forward",
    "forward_backward",
    "hadamard_bit_linear",
    "hadamard_bit_linear_backward",
    "hadamard_linear",
    "hadamard_linear_backward",
    "hadamard_transform",
    "hadamard_transform_backward",
    "hash_embedding",
    "hash_embedding_backward",
    "hash_indices",
    "hash_lm_head",
    "hash_lm_head_backward",
    "head_mixer",
    "head_mixer_backward",
    "kv_cache",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "lm_head",
    "lm_head_backward",
    "pack_ternary",
    "quantize_activations",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "sample",
    "swiglu",
    "swiglu_backward",
    "swiglu_hidden",
    "ternary",
    "ternary_ste",
    "ternary_ste_backward",
    "uniform",
    "unpack_ternary",
    "weight_shapes",
]
