"""The system calls ``ic0.*`` of wasm32 canisters (Internet Computer interface specification, "System API").

Every call is charged first, then refused where its context forbids it, then done. Sizes and addresses are unsigned;
ranges that leave the heap trap. What a call changes is an effect of the :class:`~walsh.ic.replica.messages.Execution`
and lasts only if the message commits.
"""

# ruff: noqa: D102  the interface specification documents each system call under its name

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import wasmtime

from walsh.ic.errors import RejectCode, TrapError
from walsh.ic.replica.instance import SystemCall
from walsh.ic.replica.messages import Call, Execution, Kind, Response

if TYPE_CHECKING:
    from walsh.ic.replica.canister import Canister

_TYPES = {"i": wasmtime.ValType.i32(), "l": wasmtime.ValType.i64()}
_BITS = {"i": 32, "l": 64}
_ANY = frozenset(Kind) - {Kind.START}
_EVERY = frozenset(Kind)
_ANSWERS = frozenset({Kind.UPDATE, Kind.REPLICATED_QUERY, Kind.QUERY, Kind.REPLY, Kind.REJECT})
_CALLS = frozenset({Kind.UPDATE, Kind.REPLY, Kind.REJECT, Kind.SYSTEM})
_CHANGES = _CALLS | {Kind.INIT, Kind.PRE_UPGRADE}
_PAID = frozenset({Kind.UPDATE, Kind.REPLICATED_QUERY, Kind.REPLY, Kind.REJECT})
_BACK = frozenset({Kind.REPLY, Kind.REJECT})
_REJECTED = frozenset({Kind.REJECT, Kind.CLEANUP})
_ARGUMENT = frozenset({Kind.INIT, Kind.UPDATE, Kind.REPLICATED_QUERY, Kind.QUERY, Kind.REPLY, Kind.INSPECT})
_INSPECT = frozenset({Kind.INSPECT})


@dataclass(frozen=True)
class Declaration:
    """A system call: parameter and result types (i i32, l i64), where it is allowed, which arguments count bytes."""

    method: Callable[..., Any]
    params: str
    result: str
    allowed: frozenset[Kind]
    sized: tuple[int, ...]


DECLARED: dict[str, Declaration] = {}
"""Every system call by name."""


