"""The bugs that vectors smell of: each was seen in a real kernel of this field, or survives the usual tests.

A failing vector prints the notes of its flags, so that its likely cause is named before anybody debugs.
"""

from __future__ import annotations

from walsh.suite.generate.build import Flag

SMOKE = "smoke"

GRAD_COMPONENT = Flag(
    "grad_component",
    "gradient lost for all components but the first",
    "A strided view built from one part of a split accumulates the gradient of that part only; the loss looks right.",
)
WRONG_BACKWARD_TABLE = Flag(
    "wrong_backward_table",
    "sign table of the backward is not the adjoint of the forward's",
    "dX_j takes S[i, j] and W_{i xor j}, dW_k takes S[i, i xor k] and X_{i xor k}; a forward that is right hides both.",
)
SIGN_TABLE = Flag(
    "sign_table",
    "another table of the same algebra",
    "Every algebraic law holds in all of the octonions' tables; only products of basis elements pin this one.",
)
OPERAND_ORDER = Flag(
    "operand_order",
    "x w computed as w x",
    "Hyper-complex products do not commute from D = 4 on; weights stand on the right.",
)
TRANSPOSED = Flag(
    "transposed",
    "weight applied transposed",
    "Linear weights are [N, K] and applied as x W^T, mixers are applied as x @ W; square weights hide the difference.",
)
COMPONENT_LAYOUT = Flag(
    "component_layout",
    "features interleaved instead of component-major",
    "Component j is the contiguous block x[j K : (j + 1) K], not every D-th feature.",
)
TAIL_ROWS = Flag(
    "tail_rows",
    "last rows of a ragged tile missed or duplicated",
    "Token counts that are no multiple of a tile: masks of the last tile are wrong or absent.",
)
TAIL_COLUMNS = Flag(
    "tail_columns",
    "last columns of a ragged tile missed",
    "K or N that is no multiple of a vector width or of four packed codes.",
)
EMPTY_BATCH = Flag(
    "empty_batch",
    "crash or garbage for zero tokens",
    "A launch over an empty grid, a reduction of nothing, a reshape with -1.",
)
LEADING_AXES = Flag(
    "leading_axes",
    "leading axes flattened wrongly",
    "Any number of leading axes, none included, stands before the features.",
)
BETA_SHARED = Flag(
    "beta_shared",
    "beta indexed by component",
    "beta [N] is shared by the D components; for Hadamard it is [n, N] and is not shared.",
)
SCALE_MISSING = Flag(
    "scale_missing",
    "a scale forgotten, doubled or put on the wrong side",
    "Absent beta or alpha counts 1; gamma is not multiplied back; x_scale divides.",
)
PACKED_ORDER = Flag(
    "packed_order",
    "two-bit codes unpacked in another order",
    "Position p stands in bits 2 (p & 3) of byte p >> 2, and the code is q + 1.",
)
ACCUMULATOR = Flag(
    "accumulator",
    "sums held in too few bits",
    "A float16, bfloat16, tf32 or int16 accumulator; sums here come close to what float32 (or int32) holds exactly.",
)
FLOAT32_INSIDE = Flag(
    "float32_inside",
    "float64 computed in float32",
    "A float64 call whose inner steps are float32 is right to seven digits only.",
)
TIES_AWAY = Flag(
    "ties_away",
    "ties rounded away from zero",
    "Rounding is half to even; C's round() and floor(x + 0.5) are not.",
)
THRESHOLD = Flag(
    "threshold",
    "comparison with the threshold on the wrong side",
    "A value just above and one just below the threshold, by an exactly representable margin.",
)
EPSILON = Flag(
    "epsilon",
    "epsilon missing, doubled or outside the root",
    "Rows so small, or so zero, that epsilon decides the result.",
)
ABSMEAN_SCOPE = Flag(
    "absmean_scope",
    "gamma taken per row or per component",
    "gamma is one mean over the whole tensor; rows of unlike magnitude show another scope.",
)
TOKEN_SCALE = Flag(
    "token_scale",
    "one activation scale for the whole tensor",
    "Each token has its own scale over all of its features; rows of unlike magnitude show another scope.",
)
OUTLIER = Flag(
    "outlier",
    "clipping or overflow at one huge value",
    "One outlier sets the scale of its row: the others round to few codes, and nothing may overflow.",
)
SUBNORMAL = Flag(
    "subnormal",
    "subnormal numbers flushed to zero",
    "Flush-to-zero and denormals-are-zero modes of GPUs and SIMD units.",
)
NEGATIVE_ZERO = Flag(
    "negative_zero",
    "sign of zero",
    "-0 is a number like any other where it is copied.",
)
NAN_ROW = Flag(
    "nan_row",
    "NaN swallowed or spread",
    "Maxima and comparisons drop NaN easily; it must reach exactly the results that depend on it.",
)
INFINITY = Flag(
    "infinity",
    "infinity mishandled",
    "Infinity minus infinity, or infinity times zero, where the definition has a finite limit.",
)
CLIP_BOUNDARY = Flag(
    "clip_boundary",
    "straight-through clip strict instead of inclusive",
    "The gradient passes where abs(w) <= ste_clip, equality included.",
)
STRAIGHT_THROUGH = Flag(
    "straight_through",
    "gradient of the rounding divided by gamma, or zero",
    "dw := dq with gamma held constant; dW uses the rounded activations.",
)
NORMALISATION = Flag(
    "normalisation",
    "Hadamard transform scaled by 1/n or not at all",
    "Orthonormal: 1 / sqrt(n) at each transform.",
)
NATURAL_ORDER = Flag(
    "natural_order",
    "Walsh (sequency) or dyadic order instead of natural order",
    "H[g, h] = (-1)^popcount(g & h).",
)
GROUPS = Flag(
    "groups",
    "second group of heads mixed with the first, or left alone",
    "Group g is heads g n to g n + n - 1, one mixer for all groups.",
)
PAIRS = Flag(
    "pairs",
    "halves rotated instead of interleaved pairs",
    "Pairs are (2i, 2i + 1), not (i, i + d/2).",
)
ROPE_TABLE_END = Flag(
    "rope_table_end",
    "positions past the end of a table are left unrotated or wrap",
    "Any non-negative position is valid: there is no table to run out of.",
)
POSITIONS = Flag(
    "positions",
    "positions ignored",
    "Positions that are not 0 .. T-1, or differ between sequences.",
)
FUTURE = Flag(
    "future",
    "a query sees the future",
    "Keys past positions[t] must not influence the result: they hold huge values here.",
)
PADDING = Flag(
    "padding",
    "a padded query gives NaN or a mean",
    "A position of -1 sees nothing and gives zeros.",
)
SOFTMAX_OVERFLOW = Flag(
    "softmax_overflow",
    "exponentials overflow",
    "Scores past 88: the maximum has to be subtracted first.",
)
CACHE_ROW_0 = Flag(
    "cache_row_0",
    "every sequence reads row 0 of the cache",
    "Sequences of a batch differ here, and so do their lengths.",
)
CACHE_STALE = Flag(
    "cache_stale",
    "slots past the length influence results",
    "Truncated or reset slots still hold their old values.",
)
CACHE_SPLIT = Flag(
    "cache_split",
    "appending in parts differs from appending at once",
    "Offsets of the second append, or a different summation order.",
)
CACHE_ALIAS = Flag(
    "cache_alias",
    "a fork shares memory with its origin",
    "After fork both caches are independent.",
)
ROW_OFFSET = Flag(
    "row_offset",
    "row offset ignored: every embedding is row 0",
    "The id is multiplied by the row length before it is added to the base.",
)
DUPLICATE_IDS = Flag(
    "duplicate_ids",
    "the gradient of a repeated id is overwritten instead of added",
    "A scatter without atomic adds keeps the last contribution only.",
)
HASH_COLLAPSE = Flag(
    "hash_collapse",
    "hashing that maps many ids to the same rows",
    "Two tables: t mod 1021 and t div 1021; three: t mod 1021, 1019, 1013. Other hashes collide or wrap.",
)
IMPORTANCE = Flag(
    "importance",
    "importance indexed by row instead of by token",
    "importance[t, i] belongs to the token id t, also in the tied head.",
)
IGNORED_TARGET = Flag(
    "ignored_target",
    "target -1 counted, or the mean taken over all tokens",
    "The mean is over targets that are not -1; none at all gives 0 with zero gradients.",
)
CHUNK_TAIL = Flag(
    "chunk_tail",
    "last chunk of tokens lost or averaged by itself",
    "Chunk sizes that do not divide the number of tokens, exceed it, or are 1.",
)
CANCELLATION = Flag(
    "cancellation",
    "cancellation hidden by a tolerance relative to the result",
    "Large terms that cancel: what is left is small, and must still be right to the rounding of the terms.",
)
UNLIKE_ROWS = Flag(
    "unlike_rows",
    "one tolerance for the whole tensor hides small rows",
    "Rows of unlike magnitude: the smallest must be right by its own measure.",
)
TOP_EDGES = Flag(
    "top_edges",
    "top_k = 0, temperature = 0 or a full top_p mishandled",
    "0 means all for top_k and greedy for temperature; the shortest prefix with cumulative >= top_p is kept.",
)
PENALTY_TWICE = Flag(
    "penalty_twice",
    "repetition penalty applied once per occurrence",
    "Once per distinct id, and -1 is no id; a positive logit is divided, another multiplied.",
)
LOWEST_ID = Flag(
    "lowest_id",
    "ties broken by an unstable sort",
    "Equal logits: the lowest id first.",
)
SEED_64 = Flag(
    "seed_64",
    "seed arithmetic not modulo 2^64",
    "Seeds past 2^63 or below 0, and positions past 2^32.",
)
BIT_ORDER = Flag(
    "bit_order",
    "most significant bit first",
    "Position p is bit p & 7 of byte p >> 3; signs follow one another without gaps, 1 = +1.",
)
PADDING_BITS = Flag(
    "padding_bits",
    "padding bits not looked at",
    "Bits past the last position must be 0: anything else is damage.",
)
SILENT_DEFAULT = Flag(
    "silent_default",
    "wrong input silently accepted",
    "Missing tensors replaced by zeros, unknown keys ignored, codes clipped: the answer looks plausible and is wrong.",
)
BROADCAST = Flag(
    "broadcast",
    "a wrong shape broadcast instead of refused",
    "Length-1 axes and missing axes broadcast in array libraries; the definition asks for the exact shape.",
)
FUSED_MULTIPLY_ADD = Flag(
    "fused_multiply_add",
    "a product not rounded before it is added",
    "Compilers contract a * b + c; strict arithmetic forbids it.",
)
SUM_ORDER = Flag(
    "sum_order",
    "another order of summation",
    "Strict sums are hsum over features and psum over positions; anything else differs in the last bit.",
)
RECIPROCAL = Flag(
    "reciprocal",
    "division computed as a product with the reciprocal",
    "number / tensor runs as a reciprocal and a product in common libraries and rounds twice.",
)
ROOT = Flag(
    "root",
    "square root one unit off",
    "Vectorised float32 roots are not correctly rounded everywhere.",
)
WRONG_LAYER = Flag(
    "wrong_layer",
    "a layer computed with another layer's weights",
    "Probes after every block find the first wrong one.",
)
PROMPT_SPLIT = Flag(
    "prompt_split",
    "generation differs from a full pass",
    "Token by token with a cache equals one pass over everything, bit for bit, in strict arithmetic.",
)
