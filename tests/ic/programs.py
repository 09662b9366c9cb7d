"""Random well-typed programs for the differential test. Loops are counted, calls go to earlier functions: they end."""

import random

from interpreter import Function, Program

VALUES = ("i32", "i64", "f32", "f64", "v128")
BINARY = {
    "i32": [
        "add",
        "sub",
        "mul",
        "and",
        "or",
        "xor",
        "shl",
        "shr_u",
        "shr_s",
        "rotl",
        "div_s",
        "div_u",
        "rem_s",
        "rem_u",
    ],
    "i64": ["add", "sub", "mul", "and", "or", "xor", "shl", "shr_u", "shr_s", "rotl", "div_s", "rem_u"],
    "f32": ["add", "sub", "mul", "div"],
    "f64": ["add", "sub", "mul", "div"],
}
UNARY = {
    "i32": [
        *(("clz", "i32"), ("popcnt", "i32"), ("ctz", "i32"), ("extend8_s", "i32"), ("wrap_i64", "i64")),
        *(("eqz", "i32"), ("trunc_sat_f64_s", "f64"), ("trunc_sat_f32_u", "f32")),
    ],
    "i64": [("clz", "i64"), ("extend_i32_s", "i32"), ("extend_i32_u", "i32"), ("trunc_sat_f64_s", "f64")],
    "f32": [("convert_i32_s", "i32"), ("convert_i32_u", "i32"), ("demote_f64", "f64")],
    "f64": [("convert_i64_s", "i64"), ("promote_f32", "f32"), ("convert_i32_u", "i32")],
}
TESTS = ["i32.lt_s", "i32.eq", "i32.ge_u", "i64.gt_s", "i64.ne", "i32.lt_u", "f64.lt", "f32.eq", "f32.ge"]
LOADS = {"i32": ["i32.load", "i32.load8_u", "i32.load16_s"], "i64": ["i64.load", "i64.load32_s"], "v128": ["v128.load"]}
STORES = ["i32.store", "i32.store8", "i64.store", "i64.store16", "f32.store", "f64.store", "v128.store"]


