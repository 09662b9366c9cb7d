"""What a backend is: three messages, ``describe``, ``run`` and ``close``.

In process a backend is a class with these methods; in any other language a program that speaks the same three messages
as JSON lines (``conformance/schema/message.schema.json``). It sees inputs and parameters, never expected values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from walsh.errors import WalshError
from walsh.suite.tensors import Array, is_float, round_to


@dataclass(frozen=True)
class Skip:
    """A refusal: the backend does not do this call, dtype, shape or parameter, and says why.

    Attributes:
        reason: one sentence.
        link: where it is tracked, or empty.
    """

    reason: str
    link: str = ""


class OutputMismatch(WalshError):  # noqa: N818  # a verdict on a result, not an error that backends may raise on purpose
    """A result of another dtype, shape or name than the vector asked for: a failure, not an error."""


class BackendDied(WalshError, RuntimeError):  # noqa: N818  # names the event, as BrokenPipeError's kin do
    """The backend's process ended, hung past its time limit or broke the protocol; it will be started again."""


class AdapterBroken(WalshError, RuntimeError):  # noqa: N818  # likewise
    """Nothing more can be learned from this backend."""


class Backend(Protocol):
    """An implementation of some calls of the catalogue."""

    def describe(self) -> Mapping[str, Any]:
        """Say what this is.

        Returns:
            a mapping with ``name`` and ``version``; optionally ``own`` (part of walsh: held to the tighter budgets),
            ``calls`` (those it implements; absent: all), ``dtypes`` (likewise), ``device`` and ``strided`` (false if it
            only takes contiguous inputs).
        """

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Compute one case.

        Args:
            op: the room, such as ``rms_norm``.
            params: ``call`` (the catalogue's name) and its keyword parameters.
            inputs: arrays by flat name (``x``, ``tables.0``); not to be changed.
            out: arrays to be filled, by flat name.

        Returns:
            None, or a :class:`Skip`.

        Raises:
            walsh.errors.WalshError: of the class that SPEC.md asks for, before anything is written to ``out``.
        """

    def close(self) -> None:
        """Let go of processes, devices and files."""


def deliver(results: Mapping[str, Any], out: Mapping[str, Array], cast: bool = False) -> None:
    """Copy an adapter's results into the runner's arrays.

    Args:
        results: arrays by flat name; more than asked for is fine.
        out: the runner's arrays.
        cast: round float64 results to a narrower floating output (for definitions that are computed in float64).

    Raises:
        OutputMismatch: if one is missing or has another dtype or shape.
    """
    ready = {}
    for name, target in out.items():
        value = results.get(name)
        if value is None:
            parts = any(key.startswith(f"{name}.") for key in results)
            what = "a list or dict" if parts else "nothing"
            raise OutputMismatch(f"output {name}: {what} was returned, expected {describe_array(target)}")
        if not hasattr(value, "dtype") or not hasattr(value, "shape"):
            raise OutputMismatch(f"output {name}: returned {type(value).__name__}, expected {describe_array(target)}")
        if cast and value.dtype.name == "float64" and is_float(target.dtype):
            value = round_to(value, target.dtype)
        if value.dtype != target.dtype or value.shape != target.shape:
            raise OutputMismatch(f"output {name}: returned {describe_array(value)}, expected {describe_array(target)}")
        ready[name] = value
    for name, value in ready.items():
        out[name][...] = value


def describe_array(array: Array) -> str:
    """``float32[2,3]``."""
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
