"""What messages are made of: requests, responses, call contexts, and the effects of a running message.

A *call context* lives from a request to its response and spans the callbacks in between. An :class:`Execution` is one
message being executed; its effects (reply, outgoing calls, timer, certified data, cycles) apply only if it commits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from walsh.ic.errors import RejectCode


class Kind(StrEnum):
    """What is being executed; the interface specification's letters for contexts."""

    START = "s"
    INIT = "I"
    PRE_UPGRADE = "G"
    UPDATE = "U"
    REPLICATED_QUERY = "RQ"
    QUERY = "NRQ"
    REPLY = "Ry"
    REJECT = "Rt"
    CLEANUP = "C"
    INSPECT = "F"
    SYSTEM = "T"

    @property
    def replicated(self) -> bool:
        """Whether every node of a subnet would execute it."""
        return self not in {Kind.QUERY, Kind.INSPECT}

    @property
    def keeps(self) -> bool:
        """Whether its effects on the heap are kept."""
        return self not in {Kind.QUERY, Kind.REPLICATED_QUERY, Kind.INSPECT}


@dataclass(frozen=True)
class Response:
    """An answer: a reply (``code`` None) or a rejection; and the cycles that come back."""

    payload: bytes = b""
    code: RejectCode | None = None
    message: str = ""
    refund: int = 0


@dataclass
class Callback:
    """What the caller runs when the answer comes: indices of table 0, and an argument each."""

    caller: bytes
    context: Context
    reply: tuple[int, int]
    reject: tuple[int, int]
    cleanup: tuple[int, int] | None
    reserved: int


@dataclass
class Request:
    """A call to a canister's method."""

    canister: bytes
    method: str
    argument: bytes
    caller: bytes
    cycles: int
    answer: Callable[[Response], None]


@dataclass
class Context:
    """A call being worked on.

    Attributes:
        answer: where the response goes; system tasks have none.
        caller: who called.
        cycles: attached cycles not yet accepted.
        outstanding: calls that it waits for.
        instructions: spent by its earlier messages.
        answered: whether the response was sent.
    """

    answer: Callable[[Response], None] | None
    caller: bytes
    cycles: int = 0
    outstanding: int = 0
    instructions: int = 0
    answered: bool = False


@dataclass
class Call:
    """An outgoing call being built between ``call_new`` and ``call_perform``."""

    canister: bytes
    method: str
    reply: tuple[int, int]
    reject: tuple[int, int]
    cleanup: tuple[int, int] | None = None
    argument: bytearray = field(default_factory=bytearray)
    cycles: int = 0
    reserved: int = 0


@dataclass
class Execution:
    """One message being executed, and its effects so far.

    Attributes:
        kind: which rules apply.
        method: its name, as a receipt shows it.
        context: the call it belongs to.
        argument: of the call, or the payload of the reply that came.
        response: what came, for callbacks.
        balance: the canister's cycles as the message sees them.
        system: instructions charged by system call.
        output: reply data appended so far.
        answer: the response it gave.
        calls: outgoing calls performed.
        building: the call under construction.
        timer: new global timer, or None.
        certified: new certified data, or None.
        accepted: whether ``accept_message`` was called.
    """

    kind: Kind
    method: str
    context: Context
    argument: bytes
    balance: int
    response: Response | None = None
    system: dict[str, int] = field(default_factory=dict)
    output: bytearray = field(default_factory=bytearray)
    answer: Response | None = None
    calls: list[Call] = field(default_factory=list)
    building: Call | None = None
    timer: int | None = None
    certified: bytes | None = None
    accepted: bool = False
    stable_pages: tuple[int, int] = (0, 0)
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Receipt:
    """What a message cost.

    Attributes:
        canister: which.
        kind: what was executed.
        method: its name.
        instructions: all of them; ``code + system + pages``.
        code: of the canister's own instructions.
        system: of system calls.
        pages: of touched pages of heap and stable memory.
        accessed, written: how many pages were.
        cycles: what was charged for execution.
        error: why it failed, or None.
        version: of the cost table.
    """

    canister: bytes
    kind: Kind
    method: str
    instructions: int
    code: int
    system: int
    pages: int
    accessed: int
    written: int
    cycles: int
    error: str | None
    version: str
