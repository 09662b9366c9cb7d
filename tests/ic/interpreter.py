"""A second counter: a small WebAssembly interpreter that charges as it reads the published rules.

It shares nothing with the pass: a program here is a flat list of tuples, printed as WebAssembly text for the engine and
walked directly by :class:`Machine`, which charges a straight-line segment when it steps onto its first instruction.
"""

import math
import struct
from dataclasses import dataclass, field

from prices import price

PAGE, ACCESS, WRITE = 65536, 80_000, 80_000
ENDERS = {"loop", "if", "else", "end", "br", "br_if", "br_table", "return", "unreachable", "return_call"}
WIDTH = {"i32.load8_u": 1, "i32.store8": 1, "i32.load16_s": 2, "i32.load": 4, "i32.store": 4, "i64.load": 8}
WIDTH |= {"i64.store": 8, "f64.load": 8, "f64.store": 8, "f32.load": 4, "f32.store": 4, "v128.load": 16}
WIDTH |= {"v128.store": 16, "i64.load32_s": 4, "i64.store16": 2}


class Trap(Exception):  # noqa: N818  the specification's word
    pass


class TooLong(Exception):  # noqa: N818  not an error: the program is thrown away
    pass


@dataclass
class Function:
    params: list[str]
    results: list[str]
    locals: list[str]
    code: list[tuple]


@dataclass
class Program:
    functions: list[Function]
    pages: int = 2
    globals: int = 2

    def wat(self) -> str:
        parts = [f'(memory (export "memory") {self.pages} {self.pages + 1})', "(table 8 funcref)"]
        parts += [f'(global $g{i} (export "g{i}") (mut i32) (i32.const {i}))' for i in range(self.globals)]
        parts.append(f"(elem (i32.const 0) func {' '.join(f'$f{i}' for i in range(len(self.functions)))})")
        for i, f in enumerate(self.functions):
            header = f'(func $f{i} (export "f{i}") (param {" ".join(f.params)}) (result {" ".join(f.results)})'
            body = "\n".join(self.line(token) for token in f.code[:-1])
            parts.append(f"{header} (local {' '.join(f.locals)})\n{body})")
        return f"(module {' '.join(parts)})"

    @staticmethod
    def line(token: tuple) -> str:
        name, *args = token
        if name in {"block", "loop", "if"}:
            return f"{name} (result {args[0]})" if args[0] else name
        if name in WIDTH:
            return f"{name} offset={args[0]}"
        if name == "call":
            return f"call $f{args[0]}"
        if name == "return_call":
            return f"return_call $f{args[0]}"
        if name == "call_indirect":
            return f"call_indirect (param {' '.join(args[0])}) (result {' '.join(args[1])})"
        if name == "br_table":
            return f"br_table {' '.join(map(str, args[0]))}"
        if name.startswith("global."):
            return f"{name} $g{args[0]}"
        if name in {"f32.const", "f64.const"}:
            return f"{name} {args[0]!r}"
        return " ".join([name, *map(str, args)])


