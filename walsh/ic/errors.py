"""Typed errors of the Internet Computer part: a module that is not one, one that a replica refuses, a call that fails.

A failed call carries the reject code that the platform's interface defines: 1 system fatal, 2 system transient,
3 destination invalid, 4 rejected by the canister, 5 the canister failed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from walsh.errors import FormatError, ParameterError, WalshError


class WasmError(FormatError):
    """Bytes that are not a WebAssembly module: truncated, with an unknown section or a bad integer."""


class UnsupportedWasmError(WasmError):
    """A valid module that a replica does not install, for example one that uses relaxed SIMD or threads."""

    phase: ClassVar[str] = "load"


class CostTableError(ParameterError):
    """A cost table that lacks an entry, has one too many, or a cost that is not a natural number."""


class RejectCode(IntEnum):
    """Why a call was rejected, as ``ic0.msg_reject_code`` tells the caller."""

    SYS_FATAL = 1
    SYS_TRANSIENT = 2
    DESTINATION_INVALID = 3
    CANISTER_REJECT = 4
    CANISTER_ERROR = 5


class RejectError(WalshError, RuntimeError):
    """A call that was answered by a rejection.

    Attributes:
        code: the :class:`RejectCode`.
        message: the text that came with it.
    """

    phase: ClassVar[str] = "run"

    def __init__(self, code: RejectCode, message: str) -> None:
        super().__init__(f"{code.name.lower()} ({int(code)}): {message}")
        self.code = code
        self.message = message


class TrapError(RejectError):
    """The canister trapped or broke the rules of a system call; the state is as it was before the message."""

    def __init__(self, message: str) -> None:
        super().__init__(RejectCode.CANISTER_ERROR, message)


class OutOfInstructionsError(TrapError):
    """The message would have taken more instructions than its limit; the state is as it was before it."""


class PayloadError(RejectError):
    """An argument or a module larger than the platform takes; nothing was executed."""

    def __init__(self, message: str) -> None:
        super().__init__(RejectCode.SYS_FATAL, message)


class OutOfCyclesError(RejectError):
    """The canister's balance does not cover what the message may cost; nothing was executed."""

    def __init__(self, message: str) -> None:
        super().__init__(RejectCode.SYS_TRANSIENT, message)


class CandidError(FormatError):
    """Candid text or bytes that do not follow their format, or values that do not fit their types."""