class Writer:
    """Writes one function; ``earlier`` are those it may call."""

    def __init__(self, choose: random.Random, earlier: list[Function]) -> None:
        self.choose, self.earlier = choose, earlier
        self.params = [choose.choice(VALUES[:4]) for _ in range(choose.randrange(3))]
        self.results = [choose.choice(VALUES[:4])]
        self.locals = [choose.choice(VALUES) for _ in range(choose.randrange(1, 4))]
        self.counters = 0
        self.labels: list[str | None] = [self.results[0]]
        self.loops: list[bool] = [False]

    def function(self) -> Function:
        code = [*self.statement(4), *self.statements(4), *self.statements(3), *self.value(self.results[0], 4), ("end",)]
        return Function(self.params, self.results, self.locals, code)

    def variables(self, kind: str) -> list[int]:
        hidden = getattr(self, "hidden", set())
        return [i for i, k in enumerate(self.params + self.locals) if k == kind and i not in hidden]

    def constant(self, kind: str) -> tuple:
        pick = self.choose
        if kind == "i32":
            return "i32.const", pick.choice(
                [0, 1, 2, 5, 100, 65528, 65535, 131071, -1, -(2**31), pick.randrange(-300, 300)]
            )
        if kind == "i64":
            return "i64.const", pick.choice([0, 1, 7, -1, 2**62, -(2**63), pick.randrange(-(2**40), 2**40)])
        return f"{kind}.const", pick.choice([0.0, -0.0, 1.5, -2.0, 1e9, 0.125])

    def value(self, kind: str, depth: int) -> list[tuple]:
        """Code that leaves one value of this type."""
        pick = self.choose.random()
        here = self.variables(kind)
        if here and pick < 0.3:
            return [("local.get", self.choose.choice(here))]
        if kind == "v128":
            return self.vector(depth)
        if depth <= 0 or pick < 0.4:
            return [self.constant(kind)]
        if pick < 0.6:
            op = self.choose.choice(BINARY[kind])
            return [*self.value(kind, depth - 1), *self.value(kind, depth - 1), (f"{kind}.{op}",)]
        if pick < 0.7:
            op, source = self.choose.choice(UNARY[kind])
            return [*self.value(source, depth - 1), (f"{kind}.{op}",)]
        if pick < 0.75:
            both = [*self.value(kind, depth - 1), *self.value(kind, depth - 1)]
            return [*both, *self.value("i32", depth - 1), ("select",)]
        if pick < 0.8 and kind in LOADS:
            return [*self.value("i32", depth - 1), (self.choose.choice(LOADS[kind]), self.offset())]
        if pick < 0.9:
            return self.blocky(kind, depth - 1)
        if pick < 0.96:
            return self.call(kind, depth - 1) or [self.constant(kind)]
        return self.special(kind, depth - 1)

    def special(self, kind: str, depth: int) -> list[tuple]:
        if kind != "i32":
            return [self.constant(kind)]
        pick = self.choose.randrange(6)
        if pick == 0:
            return [("memory.size",)]
        if pick == 1:
            return [("i32.const", self.choose.randrange(3)), ("memory.grow",)]
        if pick == 2:
            return [("global.get", self.choose.randrange(2))]
        if pick == 3:
            return [*self.value("v128", depth), ("i32x4.extract_lane", self.choose.randrange(4))]
        test = self.choose.choice(TESTS)
        return [*self.value(test[:3], depth), *self.value(test[:3], depth), (test,)]

    def vector(self, depth: int) -> list[tuple]:
        if depth <= 0 or self.choose.random() < 0.4:
            return [self.constant("i32"), ("i32x4.splat",)]
        if self.choose.random() < 0.3:
            return [*self.value("i32", depth - 1), ("v128.load", self.offset())]
        op = self.choose.choice(["i32x4.add", "i32x4.dot_i16x8_s"])
        return [*self.vector(depth - 1), *self.vector(depth - 1), (op,)]

    def offset(self) -> int:
        return self.choose.choice([0, 0, 1, 8, 65530, 65536, 131000])

    def blocky(self, kind: str | None, depth: int) -> list[tuple]:
        """A block, loop-free, or an if, that leaves a value of this type or nothing."""
        form = self.choose.choice(["block", "if"])
        head = self.value("i32", depth) if form == "if" else []
        self.labels.append(kind)
        self.loops.append(False)
        out = [*head, (form, kind), *self.inside(kind, depth)]
        if form == "if" and (kind or self.choose.random() < 0.5):
            out += [("else",), *self.inside(kind, depth)]
        self.labels.pop()
        self.loops.pop()
        return [*out, ("end",)]

    def inside(self, kind: str | None, depth: int) -> list[tuple]:
        out = self.statements(depth)
        if self.choose.random() < 0.25:
            return out + self.leave(depth)
        return out + (self.value(kind, depth) if kind else [])

    def targets(self) -> list[int]:
        return [d for d in range(len(self.labels)) if not self.loops[-1 - d]]

    def leave(self, depth: int) -> list[tuple]:
        """Code after which nothing runs; dead code may follow it."""
        target = self.choose.choice(self.targets())
        carried = self.labels[-1 - target]
        value = self.value(carried, depth) if carried else []
        pick = self.choose.random()
        if pick < 0.4:
            out = [*value, ("br", target)]
        elif pick < 0.55:
            same = [d for d in self.targets() if self.labels[-1 - d] == carried]
            table = tuple(self.choose.choice(same) for _ in range(self.choose.randrange(1, 4)))
            out = [*value, *self.value("i32", depth), ("br_table", table)]
        elif pick < 0.75:
            out = [*self.value(self.results[0], depth), ("return",)]
        elif pick < 0.85:
            out = [("unreachable",)]
        else:
            call = self.call(self.results[0], depth, tail=True)
            out = call or [("unreachable",)]
        if self.choose.random() < 0.3:
            out += [("i32.const", 3), ("drop",), ("nop",), ("unreachable",)]
        return out

    def call(self, kind: str, depth: int, tail: bool = False) -> list[tuple]:
        fitting = [i for i, f in enumerate(self.earlier) if f.results == [kind]]
        if not fitting:
            return []
        index = self.choose.choice(fitting)
        args = [token for p in self.earlier[index].params for token in self.value(p, depth)]
        if tail:
            return [*args, ("return_call", index)]
        if self.choose.random() < 0.4:
            slot = ("i32.const", self.choose.choice([index, index, index, self.choose.randrange(10)]))
            return [*args, slot, ("call_indirect", tuple(self.earlier[index].params), (kind,))]
        return [*args, ("call", index)]

    def statements(self, depth: int) -> list[tuple]:
        return [token for _ in range(self.choose.randrange(3)) for token in self.statement(depth)]

    def statement(self, depth: int) -> list[tuple]:
        pick = self.choose.random()
        if pick < 0.25:
            kind = self.choose.choice(VALUES)
            here = self.variables(kind)
            if not here:
                return [*self.value(kind, depth), ("drop",)]
            if pick < 0.08:
                return [*self.value(kind, depth), ("local.tee", self.choose.choice(here)), ("drop",)]
            return [*self.value(kind, depth), ("local.set", self.choose.choice(here))]
        if pick < 0.35:
            return [*self.value("i32", depth), ("global.set", self.choose.randrange(2))]
        if pick < 0.5:
            name = self.choose.choice(STORES)
            return [*self.value("i32", depth - 1), *self.value(name.split(".")[0], depth - 1), (name, self.offset())]
        if pick < 0.55:
            three = [token for _ in range(3) for token in self.value("i32", depth - 1)]
            return [*three, (self.choose.choice(["memory.fill", "memory.copy"]),)]
        if depth <= 0:
            return [("nop",)]
        if pick < 0.7:
            return self.blocky(None, depth - 1)
        if pick < 0.85:
            return self.loop(depth - 1)
        plain = [d for d in self.targets() if self.labels[-1 - d] is None]
        if not plain:
            return [("nop",)]
        return [*self.value("i32", depth - 1), ("br_if", self.choose.choice(plain))]

    def loop(self, depth: int) -> list[tuple]:
        """``do { ... } while (++counter < turns)`` with a counter of its own, perhaps continued from further inside."""
        self.locals.append("i32")
        counter = len(self.params) + len(self.locals) - 1
        self.hidden = getattr(self, "hidden", set()) | {counter}
        step = [("local.get", counter), ("i32.const", 1), ("i32.add",), ("local.tee", counter)]
        again = [*step, ("i32.const", self.choose.randrange(1, 6)), ("i32.lt_s",)]
        self.labels.append(None)
        self.loops.append(True)
        body = self.statements(depth)
        if self.choose.random() < 0.3:
            body += [*again, ("if", None), ("br", 1), ("end",)]
        self.labels.pop()
        self.loops.pop()
        return [("loop", None), *body, *again, ("br_if", 0), ("end",)]


def program(choose: random.Random) -> Program:
    functions: list[Function] = []
    for _ in range(choose.randrange(2, 6)):
        functions.append(Writer(choose, functions).function())
    return Program(functions)