def _call(
    params: str, result: str, allowed: frozenset[Kind], *sized: int
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a system call; ``sized`` are the positions of the arguments that say how many bytes are copied."""

    def declare(method: Callable[..., Any]) -> Callable[..., Any]:
        DECLARED[method.__name__] = Declaration(method, params, result, allowed, sized)
        return method

    return declare


class SystemCalls:
    """The system calls of one canister.

    Args:
        canister: who makes them.
    """

    def __init__(self, canister: Canister) -> None:
        self.canister = canister

    @property
    def running(self) -> Execution:
        """The message being executed."""
        return self.canister.running

    def bind(self) -> dict[str, SystemCall]:
        """Type and function of every system call, as the engine takes them."""
        return {name: (_type(item), self._wrap(name, item)) for name, item in DECLARED.items()}

    def _wrap(self, name: str, item: Declaration) -> Callable[..., Any]:
        masks = [(1 << _BITS[kind]) - 1 for kind in item.params]
        fixed = self.canister.replica.costs.system_cost(name, 0)
        byte = self.canister.replica.costs.system_cost(name, 1) - fixed
        canister, label, method, sized = self.canister, f"ic0.{name}", item.method.__get__(self), item.sized
        top = 1 << _BITS[item.result] - 1 if item.result else 0
        # A value that names its type is converted twice as fast as a number.
        typed = wasmtime.Val.i32 if item.result == "i" else wasmtime.Val.i64

        def call(*arguments: int) -> wasmtime.Val | None:
            natural = [value & mask for value, mask in zip(arguments, masks, strict=True)]
            cost = fixed + byte * sum([natural[place] for place in sized])
            running = canister.running
            # Only what the counter shows was charged is recorded, so that a receipt adds up in a failure, too.
            running.system[name] = running.system.get(name, 0) + cost
            canister.instance.charge(cost, label)
            if running.kind not in item.allowed:
                raise TrapError(f"{label} is not allowed in {running.kind.name.lower()}")
            value = method(*natural)
            if value is None:
                return None
            return typed(int(value) - 2 * top if int(value) >= top else int(value))

        return call

    # -- memory

    def load(self, source: int, size: int) -> bytes:
        """Bytes of the heap, charged as an access."""
        instance = self.canister.instance
        heap = instance.heap
        if source + size > heap.size:
            raise TrapError(f"range {source}+{size} leaves the heap of {heap.size} bytes")
        instance.touch(source, size, write=False)
        return heap[source : source + size].tobytes()

    def store(self, target: int, data: bytes) -> None:
        """Write to the heap, charged as a write."""
        instance = self.canister.instance
        heap = instance.heap
        if target + len(data) > heap.size:
            raise TrapError(f"range {target}+{len(data)} leaves the heap of {heap.size} bytes")
        instance.touch(target, len(data), write=True)
        heap[target : target + len(data)] = memoryview(data)

    def store_part(self, target: int, data: bytes, offset: int, size: int) -> None:
        """Copy a part of host data to the heap."""
        if offset + size > len(data):
            raise TrapError(f"range {offset}+{size} leaves the {len(data)} bytes there are")
        self.store(target, data[offset : offset + size])

    def store_cycles(self, target: int, amount: int) -> None:
        """Write a 128-bit amount."""
        self.store(target, amount.to_bytes(16, "little"))

    # -- argument, caller, answer

    @_call("", "i", _ARGUMENT)
    def msg_arg_data_size(self) -> int:
        return len(self.running.argument)

    @_call("iii", "", _ARGUMENT, 2)
    def msg_arg_data_copy(self, target: int, offset: int, size: int) -> None:
        self.store_part(target, self.running.argument, offset, size)

    @_call("", "i", _ANY)
    def msg_caller_size(self) -> int:
        return len(self.running.context.caller)

    @_call("iii", "", _ANY, 2)
    def msg_caller_copy(self, target: int, offset: int, size: int) -> None:
        self.store_part(target, self.running.context.caller, offset, size)

    @_call("", "i", _BACK | {Kind.CLEANUP})
    def msg_reject_code(self) -> int:
        response = self.running.response
        return int(response.code or 0) if response else 0

    def _reject_message(self) -> bytes:
        response = self.running.response
        if response is None or response.code is None:
            raise TrapError("there is no reject message")
        return response.message.encode()

    @_call("", "i", _REJECTED)
    def msg_reject_msg_size(self) -> int:
        return len(self._reject_message())

    @_call("iii", "", _REJECTED, 2)
    def msg_reject_msg_copy(self, target: int, offset: int, size: int) -> None:
        self.store_part(target, self._reject_message(), offset, size)

    @_call("ii", "", _ANSWERS, 1)
    def msg_reply_data_append(self, source: int, size: int) -> None:
        limit = self.canister.replica.costs.limits.payload_bytes
        self._unanswered()
        if len(self.running.output) + size > limit:
            raise TrapError(f"a reply of {len(self.running.output) + size} bytes: expected at most {limit}")
        self.running.output += self.load(source, size)

    def _unanswered(self) -> None:
        if self.running.answer is not None or self.running.context.answered:
            raise TrapError("the call was answered already")

    @_call("", "", _ANSWERS)
    def msg_reply(self) -> None:
        self._unanswered()
        self.running.answer = Response(bytes(self.running.output))

    @_call("ii", "", _ANSWERS, 1)
    def msg_reject(self, source: int, size: int) -> None:
        self._unanswered()
        message = self.load(source, size).decode(errors="replace")
        self.running.answer = Response(code=RejectCode.CANISTER_REJECT, message=message)

    @_call("", "i", _INSPECT)
    def msg_method_name_size(self) -> int:
        return len(self.running.method.encode())

    @_call("iii", "", _INSPECT, 2)
    def msg_method_name_copy(self, target: int, offset: int, size: int) -> None:
        self.store_part(target, self.running.method.encode(), offset, size)

    @_call("", "", _INSPECT)
    def accept_message(self) -> None:
        if self.running.accepted:
            raise TrapError("the message was accepted already")
        self.running.accepted = True

    # Calls carry no deadline here: a response always comes.
    @_call("", "l", _PAID | {Kind.QUERY})
    def msg_deadline(self) -> int:
        return 0

    # -- cycles

    @_call("", "l", _PAID)
    def msg_cycles_available(self) -> int:
        return self._word(self.running.context.cycles)

    @_call("i", "", _PAID)
    def msg_cycles_available128(self, target: int) -> None:
        self.store_cycles(target, self.running.context.cycles)

    @_call("", "l", _BACK)
    def msg_cycles_refunded(self) -> int:
        return self._word(self.running.response.refund if self.running.response else 0)

    @_call("i", "", _BACK)
    def msg_cycles_refunded128(self, target: int) -> None:
        self.store_cycles(target, self.running.response.refund if self.running.response else 0)

    @staticmethod
    def _word(amount: int) -> int:
        if amount >= 1 << 64:
            raise TrapError(f"{amount} cycles do not fit 64 bits; use the call that ends in 128")
        return amount

    def _accept(self, most: int) -> int:
        amount = min(most, self.running.context.cycles)
        self.running.context.cycles -= amount
        self.running.balance += amount
        return amount

    @_call("l", "l", _PAID)
    def msg_cycles_accept(self, most: int) -> int:
        return self._accept(most)

    @_call("lli", "", _PAID)
    def msg_cycles_accept128(self, high: int, low: int, target: int) -> None:
        self.store_cycles(target, self._accept(high << 64 | low))

    @_call("lli", "", _CHANGES | {Kind.REPLICATED_QUERY, Kind.CLEANUP})
    def cycles_burn128(self, high: int, low: int, target: int) -> None:
        amount = min(high << 64 | low, self.running.balance)
        self.running.balance -= amount
        self.store_cycles(target, amount)

    @_call("", "l", _ANY)
    def canister_cycle_balance(self) -> int:
        return self._word(self.running.balance)

    @_call("i", "", _ANY)
    def canister_cycle_balance128(self, target: int) -> None:
        self.store_cycles(target, self.running.balance)

    @_call("i", "", _ANY)
    def canister_liquid_cycle_balance128(self, target: int) -> None:
        self.store_cycles(target, self.running.balance)

    @_call("lli", "", _ANY)
    def cost_call(self, method_size: int, payload_size: int, target: int) -> None:
        self.store_cycles(target, self._call_cost(method_size + payload_size))

    def _call_cost(self, size: int) -> int:
        prices = self.canister.replica.costs.prices
        return prices.call_message + prices.call_byte * size

    # -- who and where

    @_call("", "i", _ANY)
    def canister_self_size(self) -> int:
        return len(self.canister.id)

    @_call("iii", "", _ANY, 2)
    def canister_self_copy(self, target: int, offset: int, size: int) -> None:
        self.store_part(target, self.canister.id, offset, size)

    @_call("", "i", _ANY)
    def subnet_self_size(self) -> int:
        return len(self.canister.replica.subnet)

    @_call("iii", "", _ANY, 2)
    def subnet_self_copy(self, target: int, offset: int, size: int) -> None:
        self.store_part(target, self.canister.replica.subnet, offset, size)

    @_call("", "i", _ANY)
    def canister_status(self) -> int:
        return 1

    @_call("", "l", _ANY)
    def canister_version(self) -> int:
        return self.canister.version

    @_call("ii", "i", _EVERY, 1)
    def is_controller(self, source: int, size: int) -> int:
        return self.load(source, size) in self.canister.controllers

    @_call("", "i", _EVERY)
    def in_replicated_execution(self) -> int:
        return self.running.kind.replicated

    @_call("", "l", _ANY)
    def time(self) -> int:
        return self.canister.replica.time_ns

    @_call("l", "l", _CHANGES | {Kind.CLEANUP})
    def global_timer_set(self, timestamp: int) -> int:
        before = self.canister.timer if self.running.timer is None else self.running.timer
        self.running.timer = timestamp
        return before

    @_call("i", "l", _EVERY)
    def performance_counter(self, which: int) -> int:
        if which > 1:
            raise TrapError(f"performance counter {which}: expected 0 or 1")
        return self.canister.instance.counter + (self.running.context.instructions if which else 0)

    @_call("", "i", _ANY)
    def env_var_count(self) -> int:
        return len(self.canister.environment)

    @_call("i", "i", _ANY)
    def env_var_name_size(self, index: int) -> int:
        return len(self._variable(index))

    @_call("iiii", "", _ANY, 3)
    def env_var_name_copy(self, index: int, target: int, offset: int, size: int) -> None:
        self.store_part(target, self._variable(index), offset, size)

    def _variable(self, index: int) -> bytes:
        names = sorted(self.canister.environment)
        if index >= len(names):
            raise TrapError(f"environment variable {index}: there are {len(names)}")
        return names[index].encode()

    @_call("ii", "i", _ANY, 1)
    def env_var_name_exists(self, source: int, size: int) -> int:
        return self.load(source, size).decode(errors="replace") in self.canister.environment

    def _value(self, source: int, size: int) -> bytes:
        name = self.load(source, size).decode(errors="replace")
        if name not in self.canister.environment:
            raise TrapError(f"environment variable {name!r} does not exist")
        return self.canister.environment[name].encode()

    @_call("ii", "i", _ANY, 1)
    def env_var_value_size(self, source: int, size: int) -> int:
        return len(self._value(source, size))

    @_call("iiiii", "", _ANY, 1, 4)
    def env_var_value_copy(self, source: int, name_size: int, target: int, offset: int, size: int) -> None:
        self.store_part(target, self._value(source, name_size), offset, size)

    # -- calls to other canisters

    def _open_call(self) -> Call:
        if self.running.building is None:
            raise TrapError("no call is under construction; call ic0.call_new first")
        return self.running.building

    def _abandon(self) -> None:
        """Give back what an unfinished call holds."""
        if self.running.building is not None:
            self.running.balance += self.running.building.cycles
            self.running.building = None

    @_call("iiiiiiii", "", _CALLS, 1, 3)
    def call_new(
        self, callee: int, size: int, name: int, length: int, reply: int, reply_env: int, reject: int, reject_env: int
    ) -> None:
        self._abandon()
        method = self.load(name, length).decode(errors="replace")
        self.running.building = Call(self.load(callee, size), method, (reply, reply_env), (reject, reject_env))

    @_call("ii", "", _CALLS)
    def call_on_cleanup(self, function: int, environment: int) -> None:
        call = self._open_call()
        if call.cleanup is not None:
            raise TrapError("the call has a cleanup callback already")
        call.cleanup = (function, environment)

    @_call("ii", "", _CALLS, 1)
    def call_data_append(self, source: int, size: int) -> None:
        call, limit = self._open_call(), self.canister.replica.costs.limits.payload_bytes
        if len(call.argument) + size > limit:
            raise TrapError(f"an argument of {len(call.argument) + size} bytes: expected at most {limit}")
        call.argument += self.load(source, size)

    @_call("i", "", _CALLS)
    def call_with_best_effort_response(self, _seconds: int) -> None:
        self._open_call()

    def _attach(self, amount: int) -> None:
        call = self._open_call()
        if amount > self.running.balance:
            raise TrapError(f"{amount} cycles cannot be attached to a call: the balance is {self.running.balance}")
        self.running.balance -= amount
        call.cycles += amount

    @_call("l", "", _CALLS)
    def call_cycles_add(self, amount: int) -> None:
        self._attach(amount)

    @_call("ll", "", _CALLS)
    def call_cycles_add128(self, high: int, low: int) -> None:
        self._attach(high << 64 | low)

    @_call("", "i", _CALLS)
    def call_perform(self) -> int:
        call, costs = self._open_call(), self.canister.replica.costs
        fee = self._call_cost(len(call.method.encode()) + len(call.argument))
        # The largest response and the longest callback are set aside; what they did not need comes back later.
        call.reserved = (
            costs.prices.call_byte * costs.limits.payload_bytes
            + costs.limits.update_instructions * costs.prices.instruction
        )
        if fee + call.reserved > self.running.balance:
            self._abandon()
            return int(RejectCode.SYS_TRANSIENT)
        self.running.balance -= fee + call.reserved
        self.running.calls.append(call)
        self.running.building = None
        return 0

    # -- stable memory

    def _stable(self, offset: int, size: int, write: bool) -> None:
        """Check a range and charge its pages."""
        canister, policy = self.canister, self.canister.program.policy
        if not canister.stable.holds(offset, size):
            raise TrapError(f"range {offset}+{size} leaves the stable memory of {canister.stable.pages} pages")
        accessed, written = canister.stable.touch(offset, size, write)
        before = self.running.stable_pages
        self.running.stable_pages = (before[0] + accessed, before[1] + written)
        if not policy.at_end:
            canister.instance.charge(accessed * policy.access + written * policy.write, "stable pages")

    @_call("", "l", _EVERY)
    def stable64_size(self) -> int:
        return self.canister.stable.pages

    @_call("l", "l", _EVERY)
    def stable64_grow(self, pages: int) -> int:
        return self.canister.stable.grow(pages)

    @_call("lll", "", _EVERY, 2)
    def stable64_write(self, offset: int, source: int, size: int) -> None:
        data = self.load(source, size)
        self._stable(offset, size, write=True)
        self.canister.stable.write(offset, data)

    @_call("lll", "", _EVERY, 2)
    def stable64_read(self, target: int, offset: int, size: int) -> None:
        self._stable(offset, size, write=False)
        self.store(target, self.canister.stable.read(offset, size))

    def _narrow(self) -> None:
        if self.canister.stable.pages > 1 << 16:
            raise TrapError("stable memory exceeds 4 GiB; use the calls that begin with stable64")

    @_call("", "i", _EVERY)
    def stable_size(self) -> int:
        self._narrow()
        return self.canister.stable.pages

    @_call("i", "i", _EVERY)
    def stable_grow(self, pages: int) -> int:
        self._narrow()
        if self.canister.stable.pages + pages > 1 << 16:
            return -1
        return self.canister.stable.grow(pages)

    @_call("iii", "", _EVERY, 2)
    def stable_write(self, offset: int, source: int, size: int) -> None:
        self._narrow()
        self.stable64_write(offset, source, size)

    @_call("iii", "", _EVERY, 2)
    def stable_read(self, target: int, offset: int, size: int) -> None:
        self._narrow()
        self.stable64_read(target, offset, size)

    # -- certification and debugging

    @_call("ii", "", _CHANGES, 1)
    def certified_data_set(self, source: int, size: int) -> None:
        if size > 32:
            raise TrapError(f"certified data of {size} bytes: expected at most 32")
        self.running.certified = self.load(source, size)

    # A miniature has no subnet key, so it says that there is no certificate, as a replica does in updates.
    @_call("", "i", _ANY)
    def data_certificate_present(self) -> int:
        return 0

    @_call("", "i", frozenset({Kind.QUERY}))
    def data_certificate_size(self) -> int:
        raise TrapError("there is no certificate; ask ic0.data_certificate_present first")

    @_call("iii", "", frozenset({Kind.QUERY}), 2)
    def data_certificate_copy(self, _target: int, _offset: int, _size: int) -> None:
        raise TrapError("there is no certificate; ask ic0.data_certificate_present first")

    @_call("ii", "", _EVERY, 1)
    def debug_print(self, source: int, size: int) -> None:
        self.running.log.append(self.load(source, size).decode(errors="replace"))

    @_call("ii", "", _EVERY, 1)
    def trap(self, source: int, size: int) -> None:
        raise TrapError(f"the canister trapped: {self.load(source, size).decode(errors='replace')}")


def _type(item: Declaration) -> wasmtime.FuncType:
    return wasmtime.FuncType([_TYPES[kind] for kind in item.params], [_TYPES[kind] for kind in item.result])
