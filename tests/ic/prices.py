"""The published weights, written down a second time: as rules over names, not as a list.

Nothing here is read from the package's table; a weight that changes there without changing here fails a test.
"""

import re

CONTROL = {
    **dict.fromkeys(["block", "loop", "else", "end"], 0),
    **dict.fromkeys(["if", "br", "br_if", "br_table"], 2),
    **dict.fromkeys(["return", "drop", "nop", "unreachable", "select"], 1),
    "call": 5,
    "call_indirect": 10,
    "return_call": 3,
    "return_call_indirect": 60,
    "ref.null": 1,
    "ref.is_null": 5,
    "ref.func": 130,
    "memory.size": 20,
    "memory.grow": 300,
    "data.drop": 300,
    "elem.drop": 300,
    "table.get": 5,
    "table.set": 5,
    "table.size": 100,
    "table.grow": 300,
}

RULES = [
    (r"local\..*", 1),
    (r"global\..*", 2),
    (r"(memory|table)\.(fill|copy|init)", 100),
    (r"i(32|64)\.(div|rem)_[su]", 10),
    (r"i(32|64)\.trunc(_sat)?_f.*", 20),
    (r"f(32|64)\.(const|abs|neg|reinterpret_.*|promote_.*|demote_.*|load|store)", 1),
    (r"f(32|64)\.(add|sub|mul|ceil|floor|trunc|nearest)", 2),
    (r"f32\.div|f64\.copysign", 3),
    (r"f32\.copysign", 2),
    (r"f64\.div|f32\.sqrt", 5),
    (r"f64\.sqrt", 8),
    (r"f(32|64)\.(min|max)", 18),
    (r"f(32|64)\.(eq|ne|lt|gt|le|ge)", 3),
    (r"f(32|64)\.convert_i\d\d_s", 3),
    (r"f(32|64)\.convert_i\d\d_u", 16),
    (r"i(32|64)\..*", 1),
    (r"i8x16\.(shuffle|popcnt|shl|shr_s)", 3),
    (r"(i8x16|i16x8|i32x4)\.(lt|gt)_u", 2),
    (r"i8x16\.shr_u", 2),
    (r"i16x8\.(shl|shr_[su]|extmul_high_.*|extadd_pairwise_i8x16_u)", 2),
    (r"i32x4\.(shl|shr_[su]|mul|extmul_.*)", 2),
    (r"i32x4\.extadd_pairwise_i16x8_u|i64x2\.shr_s", 3),
    (r"i64x2\.(shl|shr_u)", 2),
    (r"i64x2\.mul", 4),
    (r"f(32x4|64x2)\.(add|sub|mul|abs|neg|ceil|floor|trunc|nearest)", 2),
    (r"f32x4\.sqrt|f64x2\.max", 5),
    (r"f32x4\.div", 10),
    (r"f(32x4|64x2)\.min|f32x4\.max", 4),
    (r"f64x2\.sqrt", 14),
    (r"f64x2\.div", 12),
    (r"i32x4\.trunc_sat_f32x4_s|i32x4\.trunc_sat_f64x2_s_zero", 2),
    (r"i32x4\.trunc_sat_f32x4_u|f32x4\.convert_i32x4_u", 4),
    (r"i32x4\.trunc_sat_f64x2_u_zero", 3),
    (r"(i8x16|i16x8|i32x4|i64x2|f32x4|f64x2|v128)\..*", 1),
]


def price(name: str) -> int:
    """Weight of an instruction."""
    if name in CONTROL:
        return CONTROL[name]
    return next(cost for pattern, cost in RULES if re.fullmatch(pattern, name))
