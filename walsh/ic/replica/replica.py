"""A replica in miniature: canisters, messages between them, rounds, time and randomness, all deterministic.

    replica = Replica()
    counter = replica.install(wasm)
    counter.update("increment")
    counter.query("get")

A round (:meth:`Replica.tick`) moves time on, runs heartbeats and timers that are due, and then every message there is,
those sent meanwhile included. Nothing runs outside rounds, so a test decides how messages interleave: it submits any
number of them, and may take them one by one with :meth:`Replica.step`. With ``shuffle`` the next message is drawn at
random among those whose order is not guaranteed. There is no consensus, signature or certificate here.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from walsh.ic.costs import Costs, default_costs
from walsh.ic.errors import OutOfCyclesError, PayloadError, RejectCode, RejectError
from walsh.ic.metering import Breakdown
from walsh.ic.replica.canister import EMPTY, Canister, unwrap
from walsh.ic.replica.messages import Call, Callback, Receipt, Request, Response
from walsh.ic.replica.principal import MANAGEMENT, canister_id, to_text, user_id
from walsh.ic.replica.program import Program, prepare
from walsh.ic.replica.system import DECLARED

ROUND_NS = 1_000_000_000
_BLOB = b"DIDL\x01\x6d\x7b\x01\x00"
"""Candid's header of one ``blob`` argument."""


@dataclass
class Ingress:
    """A submitted message.

    Attributes:
        response: the answer, once there is one.
    """

    response: Response | None = None

    def result(self) -> bytes:
        """The payload of the reply.

        Raises:
            RejectError: if the call was rejected, or was not answered yet.
        """
        if self.response is None:
            raise RejectError(RejectCode.SYS_TRANSIENT, "the call was not answered yet; run more rounds")
        return unwrap(self.response)


@dataclass
class _Task:
    """Something in the queue. Requests of one sender to one canister keep their order."""

    run: Callable[[], None]
    order: tuple[bytes, bytes] | None = None


