"""One canister: its code, memories, cycles and timer, and the life of a single message on it.

A message runs on the instance with a counter at 0 and a limit. If it ends well its effects apply together: heap,
stable memory, cycles, timer, certified data, outgoing calls, answer. If it traps none does, and what it burned is paid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from walsh.ic.errors import OutOfCyclesError, OutOfInstructionsError, RejectCode, RejectError, TrapError
from walsh.ic.profile import Row
from walsh.ic.replica.instance import Instance
from walsh.ic.replica.messages import Callback, Context, Execution, Kind, Receipt, Request, Response
from walsh.ic.replica.principal import to_text
from walsh.ic.replica.program import START, Program
from walsh.ic.replica.stable import StableMemory
from walsh.ic.replica.system import SystemCalls

if TYPE_CHECKING:
    from walsh.ic.replica.replica import Replica

NO_CALLBACK = 0xFFFFFFFF
"""The function of a one-way call's callbacks: nothing runs when the answer comes."""

EMPTY = b"DIDL\0\0"
"""Candid's encoding of no arguments."""


@dataclass(frozen=True)
class _Outcome:
    receipt: Receipt
    error: TrapError | None


class Canister:
    """A handle on an installed canister; made by :meth:`Replica.install`.

    Attributes:
        id: its principal.
        controllers: principals that may manage it.
        cycles: its balance.
        stable: its stable memory.
        timer: when its global timer fires, in nanoseconds; 0 for never.
        certified_data: what it set last.
        version: counts its changes of code.
        environment: environment variables it can read.
        log: (time in nanoseconds, text) of ``debug_print`` and of traps, failed messages included.
    """

    def __init__(
        self, replica: Replica, principal: bytes, program: Program, cycles: int, controllers: set[bytes]
    ) -> None:
        self.replica, self.id, self.program, self.cycles, self.controllers = (
            replica,
            principal,
            program,
            cycles,
            controllers,
        )
        self.stable = StableMemory(replica.costs.limits.stable_bytes, program.policy)
        self.timer, self.certified_data, self.version = 0, b"", 1
        self.environment: dict[str, str] = {}
        self.log: list[tuple[int, str]] = []
        self.running = Execution(Kind.START, "", Context(None, b""), b"", 0)
        self._calls = SystemCalls(self).bind()
        self.instance = Instance(program, self._calls)

    @property
    def name(self) -> str:
        """Its principal as text."""
        return to_text(self.id)

    # -- what users do

    def update(self, method: str, argument: bytes = EMPTY, sender: bytes | None = None) -> bytes:
        """Call a method and wait for the answer; see :meth:`Replica.update`."""
        return self.replica.update(self, method, argument, sender)

    def query(self, method: str, argument: bytes = EMPTY, sender: bytes | None = None) -> bytes:
        """Run a query; nothing it does is kept; see :meth:`Replica.query`."""
        return self.replica.query(self, method, argument, sender)

    def upgrade(self, wasm: bytes, argument: bytes = EMPTY, sender: bytes | None = None) -> None:
        """Change the code, keeping stable memory; see :meth:`Replica.upgrade`."""
        self.replica.upgrade(self, wasm, argument, sender)

    def rows(self) -> list[Row]:
        """Instructions by function and opcode since the code was installed; for ``breakdown="segments"``."""
        return self.instance.recorder.rows()

    def folded(self) -> str:
        """Instructions by call stack since the code was installed, for flame graphs; for ``breakdown="stacks"``."""
        return self.instance.recorder.folded()

    # -- one message

    def execute(self, execution: Execution, limit: int, entry: Callable[[], None], *, free: bool = False) -> _Outcome:
        """Run a message to its end and apply or undo it.

        Args:
            execution: what is run.
            limit: instructions it may take.
            entry: what runs it.
            free: whether nothing is charged for it.

        Raises:
            OutOfCyclesError: if the balance does not cover the limit; nothing was run then.
        """
        prices = self.replica.costs.prices
        most = 0 if free else prices.update_message + limit * prices.instruction
        if self.cycles < most:
            raise OutOfCyclesError(
                f"canister {self.name} holds {self.cycles} cycles: expected {most} for {execution.method}"
            )
        execution.balance = self.cycles - most
        attached = execution.context.cycles
        error = self._run(execution, limit, entry)
        receipt = self._receipt(execution, limit, free, error)
        cost = receipt.cycles
        self.log += [(self.replica.time_ns, line) for line in execution.log]
        if error is not None:
            self.log.append((self.replica.time_ns, error.message))
        if error is None:
            self._keep(execution)
            self.cycles = execution.balance + most - cost
        else:
            self.instance.rollback()
            self.stable.begin()
            execution.context.cycles = attached
            self.cycles -= cost
        execution.context.instructions += receipt.instructions
        self.replica.receipts.append(receipt)
        return _Outcome(receipt, error)

    def _keep(self, execution: Execution) -> None:
        """Apply a message that ended well, as far as its kind keeps anything."""
        # After pre_upgrade the heap is thrown away: by the new code, or by going back to before the upgrade.
        if execution.kind.keeps and execution.kind is not Kind.PRE_UPGRADE:
            self.instance.commit(whole=execution.kind is Kind.INIT)
        else:
            self.instance.rollback()
        if execution.kind.keeps:
            self._apply(execution)
        else:
            self.stable.begin()

    def _run(self, execution: Execution, limit: int, entry: Callable[[], None]) -> TrapError | None:
        self.running = execution
        self.stable.begin()
        self.instance.begin(limit)
        try:
            entry()
            self._charge_at_end()
        except TrapError as error:
            return error
        return None

    def _charge_at_end(self) -> None:
        """Charge pages by policies that do so when the message ends."""
        policy = self.program.policy
        if policy.at_end:
            accessed, written = self._pages()
            self.instance.charge(accessed * policy.access + written * policy.write, "pages")

    def _pages(self) -> tuple[int, int]:
        """Pages of heap and stable memory accessed and written."""
        heap, stable = self.instance.pages, self.running.stable_pages
        return heap[0] + stable[0], heap[1] + stable[1]

    def _receipt(self, execution: Execution, limit: int, free: bool, error: TrapError | None) -> Receipt:
        prices, system = self.replica.costs.prices, sum(execution.system.values())
        total = self.instance.counter
        cost = 0 if free else prices.update_message + prices.instruction * min(total, limit)
        if isinstance(error, OutOfInstructionsError):
            total = limit
        accessed, written = self._pages()
        pages = accessed * self.program.policy.access + written * self.program.policy.write
        return Receipt(
            canister=self.id,
            kind=execution.kind,
            method=execution.method,
            instructions=total,
            code=max(0, total - system - pages),
            system=system,
            pages=pages,
            accessed=accessed,
            written=written,
            cycles=cost,
            error=None if error is None else error.message,
            version=self.replica.costs.version,
        )

    def _apply(self, execution: Execution) -> None:
        self.stable.commit()
        if execution.building is not None:
            execution.balance += execution.building.cycles
        if execution.timer is not None:
            self.timer = execution.timer
        if execution.certified is not None:
            self.certified_data = execution.certified
        for call in execution.calls:
            execution.context.outstanding += 1
            callback = Callback(self.id, execution.context, call.reply, call.reject, call.cleanup, call.reserved)
            self.replica.send(self, call, callback)

    # -- kinds of messages

    def request(self, request: Request) -> None:
        """Run a call that arrived, and answer it unless it waits for others."""
        context = Context(request.answer, request.caller, request.cycles)
        found = self.program.entry(request.method)
        if found is None:
            message = f"canister {self.name} has no update or query method {request.method!r}"
            self._answer(context, Response(code=RejectCode.CANISTER_ERROR, message=message))
            return
        kind = Kind.UPDATE if found[0] == "update" else Kind.REPLICATED_QUERY
        limits = self.replica.costs.limits
        limit = limits.update_instructions if kind is Kind.UPDATE else limits.query_instructions
        execution = Execution(kind, request.method, context, request.argument, self.cycles)
        self._attempt(execution, limit, lambda: self.instance.call(found[1]))

    def _attempt(self, execution: Execution, limit: int, entry: Callable[[], None]) -> TrapError | None:
        """Execute, then answer what can be answered."""
        try:
            outcome = self.execute(execution, limit, entry)
        except OutOfCyclesError as error:
            self._answer(execution.context, Response(code=error.code, message=error.message))
            return None
        self._settle(execution, outcome.error)
        return outcome.error

    def _settle(self, execution: Execution, error: TrapError | None) -> None:
        context = execution.context
        if error is None and execution.answer is not None:
            self._answer(context, execution.answer)
        elif context.outstanding == 0 and not context.answered:
            message = (
                f"canister {self.name} did not answer" if error is None else f"canister {self.name}: {error.message}"
            )
            self._answer(context, Response(code=RejectCode.CANISTER_ERROR, message=message))

    def _answer(self, context: Context, response: Response) -> None:
        context.answered = True
        if context.answer is not None:
            refund, context.cycles = context.cycles, 0
            context.answer(Response(response.payload, response.code, response.message, refund))

    def response(self, callback: Callback, response: Response) -> None:
        """Run the callback for an answer that arrived; if it traps, the cleanup callback."""
        prices = self.replica.costs.prices
        used = prices.call_byte * (len(response.payload) + len(response.message.encode()))
        self.cycles += response.refund + callback.reserved - used
        context = callback.context
        context.outstanding -= 1
        replied = response.code is None
        function, environment = callback.reply if replied else callback.reject
        if function == NO_CALLBACK:
            self._settle(Execution(Kind.REPLY, "oneway", context, b"", self.cycles), None)
            return
        kind = Kind.REPLY if replied else Kind.REJECT
        execution = Execution(kind, kind.name.lower(), context, response.payload, self.cycles, response=response)
        limit = self.replica.update_limit
        try:
            error = self.execute(execution, limit, lambda: self.instance.call_table(function, environment)).error
        except OutOfCyclesError as short:
            error = TrapError(short.message)
        if error is not None and callback.cleanup is not None:
            self._cleanup(callback.cleanup, context, response, limit)
        self._settle(execution, error)

    def _cleanup(self, cleanup: tuple[int, int], context: Context, response: Response, limit: int) -> None:
        execution = Execution(Kind.CLEANUP, "cleanup", context, b"", self.cycles, response=response)
        try:
            self.execute(execution, limit, lambda: self.instance.call_table(*cleanup))
        except OutOfCyclesError as error:
            self.log.append((self.replica.time_ns, error.message))

    def task(self, export: str) -> None:
        """Run a system task: ``canister_heartbeat`` or ``canister_global_timer``."""
        context = Context(None, b"")
        execution = Execution(Kind.SYSTEM, export, context, b"", self.cycles)
        self._attempt(execution, self.replica.update_limit, lambda: self.instance.call(export))

    def inspect(self, request: Request) -> None:
        """Let the canister look at an ingress message.

        Raises:
            RejectError: if it does not accept it.
        """
        if "canister_inspect_message" not in self.program.exports:
            return
        context = Context(None, request.caller)
        execution = Execution(Kind.INSPECT, request.method, context, request.argument, self.cycles)
        limit = self.replica.costs.limits.inspect_instructions
        outcome = self.execute(execution, limit, lambda: self.instance.call("canister_inspect_message"), free=True)
        if outcome.error is not None or not execution.accepted:
            why = "did not accept the message" if outcome.error is None else outcome.error.message
            raise RejectError(RejectCode.CANISTER_REJECT, f"canister {self.name}: {why}")

    def run_query(self, method: str, argument: bytes, sender: bytes) -> bytes:
        """Run a query method that no consensus sees.

        Raises:
            RejectError: if there is none, it traps, rejects or does not answer.
        """
        found = self.program.entry(method, ("query",))
        if found is None:
            raise RejectError(RejectCode.CANISTER_ERROR, f"canister {self.name} has no query method {method!r}")
        answers: list[Response] = []
        execution = Execution(Kind.QUERY, method, Context(answers.append, sender), argument, self.cycles)
        limit = self.replica.costs.limits.query_instructions
        outcome = self.execute(execution, limit, lambda: self.instance.call(found[1]), free=True)
        if outcome.error is not None:
            raise outcome.error
        self._settle(execution, None)
        return unwrap(answers[0])

    # -- code

    def start(self, export: str, argument: bytes, sender: bytes, limit: int) -> None:
        """Run the start function and then an initialisation, as one message.

        Raises:
            TrapError: if either traps.
        """

        def entry() -> None:
            if self.program.has_start:
                self.running.kind = Kind.START
                self.instance.call(START)
                self.running.kind = Kind.INIT
            if export in self.program.exports:
                self.instance.call(export)

        execution = Execution(Kind.INIT, export, Context(None, sender), argument, self.cycles)
        outcome = self.execute(execution, limit, entry)
        if outcome.error is not None:
            raise outcome.error

    def change(self, program: Program, argument: bytes, sender: bytes) -> None:
        """Upgrade: pre_upgrade on the old code, post_upgrade on the new; both or nothing."""
        limit = self.replica.costs.limits.install_instructions
        before = (self.program, self.instance, self.timer, self.certified_data)
        stable = self.stable.snapshot()
        try:
            if "canister_pre_upgrade" in self.program.exports:
                execution = Execution(Kind.PRE_UPGRADE, "canister_pre_upgrade", Context(None, sender), b"", self.cycles)
                outcome = self.execute(execution, limit, lambda: self.instance.call("canister_pre_upgrade"))
                if outcome.error is not None:
                    raise outcome.error
                limit -= outcome.receipt.instructions
            self.program, self.instance, self.timer = program, Instance(program, self._calls), 0
            self.start("canister_post_upgrade", argument, sender, limit)
        except RejectError:
            self.program, self.instance, self.timer, self.certified_data = before
            self.stable.restore(stable)
            raise
        self.version += 1


def unwrap(response: Response) -> bytes:
    """The payload of a reply.

    Raises:
        RejectError: for a rejection; TrapError where the canister failed.
    """
    if response.code is None:
        return response.payload
    raise RejectError(response.code, response.message)
