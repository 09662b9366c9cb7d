"""Pages of heap that a message touches: charged at their first access and at their first write.

A second memory holds one byte per page: bit 0 accessed, bit 1 written. Every load and store looks up the pages of its
first and last byte, and calls ``touch`` where a bit is missing. An access out of bounds touches nothing: it traps by
itself. The host clears the map before a message, and marks what system calls touch.

    counter += access * pages touched + write * pages written          (policies that charge at once)
"""

from __future__ import annotations

from collections.abc import Callable

from walsh.ic.assembler import EMPTY_BLOCK, code, sequence
from walsh.ic.binary import I32, I64, VALUE_TYPES, Limits
from walsh.ic.costs import PagePolicy
from walsh.ic.module import Body, FuncType, Module
from walsh.ic.wasm import Instruction

MAP = "canister page_map"
ACCESSED = "canister counter_pages_accessed"
WRITTEN = "canister counter_pages_written"
READ_BIT, WRITE_BIT = 1, 2


class Paging:
    """Emits page tracking into one module.

    Args:
        module: what it is added to.
        policy: page size and charges.
        charge: code that charges the i64 which the given code leaves.
        check: code that traps past the limit.
    """

    def __init__(
        self, module: Module, policy: PagePolicy, charge: Callable[[bytes], bytes], check: Callable[[], bytes]
    ) -> None:
        self.policy = policy
        self.shift = policy.page_bytes.bit_length() - 1
        zero = sequence(("i64.const", 0), "end")
        self.accessed = module.add_global(I64, zero, ACCESSED)
        self.written = module.add_global(I64, zero, WRITTEN)
        pages = max(1, (1 << 32 >> self.shift) >> 16)
        self.map = module.add_memory(Limits(pages, pages), MAP)
        self.touch = module.add_function(FuncType((I64, I64, I32), ()), self._touch(charge, check))

    def _touch(self, charge: Callable[[bytes], bytes], check: Callable[[], bytes]) -> Body:
        """``touch(first byte, last byte, bits)``: mark and charge the pages in between."""
        first, last, bits, page, state = range(5)

        def once(bit: int, counted: int, cost: int) -> bytes:
            paid = charge(code("i64.const", cost)) if cost and not self.policy.at_end else b""
            return (
                sequence(("local.get", bits), ("local.get", state), ("i32.const", -1), "i32.xor", "i32.and")
                + sequence(("i32.const", bit), "i32.and", ("if", EMPTY_BLOCK))
                + sequence(("global.get", counted), ("i64.const", 1), "i64.add", ("global.set", counted))
                + paid
                + code("end")
            )

        shift = sequence(("i64.const", self.shift), "i64.shr_u")
        wrapped = sequence(("local.get", page), "i32.wrap_i64")
        out = (
            sequence(("local.get", first), ("local.get", last), "i64.gt_u", ("if", EMPTY_BLOCK), "return", "end")
            + sequence(("local.get", last), ("memory.size", 0), "i64.extend_i32_u", ("i64.const", 16), "i64.shl")
            + sequence("i64.ge_u", ("if", EMPTY_BLOCK), "return", "end")
            + sequence(("local.get", first), *(("i64.const", self.shift), "i64.shr_u"), ("local.set", page))
            + code("loop", EMPTY_BLOCK)
            + wrapped
            + sequence(("i32.load8_u", self.map, 0), ("local.set", state))
            + once(READ_BIT, self.accessed, self.policy.access)
            + once(WRITE_BIT, self.written, self.policy.write)
            + wrapped
            + sequence(("local.get", state), ("local.get", bits), "i32.or", ("i32.store8", self.map, 0))
            + sequence(("local.get", page), ("i64.const", 1), "i64.add", ("local.tee", page), ("local.get", last))
            + shift
            + sequence("i64.le_u", ("br_if", 0), "end")
            + check()
            + code("end")
        )
        return Body(((1, I64), (1, I32)), out)

    def access(self, item: Instruction, local: Callable[[int, int], int]) -> bytes:
        """Code before a load or store: the operands stay on the stack."""
        opcode = item.opcode
        offset = item.immediates[1]
        address = local(I32, 0)
        bits = READ_BIT | WRITE_BIT if opcode.stores else READ_BIT
        save, restore = sequence(("local.tee", address)), b""
        if opcode.operand:
            value = local(VALUE_TYPES[opcode.operand], 3)
            save = sequence(("local.set", value), ("local.tee", address))
            restore = code("local.get", value)

        def byte(extra: int) -> bytes:
            constant = sequence(("i64.const", offset + extra), "i64.add") if offset + extra else b""
            return sequence(("local.get", address), "i64.extend_i32_u") + constant

        def state(extra: int) -> bytes:
            return byte(extra) + sequence(
                ("i64.const", self.shift), "i64.shr_u", "i32.wrap_i64", ("i32.load8_u", self.map, 0)
            )

        wanted = READ_BIT if bits == READ_BIT else WRITE_BIT
        known = state(0) + (state(opcode.width - 1) + code("i32.and") if opcode.width > 1 else b"")
        return (
            save
            + known
            + sequence(("i32.const", wanted), "i32.and", "i32.eqz", ("if", EMPTY_BLOCK))
            + byte(0)
            + byte(opcode.width - 1)
            + sequence(("i32.const", bits), ("call", self.touch), "end")
            + restore
        )

    def bulk(self, name: str, size: int, second: int, target: int) -> bytes:
        """Code before a bulk operation, whose three operands it sets aside in these locals and puts back."""

        def span(start: int, bits: int) -> bytes:
            whole = (("local.get", size), "i64.extend_i32_u", "i64.add", ("i64.const", 1), "i64.sub")
            return (
                sequence(("local.get", size), ("if", EMPTY_BLOCK))
                + sequence(("local.get", start), "i64.extend_i32_u")
                + sequence(("local.get", start), "i64.extend_i32_u", *whole)
                + sequence(("i32.const", bits), ("call", self.touch), "end")
            )

        source = span(second, READ_BIT) if name == "memory.copy" else b""
        return (
            sequence(("local.set", size), ("local.set", second), ("local.set", target))
            + source
            + span(target, READ_BIT | WRITE_BIT)
            + sequence(("local.get", target), ("local.get", second), ("local.get", size))
        )
