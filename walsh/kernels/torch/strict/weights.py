"""Names, shapes and dtypes of strict weights: one definition, that of ``walsh.reference.strict``, serves all."""

from walsh.reference.strict.weights import check_weights, hash_parts, strict_config, strict_weight_shapes

__all__ = ["check_weights", "hash_parts", "strict_config", "strict_weight_shapes"]
