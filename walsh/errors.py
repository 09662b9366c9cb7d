"""Typed errors: one class per kind of mistake, each in the phase where it must be caught.

Every message names the value that was wrong, the value that was expected and the remedy. Each class also derives
from the builtin that a caller would expect (``ValueError``, ``TypeError``, ...), so that code which knows nothing of
walsh can still catch it.

Phases, in order: ``load`` (bytes do not describe a tensor), ``validate`` (the arguments do not fit the operation;
nothing has been computed or written), ``run`` (a limit was reached while working).
"""

from __future__ import annotations

from typing import ClassVar


class WalshError(Exception):
    """Base of every error that walsh raises on purpose."""

    phase: ClassVar[str] = "run"


class FormatError(WalshError, ValueError):
    """Bytes that do not follow their format: truncated, with a bad code, a set padding bit or a wrong digest."""

    phase = "load"


class ShapeError(WalshError, ValueError):
    """A tensor whose shape does not fit the operation or the other arguments."""

    phase = "validate"


class DTypeError(WalshError, TypeError):
    """A tensor of a dtype that the operation does not take."""

    phase = "validate"


class NonFiniteError(WalshError, ValueError):
    """NaN or infinity where the operation needs finite numbers."""

    phase = "validate"


class ParameterError(WalshError, ValueError):
    """A parameter outside its domain: an unknown rule, a negative temperature, an unknown configuration key."""

    phase = "validate"


class RangeError(WalshError, IndexError):
    """A token id, target or position that lies outside its table."""

    phase = "validate"


class StrictError(WalshError, ValueError):
    """Strict arithmetic was asked of something that cannot have it, such as a model without int8 activations."""

    phase = "validate"


class CapacityError(WalshError, OverflowError):
    """A fixed capacity would be exceeded; the state is as it was before the call."""

    phase = "run"


class BackendError(WalshError, RuntimeError):
    """A backend that does not exist, cannot be imported or cannot run on this machine."""

    phase = "load"


class DataError(WalshError, OSError):
    """Training data that is missing, foreign (another tokenizer's) or cannot be fetched; names the remedy."""

    phase = "load"


class VectorError(WalshError, ValueError):
    """Conformance data that cannot be trusted: missing, edited, malformed or too few."""

    phase = "load"


ERRORS: dict[str, type[WalshError]] = {
    cls.__name__: cls
    for cls in (
        FormatError,
        ShapeError,
        DTypeError,
        NonFiniteError,
        ParameterError,
        RangeError,
        StrictError,
        CapacityError,
        BackendError,
        DataError,
        VectorError,
    )
}
"""The classes by name, as conformance vectors and the JSON-lines protocol name them."""