def sign(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def f32(value: float) -> float:
    if math.isnan(value) or math.isinf(value):
        return value
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def divide(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
    return a / b


def saturate(value: float, low: int, high: int) -> int:
    if math.isnan(value):
        return 0
    return low if value <= low else high if value >= high else int(value)


@dataclass
class Machine:
    program: Program
    steps: int = 20_000
    paged: bool = False
    counter: int = 0
    accessed: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    stacks: dict[tuple[int, ...], int] = field(default_factory=dict)
    stack: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = bytearray(self.program.pages * PAGE)
        self.globals = list(range(self.program.globals))

    def charge(self, amount: int) -> None:
        self.counter += amount
        key = tuple(self.stack)
        self.stacks[key] = self.stacks.get(key, 0) + amount

    def span(self, start: int, size: int, write: bool) -> int:
        if start + size > len(self.memory):
            raise Trap("out of bounds")
        if self.paged and size:
            for page in range(start // PAGE, (start + size - 1) // PAGE + 1):
                if page not in self.accessed:
                    self.accessed.add(page)
                    self.charge(ACCESS)
                if write and page not in self.written:
                    self.written.add(page)
                    self.charge(WRITE)
        return start

    def segment(self, code: list[tuple], at: int) -> int:
        total = 1 if at == 0 else 0
        while True:
            total += price(code[at][0])
            at += 1
            if code[at - 1][0] in ENDERS:
                return total

    def call(self, index: int, args: list) -> list:
        self.stack.append(index)
        while True:
            result = self.body(index, args)
            if isinstance(result, tuple):
                _, index, args = result
                self.stack[-1] = index
                continue
            self.stack.pop()
            return result

    def body(self, index: int, args: list) -> list | tuple:
        function = self.program.functions[index]
        code = function.code
        ends, elses = matches(code)
        zero = {"i32": 0, "i64": 0, "f32": 0.0, "f64": 0.0, "v128": bytes(16)}
        variables = args + [zero[kind] for kind in function.locals]
        stack: list = []
        labels: list[tuple[int, int, int, bool]] = [(len(code) - 1, 0, len(function.results), False)]
        at = 0
        while at < len(code):
            self.steps -= 1
            if self.steps < 0:
                raise TooLong
            if at == 0 or code[at - 1][0] in ENDERS:
                self.charge(self.segment(code, at))
            token = code[at]
            name = token[0]
            if name in {"block", "loop"}:
                labels.append(
                    (
                        at if name == "loop" else ends[at],
                        len(stack),
                        0 if name == "loop" else bool(token[1]),
                        name == "loop",
                    )
                )
            elif name == "if":
                labels.append((ends[at], len(stack) - 1, bool(token[1]), False))
                if not stack.pop():
                    if at in elses:
                        at = elses[at]
                    else:
                        at = ends[at]
                        labels.pop()
            elif name == "else":
                at = ends[at]
                labels.pop()
            elif name == "end":
                labels.pop()
            elif name in {"br", "br_if", "br_table"}:
                taken, depth = True, token[1]
                if name == "br_if":
                    taken = bool(stack.pop())
                elif name == "br_table":
                    depth = token[1][min(stack.pop(), len(token[1]) - 1)]
                if taken:
                    at = branch(labels, stack, depth)
            elif name == "return":
                return stack[len(stack) - len(function.results) :]
            elif name == "return_call":
                count = len(self.program.functions[token[1]].params)
                return "tail", token[1], stack[len(stack) - count :]
            elif name in {"call", "call_indirect"}:
                self.invoke(token, stack)
            elif name.startswith("local."):
                if name == "local.get":
                    stack.append(variables[token[1]])
                else:
                    variables[token[1]] = stack[-1]
                    if name == "local.set":
                        stack.pop()
            else:
                self.plain(token, stack)
            at += 1
        return stack

    def invoke(self, token: tuple, stack: list) -> None:
        if token[0] == "call":
            target = token[1]
        else:
            target = stack.pop()
            if target >= len(self.program.functions):
                raise Trap("undefined element")
            callee = self.program.functions[target]
            if (callee.params, callee.results) != (list(token[1]), list(token[2])):
                raise Trap("type mismatch")
        count = len(self.program.functions[target].params)
        args = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        stack += self.call(target, args)

    def plain(self, token: tuple, stack: list) -> None:
        name, *args = token
        if name == "unreachable":
            raise Trap("unreachable")
        if name == "nop":
            return
        if name == "drop":
            stack.pop()
        elif name == "select":
            condition, b, a = stack.pop(), stack.pop(), stack.pop()
            stack.append(a if condition else b)
        elif name == "global.get":
            stack.append(self.globals[args[0]])
        elif name == "global.set":
            self.globals[args[0]] = stack.pop()
        elif name.endswith(".const"):
            bits = int(name[1:3])
            stack.append(args[0] & ((1 << bits) - 1) if name[0] == "i" else args[0])
        elif name.startswith("memory."):
            self.bulk(name, stack)
        elif ".load" in name:
            start = self.span(stack.pop() + args[0], WIDTH[name], False)
            stack.append(unpack(name, bytes(self.memory[start : start + WIDTH[name]])))
        elif ".store" in name:
            value = stack.pop()
            start = self.span(stack.pop() + args[0], WIDTH[name], True)
            self.memory[start : start + WIDTH[name]] = pack(name, value)
        else:
            numeric(name, args, stack)

    def bulk(self, name: str, stack: list) -> None:
        if name == "memory.size":
            stack.append(len(self.memory) // PAGE)
            return
        if name == "memory.grow":
            before = len(self.memory) // PAGE
            more = stack.pop()
            fits = before + more <= self.program.pages + 1
            stack.append(before if fits else 0xFFFFFFFF)
            if fits:
                self.memory += bytes(more * PAGE)
            return
        size, second, target = stack.pop(), stack.pop(), stack.pop()
        self.charge(size)
        # Both ranges are checked before anything is touched, as the operation itself checks them.
        if target + size > len(self.memory) or (name == "memory.copy" and second + size > len(self.memory)):
            if name == "memory.copy" and second + size <= len(self.memory):
                self.span(second, size, False)
            elif name == "memory.copy" and target + size <= len(self.memory):
                self.span(target, size, True)
            raise Trap("out of bounds")
        if name == "memory.copy":
            data = bytes(self.memory[second : second + size])
            self.span(second, size, False)
        else:
            data = bytes([second & 255]) * size
        self.span(target, size, True)
        self.memory[target : target + size] = data


def branch(labels: list, stack: list, depth: int) -> int:
    """Unwind to a label; the position whose successor comes next."""
    target, height, arity, loop = labels[-1 - depth]
    kept = stack[len(stack) - arity :] if arity else []
    del stack[height:]
    stack += kept
    del labels[len(labels) - depth - (0 if loop else 1) :]
    return target


def matches(code: list[tuple]) -> tuple[dict[int, int], dict[int, int]]:
    """Positions of the end (of a block or an else) and of the else (of an if)."""
    ends, elses, opened = {}, {}, []
    for at, (name, *_) in enumerate(code[:-1]):
        if name in {"block", "loop", "if"}:
            opened.append([at])
        elif name == "else":
            elses[opened[-1][0]] = at
            opened[-1].append(at)
        elif name == "end":
            for start in opened.pop():
                ends[start] = at
    return ends, elses


def unpack(name: str, raw: bytes):
    if name[0] == "v":
        return raw
    if name[0] == "f":
        return struct.unpack("<f" if name[1:3] == "32" else "<d", raw)[0]
    return int.from_bytes(raw, "little", signed=name.endswith("_s")) & ((1 << int(name[1:3])) - 1)


def pack(name: str, value) -> bytes:
    if name[0] == "v":
        return value
    if name[0] == "f":
        # The engine canonicalises NaN as a replica does, so its bits are known.
        bits, form = (0x7FC00000, "f") if name[1:3] == "32" else (0x7FF8000000000000, "d")
        raw = struct.pack("<" + form, value)
        return bits.to_bytes(len(raw), "little") if math.isnan(value) else raw
    return (value & ((1 << (8 * WIDTH[name])) - 1)).to_bytes(WIDTH[name], "little")


def numeric(name: str, args: list, stack: list) -> None:
    kind, op = name.split(".")
    if kind in {"i32", "i64"}:
        integer(int(kind[1:]), op, stack)
    elif kind in {"f32", "f64"}:
        floating(kind, op, stack)
    elif name == "i32x4.splat":
        stack.append(struct.pack("<I", stack.pop()) * 4)
    elif name == "i32x4.extract_lane":
        stack.append(struct.unpack("<4I", stack.pop())[args[0]])
    elif name == "i32x4.add":
        b, a = struct.unpack("<4I", stack.pop()), struct.unpack("<4I", stack.pop())
        stack.append(struct.pack("<4I", *((p + q) & 0xFFFFFFFF for p, q in zip(a, b, strict=True))))
    elif name == "i32x4.dot_i16x8_s":
        b, a = struct.unpack("<8h", stack.pop()), struct.unpack("<8h", stack.pop())
        sums = [a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1] for i in range(4)]
        stack.append(struct.pack("<4I", *(s & 0xFFFFFFFF for s in sums)))
    else:
        raise NotImplementedError(name)


def integer(bits: int, op: str, stack: list) -> None:
    mask = (1 << bits) - 1
    b = stack.pop()
    if op in {"eqz", "clz", "ctz", "popcnt", "extend8_s", "wrap_i64", "extend_i32_s", "extend_i32_u"} or op.startswith(
        "trunc_sat"
    ):
        text = f"{b:0{bits}b}" if isinstance(b, int) else ""
        unary = {
            "eqz": lambda: int(b == 0),
            "clz": lambda: bits - b.bit_length(),
            "ctz": lambda: len(text) - len(text.rstrip("0")) if b else bits,
            "popcnt": lambda: text.count("1"),
            "extend8_s": lambda: sign(b & 255, 8),
            "wrap_i64": lambda: b,
            "extend_i32_s": lambda: sign(b, 32),
            "extend_i32_u": lambda: b,
            "trunc_sat_f64_s": lambda: saturate(b, -1 << (bits - 1), (1 << (bits - 1)) - 1),
            "trunc_sat_f32_u": lambda: saturate(b, 0, mask),
        }
        stack.append(unary[op]() & mask)
        return
    a = stack.pop()
    sa, sb = sign(a, bits), sign(b, bits)
    if op.startswith(("div", "rem")):
        p, q = (sa, sb) if op.endswith("s") else (a, b)
        if q == 0 or (op == "div_s" and sa == -1 << (bits - 1) and sb == -1):
            raise Trap("division")
        quotient = abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
        stack.append((quotient if op.startswith("div") else p - q * quotient) & mask)
        return
    turn = b % bits
    binary = {
        "add": a + b,
        "sub": a - b,
        "mul": a * b,
        "and": a & b,
        "or": a | b,
        "xor": a ^ b,
        "shl": a << turn,
        "shr_u": a >> turn,
        "shr_s": sa >> turn,
        "rotl": (a << turn) | (a >> (bits - turn)),
        "eq": a == b,
        "ne": a != b,
        "lt_s": sa < sb,
        "lt_u": a < b,
        "gt_s": sa > sb,
        "ge_u": a >= b,
        "le_s": sa <= sb,
    }
    stack.append(int(binary[op]) & mask)


def floating(kind: str, op: str, stack: list) -> None:
    rounded = f32 if kind == "f32" else float
    b = stack.pop()
    if op in {"convert_i32_s", "convert_i64_s"}:
        # Programs use i32 -> f32 and i64 -> f64 only, which go through a double without being rounded twice.
        stack.append(rounded(float(sign(b, int(op[9:11])))))
        return
    if op in {"neg", "abs", "promote_f32", "demote_f64", "convert_i32_u"}:
        stack.append({"neg": -b, "abs": abs(b)}.get(op, rounded(float(b))))
        return
    a = stack.pop()
    if op in {"lt", "eq", "ge"}:
        stack.append(int({"lt": a < b, "eq": a == b, "ge": a >= b}[op]))
    elif op == "div":
        stack.append(rounded(divide(a, b)))
    else:
        try:
            stack.append(rounded({"add": a + b, "sub": a - b, "mul": a * b}[op]))
        except OverflowError:
            stack.append(math.inf)
