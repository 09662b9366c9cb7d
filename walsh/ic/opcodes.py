"""The opcodes that a replica runs: name, number, immediates and class of each, in one table.

WebAssembly 1.0 with sign extension, saturating conversions, multi-value, bulk memory, reference types, fixed-width
SIMD and tail calls (W3C, *WebAssembly Core Specification*, chapter 5, Binary Format). An opcode is a byte, or a prefix
byte 0xFC or 0xFD and a LEB128 number; its key here is ``byte`` or ``prefix << 16 | number``.

Immediates are named by kind: ``block`` a block type, ``label``, ``labels`` a branch table, ``func``, ``type``,
``table``, ``local``, ``global``, ``memory``, ``data`` and ``elem`` indices, ``memarg`` alignment and offset, ``i32``,
``i64``, ``f32``, ``f64``, ``v128`` constants, ``lane`` a byte, ``lanes`` sixteen, ``types`` a vector of value types and
``heap`` a heap type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SATURATING, SIMD = 0xFC << 16, 0xFD << 16

SEGMENT_ENDS = frozenset(
    {
        *("loop", "if", "else", "end", "br", "br_if", "br_table"),
        *("return", "unreachable", "return_call", "return_call_indirect"),
    }
)
"""Instructions after which a straight-line segment ends. ``block`` and calls that return do not end one."""

_WIDTH = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}


@dataclass(frozen=True)
class Opcode:
    """One instruction.

    Attributes:
        key: its number, see the module docstring.
        name: as the text format spells it; both encodings of ``select`` are called ``select``.
        immediates: the kinds of its immediates, in order.
        category: what a breakdown groups it under.
        width: bytes read or written by a load or store, else 0.
        operand: value type that lies above the address on the stack (stores and lane loads), else "".
        ends_segment: whether a straight-line segment ends after it.
    """

    key: int
    name: str
    immediates: tuple[str, ...]
    category: str
    width: int
    operand: str
    ends_segment: bool

    @property
    def stores(self) -> bool:
        """Whether it writes memory at an address with a memarg."""
        return self.width > 0 and ".store" in self.name

    @property
    def encoding(self) -> bytes:
        """The bytes of the opcode without immediates."""
        if self.key < SATURATING:
            return bytes([self.key])
        number = self.key & 0xFFFF
        prefix = bytes([self.key >> 16])
        return prefix + (bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7]))


def _access(name: str) -> tuple[int, str]:
    """(width, operand) of a load or store by its name, (0, "") for anything else."""
    match = re.fullmatch(r"(\w+)\.(load|store)(\d+)?(x\d)?(_\w+)?", name)
    if match is None:
        return 0, ""
    kind, verb, bits, times, rest = match.groups()
    width = 8 if times else int(bits) // 8 if bits else _WIDTH[kind]
    return width, kind if verb == "store" or rest == "_lane" else ""


def _run(first: int, category: str, immediates: str, names: str) -> Iterator[Opcode]:
    """Opcodes with consecutive numbers from ``first``; a dot skips a number."""
    for key, name in enumerate(names.split(), first):
        if name != ".":
            width, operand = _access(name)
            yield Opcode(key, name, tuple(immediates.split()), category, width, operand, name in SEGMENT_ENDS)


def _each(shapes: str, names: str) -> str:
    """Every name for every shape: ``_each("i8x16 i16x8", "eq ne")``."""
    return " ".join(f"{shape}.{name}" for shape in shapes.split() for name in names.split())


_COMPARE = "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"
_INTEGER = "clz ctz popcnt add sub mul div_s div_u rem_s rem_u and or xor shl shr_s shr_u rotl rotr"
_FLOAT = "abs neg ceil floor trunc nearest sqrt add sub mul div min max copysign"
_LOADS = "load8_s load8_u load16_s load16_u"


def _scalar() -> Iterator[Opcode]:
    yield from _run(0x00, "control", "", "unreachable nop")
    yield from _run(0x02, "control", "block", "block loop if")
    yield from _run(0x05, "control", "", "else")
    yield from _run(0x0B, "control", "", "end")
    yield from _run(0x0C, "control", "label", "br br_if")
    yield from _run(0x0E, "control", "labels", "br_table")
    yield from _run(0x0F, "control", "", "return")
    yield from _run(0x10, "call", "func", "call")
    yield from _run(0x11, "call", "type table", "call_indirect")
    yield from _run(0x12, "call", "func", "return_call")
    yield from _run(0x13, "call", "type table", "return_call_indirect")
    yield from _run(0x1A, "stack", "", "drop select")
    yield from _run(0x1C, "stack", "types", "select")
    yield from _run(0x20, "variable", "local", "local.get local.set local.tee")
    yield from _run(0x23, "variable", "global", "global.get global.set")
    yield from _run(0x25, "table", "table", "table.get table.set")
    yield from _run(0x28, "load", "memarg", "i32.load i64.load f32.load f64.load")
    yield from _run(0x2C, "load", "memarg", _each("i32", _LOADS))
    yield from _run(0x30, "load", "memarg", _each("i64", f"{_LOADS} load32_s load32_u"))
    yield from _run(0x36, "store", "memarg", "i32.store i64.store f32.store f64.store i32.store8 i32.store16")
    yield from _run(0x3C, "store", "memarg", "i64.store8 i64.store16 i64.store32")
    yield from _run(0x3F, "memory", "memory", "memory.size memory.grow")
    for key, kind in enumerate(("i32", "i64", "f32", "f64"), 0x41):
        yield from _run(key, "constant", kind, f"{kind}.const")
    yield from _run(0x45, "integer", "", f"i32.eqz {_each('i32', _COMPARE)}")
    yield from _run(0x50, "integer", "", f"i64.eqz {_each('i64', _COMPARE)}")
    yield from _run(0x5B, "float", "", _each("f32 f64", "eq ne lt gt le ge"))
    yield from _run(0x67, "integer", "", _each("i32 i64", _INTEGER))
    yield from _run(0x8B, "float", "", _each("f32 f64", _FLOAT))
    yield from _run(0xA7, "conversion", "", "i32.wrap_i64 " + _each("i32", "trunc_f32_s trunc_f32_u"))
    yield from _run(0xAA, "conversion", "", _each("i32", "trunc_f64_s trunc_f64_u"))
    yield from _run(0xAC, "conversion", "", _each("i64", "extend_i32_s extend_i32_u trunc_f32_s trunc_f32_u"))
    yield from _run(0xB0, "conversion", "", _each("i64", "trunc_f64_s trunc_f64_u"))
    converts = "convert_i32_s convert_i32_u convert_i64_s convert_i64_u"
    yield from _run(0xB2, "conversion", "", _each("f32", f"{converts} demote_f64"))
    yield from _run(0xB7, "conversion", "", _each("f64", f"{converts} promote_f32"))
    reinterprets = "i32.reinterpret_f32 i64.reinterpret_f64 f32.reinterpret_i32 f64.reinterpret_i64"
    yield from _run(0xBC, "conversion", "", reinterprets)
    extends = "i32.extend8_s i32.extend16_s i64.extend8_s i64.extend16_s i64.extend32_s"
    yield from _run(0xC0, "conversion", "", extends)
    yield from _run(0xD0, "reference", "heap", "ref.null")
    yield from _run(0xD1, "reference", "", "ref.is_null")
    yield from _run(0xD2, "reference", "func", "ref.func")


def _prefixed() -> Iterator[Opcode]:
    saturating = "trunc_sat_f32_s trunc_sat_f32_u trunc_sat_f64_s trunc_sat_f64_u"
    yield from _run(SATURATING, "conversion", "", _each("i32 i64", saturating))
    yield from _run(SATURATING + 8, "memory", "data memory", "memory.init")
    yield from _run(SATURATING + 9, "memory", "data", "data.drop")
    yield from _run(SATURATING + 10, "memory", "memory memory", "memory.copy")
    yield from _run(SATURATING + 11, "memory", "memory", "memory.fill")
    yield from _run(SATURATING + 12, "table", "elem table", "table.init")
    yield from _run(SATURATING + 13, "table", "elem", "elem.drop")
    yield from _run(SATURATING + 14, "table", "table table", "table.copy")
    yield from _run(SATURATING + 15, "table", "table", "table.grow table.size table.fill")


def _lanewise(first: int, names: str) -> Iterator[Opcode]:
    """SIMD arithmetic: the category follows from the shape of the result."""
    for opcode in _run(SIMD + first, "simd_integer", "", names):
        if opcode.name.startswith("f"):
            yield from _run(opcode.key, "simd_float", "", opcode.name)
        else:
            yield opcode


def _halves(name: str, half: str) -> str:
    return " ".join(f"{name}_{part}_{half}_{sign}" for sign in "su" for part in ("low", "high"))


def _simd() -> Iterator[Opcode]:
    loads = "load load8x8_s load8x8_u load16x4_s load16x4_u load32x2_s load32x2_u"
    yield from _run(SIMD, "simd_load", "memarg", _each("v128", loads))
    yield from _run(
        SIMD + 7, "simd_load", "memarg", _each("v128", "load8_splat load16_splat load32_splat load64_splat")
    )
    yield from _run(SIMD + 11, "simd_store", "memarg", "v128.store")
    yield from _run(SIMD + 12, "constant", "v128", "v128.const")
    yield from _run(SIMD + 13, "simd_lane", "lanes", "i8x16.shuffle")
    yield from _run(SIMD + 14, "simd_lane", "", "i8x16.swizzle")
    yield from _run(SIMD + 15, "simd_lane", "", _each("i8x16 i16x8 i32x4 i64x2 f32x4 f64x2", "splat"))
    narrow, wide = "extract_lane_s extract_lane_u replace_lane", "extract_lane replace_lane"
    lanes = f"{_each('i8x16 i16x8', narrow)} {_each('i32x4 i64x2 f32x4 f64x2', wide)}"
    yield from _run(SIMD + 21, "simd_lane", "lane", lanes)
    yield from _lanewise(35, f"{_each('i8x16 i16x8 i32x4', _COMPARE)} {_each('f32x4 f64x2', 'eq ne lt gt le ge')}")
    yield from _lanewise(77, _each("v128", "not and andnot or xor bitselect any_true"))
    yield from _run(
        SIMD + 84, "simd_load", "memarg lane", _each("v128", "load8_lane load16_lane load32_lane load64_lane")
    )
    stores = "store8_lane store16_lane store32_lane store64_lane"
    yield from _run(SIMD + 88, "simd_store", "memarg lane", _each("v128", stores))
    yield from _run(SIMD + 92, "simd_load", "memarg", "v128.load32_zero v128.load64_zero")
    yield from _lanewise(94, "f32x4.demote_f64x2_zero f64x2.promote_low_f32x4")
    yield from _lanewise(96, _each("i8x16", "abs neg popcnt all_true bitmask narrow_i16x8_s narrow_i16x8_u"))
    yield from _lanewise(103, _each("f32x4", "ceil floor trunc nearest"))
    saturated = "shl shr_s shr_u add add_sat_s add_sat_u sub sub_sat_s sub_sat_u"
    yield from _lanewise(107, f"{_each('i8x16', saturated)} f64x2.ceil f64x2.floor")
    yield from _lanewise(118, f"{_each('i8x16', 'min_s min_u max_s max_u')} f64x2.trunc i8x16.avgr_u")
    yield from _lanewise(124, _each("i16x8", "extadd_pairwise_i8x16_s extadd_pairwise_i8x16_u"))
    yield from _lanewise(126, _each("i32x4", "extadd_pairwise_i16x8_s extadd_pairwise_i16x8_u"))
    yield from _lanewise(128, _each("i16x8", "abs neg q15mulr_sat_s all_true bitmask narrow_i32x4_s narrow_i32x4_u"))
    for first, shape, half in ((135, "i16x8", "i8x16"), (167, "i32x4", "i16x8"), (199, "i64x2", "i32x4")):
        yield from _lanewise(first, _each(shape, _halves("extend", half)))
    yield from _lanewise(139, f"{_each('i16x8', saturated)} f64x2.nearest")
    yield from _lanewise(149, f"{_each('i16x8', 'mul min_s min_u max_s max_u')} . i16x8.avgr_u")
    for first, shape, half in ((156, "i16x8", "i8x16"), (188, "i32x4", "i16x8"), (220, "i64x2", "i32x4")):
        yield from _lanewise(first, _each(shape, _halves("extmul", half)))
    yield from _lanewise(160, "i32x4.abs i32x4.neg . i32x4.all_true i32x4.bitmask")
    yield from _lanewise(171, "i32x4.shl i32x4.shr_s i32x4.shr_u i32x4.add . . i32x4.sub")
    yield from _lanewise(181, _each("i32x4", "mul min_s min_u max_s max_u dot_i16x8_s"))
    yield from _lanewise(192, "i64x2.abs i64x2.neg . i64x2.all_true i64x2.bitmask")
    yield from _lanewise(203, "i64x2.shl i64x2.shr_s i64x2.shr_u i64x2.add . . i64x2.sub . . . i64x2.mul")
    yield from _lanewise(214, _each("i64x2", "eq ne lt_s gt_s le_s ge_s"))
    for first, shape in ((224, "f32x4"), (236, "f64x2")):
        yield from _lanewise(first, _each(shape, "abs neg"))
        yield from _lanewise(first + 3, _each(shape, "sqrt add sub mul div min max pmin pmax"))
    yield from _lanewise(248, "i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u")
    yield from _lanewise(250, "f32x4.convert_i32x4_s f32x4.convert_i32x4_u")
    yield from _lanewise(252, "i32x4.trunc_sat_f64x2_s_zero i32x4.trunc_sat_f64x2_u_zero")
    yield from _lanewise(254, "f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u")


OPCODES: dict[int, Opcode] = {opcode.key: opcode for part in (_scalar(), _prefixed(), _simd()) for opcode in part}
"""Every opcode by key."""

BY_NAME: dict[str, Opcode] = {opcode.name: opcode for opcode in reversed(OPCODES.values())}
"""Every opcode by name; ``select`` is the untyped one."""


def refusal(key: int) -> str | None:
    """The proposal that an opcode outside the table belongs to, or None if it belongs to none."""
    if key >> 16 == 0xFE:
        return "threads"
    if key >> 16 == 0xFB:
        return "garbage collection"
    if key >> 16 == 0xFD and 0x100 <= key & 0xFFFF < 0x114:
        return "relaxed SIMD"
    if key >> 16 == 0xFC and 19 <= key & 0xFFFF < 23:
        return "wide arithmetic"
    if key in {0x06, 0x07, 0x08, 0x09, 0x0A, 0x18, 0x19, 0x1F}:
        return "exceptions"
    return "typed function references" if key in {0x14, 0x15, 0xD3, 0xD4, 0xD5, 0xD6} else None