@dataclass
class Replica:
    """See the module docstring.

    Attributes:
        seed: of the randomness that canisters see and of ``shuffle``.
        costs: what is charged.
        pages: name of the page policy; None is the one in force.
        breakdown: what canisters record beside counts, for ``Canister.rows`` and ``Canister.folded``.
        shuffle: draw the next message at random.
        time_ns: what ``ic0.time`` says.
        cycles: a new canister's balance.
        user: the default sender, who controls what is installed.
        receipts: of the messages executed last, the newest at the end.
    """

    seed: int = 0
    costs: Costs = field(default_factory=default_costs)
    pages: str | None = None
    breakdown: Breakdown | None = None
    shuffle: bool = False
    time_ns: int = 1_790_000_000 * 1_000_000_000
    cycles: int = 100_000_000_000_000
    user: bytes = field(default_factory=lambda: user_id("user"))
    receipts: deque[Receipt] = field(default_factory=lambda: deque(maxlen=10_000))

    def __post_init__(self) -> None:
        self.canisters: dict[bytes, Canister] = {}
        self.subnet = user_id("subnet")
        self._queue: deque[_Task] = deque()
        self._draws = 0
        self._random = random.Random(self.seed)

    @property
    def update_limit(self) -> int:
        """Instructions that an update, callback, heartbeat or timer may take."""
        return self.costs.limits.update_instructions

    # -- code

    def install(
        self, wasm: bytes, argument: bytes = EMPTY, *, sender: bytes | None = None, cycles: int | None = None
    ) -> Canister:
        """Create a canister and run its start function and ``canister_init``.

        Args:
            wasm: the module.
            argument: Candid bytes for ``canister_init``.
            sender: who installs, and controls it.
            cycles: its balance.

        Raises:
            WasmError, UnsupportedWasmError, PayloadError: for a module that is not installed.
            TrapError: if initialisation traps; nothing is left then.
        """
        self._check_payload("the argument", argument)
        owner = self.user if sender is None else sender
        principal = canister_id(len(self.canisters) + 1)
        program = self._prepare(wasm)
        balance = self.cycles if cycles is None else cycles
        canister = Canister(self, principal, program, balance, {owner})
        canister.start("canister_init", argument, owner, self.costs.limits.install_instructions)
        self.canisters[principal] = canister
        return canister

    def upgrade(self, canister: Canister, wasm: bytes, argument: bytes = EMPTY, sender: bytes | None = None) -> None:
        """Change a canister's code, keeping stable memory; the state is as before if any part of it fails.

        Raises:
            WasmError, UnsupportedWasmError, PayloadError: for a module that is not installed.
            RejectError: for a sender who is no controller; TrapError if pre_upgrade or post_upgrade traps.
        """
        self._check_payload("the argument", argument)
        owner = self.user if sender is None else sender
        if owner not in canister.controllers:
            raise RejectError(RejectCode.CANISTER_ERROR, f"{to_text(owner)} does not control {canister.name}")
        canister.change(self._prepare(wasm), argument, owner)

    def _prepare(self, wasm: bytes) -> Program:
        return compiled(wasm, self.costs, self.pages, self.breakdown)

    def _check_payload(self, what: str, payload: bytes) -> None:
        limit = self.costs.limits.payload_bytes
        if len(payload) > limit:
            raise PayloadError(f"{what} has {len(payload)} bytes: expected at most {limit}; send it in parts")

    # -- calls by users

    def submit(
        self,
        canister: Canister,
        method: str,
        argument: bytes = EMPTY,
        sender: bytes | None = None,
        *,
        inspect: bool = True,
    ) -> Ingress:
        """Send a call without waiting; it runs in the next round.

        ``inspect`` False skips the canister's inspection: a single node does it, and that node may be dishonest.

        Raises:
            PayloadError: if the argument is too large.
            OutOfCyclesError: if the canister cannot pay for receiving it.
            RejectError: if the canister's inspection does not accept it.
        """
        self._check_payload("the argument", argument)
        ingress = Ingress()

        def answer(response: Response) -> None:
            ingress.response = response

        caller = self.user if sender is None else sender
        request = Request(canister.id, method, argument, caller, 0, answer)
        if inspect:
            canister.inspect(request)
        prices = self.costs.prices
        fee = prices.ingress_message + prices.ingress_byte * (len(argument) + len(method.encode()))
        if canister.cycles < fee:
            raise OutOfCyclesError(f"canister {canister.name} holds {canister.cycles} cycles: a message costs {fee}")
        canister.cycles -= fee
        self._queue.append(_Task(lambda: canister.request(request)))
        return ingress

    def update(
        self, canister: Canister, method: str, argument: bytes = EMPTY, sender: bytes | None = None, rounds: int = 1000
    ) -> bytes:
        """Send a call, run rounds until it is answered, and return the payload of the reply.

        Raises:
            RejectError: if it is rejected, or not answered within ``rounds``; see also :meth:`submit`.
        """
        ingress = self.submit(canister, method, argument, sender)
        for _ in range(rounds):
            if ingress.response is not None:
                break
            self.tick()
        return ingress.result()

    def query(self, canister: Canister, method: str, argument: bytes = EMPTY, sender: bytes | None = None) -> bytes:
        """Run a query at once; nothing it does is kept and nothing is charged.

        Raises:
            PayloadError: if the argument is too large.
            RejectError: if it traps, rejects or does not answer.
        """
        self._check_payload("the argument", argument)
        return canister.run_query(method, argument, self.user if sender is None else sender)

    # -- time and rounds

    def advance(self, seconds: float) -> None:
        """Let time pass without a round."""
        self.time_ns += round(seconds * 1e9)

    def tick(self, rounds: int = 1) -> None:
        """Run rounds of a second each."""
        for _ in range(rounds):
            self.time_ns += ROUND_NS
            self.system_tasks()
            while self.step():
                pass

    def system_tasks(self) -> None:
        """Queue the heartbeats, and the timers that are due."""
        for canister in self.canisters.values():
            exports = canister.program.exports
            if "canister_heartbeat" in exports:
                self._task(canister, "canister_heartbeat")
            if 0 < canister.timer <= self.time_ns:
                canister.timer = 0
                if "canister_global_timer" in exports:
                    self._task(canister, "canister_global_timer")

    def _task(self, canister: Canister, export: str) -> None:
        self._queue.append(_Task(lambda: canister.task(export)))

    def step(self) -> bool:
        """Execute one message; False if there was none."""
        if not self._queue:
            return False
        place = self._pick() if self.shuffle else 0
        task = self._queue[place]
        del self._queue[place]
        task.run()
        return True

    def _pick(self) -> int:
        """A random message among those that no earlier one of the same pair of canisters must precede."""
        seen: set[tuple[bytes, bytes]] = set()
        free = []
        for place, task in enumerate(self._queue):
            if task.order is None or task.order not in seen:
                free.append(place)
            if task.order is not None:
                seen.add(task.order)
        return self._random.choice(free)

    # -- calls between canisters

    def send(self, caller: Canister, call: Call, callback: Callback) -> None:
        """Queue an outgoing call, and its answer when it comes."""

        def answer(response: Response) -> None:
            self._queue.append(_Task(lambda: caller.response(callback, response)))

        request = Request(call.canister, call.method, bytes(call.argument), caller.id, call.cycles, answer)
        self._queue.append(_Task(lambda: self._deliver(request), (caller.id, call.canister)))

    def _deliver(self, request: Request) -> None:
        if request.canister == MANAGEMENT:
            request.answer(self._manage(request))
        elif request.canister in self.canisters:
            self.canisters[request.canister].request(request)
        else:
            message = f"canister {to_text(request.canister)} does not exist"
            request.answer(Response(code=RejectCode.DESTINATION_INVALID, message=message, refund=request.cycles))

    def _manage(self, request: Request) -> Response:
        """The management canister ``aaaaa-aa``, of which there is ``raw_rand`` here."""
        if request.method == "raw_rand":
            self._draws += 1
            noise = hashlib.sha256(f"walsh raw_rand {self.seed} {self._draws}".encode()).digest()
            return Response(_BLOB + bytes([len(noise)]) + noise, refund=request.cycles)
        message = f"the management canister has no method {request.method!r} in this replica"
        return Response(code=RejectCode.DESTINATION_INVALID, message=message, refund=request.cycles)


_COMPILED: dict[tuple[bytes, str, str, str], Program] = {}


def compiled(wasm: bytes, costs: Costs, pages: str | None, breakdown: Breakdown | None) -> Program:
    """A program, compiled once per process for the module, the table, the page policy and the breakdown in use."""
    key = (hashlib.sha256(wasm).digest(), hashlib.sha256(repr(costs).encode()).hexdigest(), str(pages), str(breakdown))
    if key not in _COMPILED:
        _COMPILED[key] = prepare(wasm, costs, pages, frozenset(DECLARED), breakdown)
    return _COMPILED[key]
