"""One Python function as a backend: ``walsh conformance --function pkg.mod:fn --op cayley_dickson``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from walsh.errors import BackendError, ParameterError
from walsh.suite.backend import Skip, deliver
from walsh.suite.backends.calling import invoke, split_params
from walsh.suite.catalog import CALLS, OPS, Call
from walsh.suite.tensors import Array


def choose_call(op: str) -> Call:
    """The call that a function is held to.

    Args:
        op: a call's name, or a room: then its ordinary call ``<room>_linear``, or the one named like it, or its first.

    Raises:
        ParameterError: if it is neither.
    """
    if op in CALLS:
        return CALLS[op]
    if op not in OPS:
        raise ParameterError(f"op {op!r}: expected a room ({', '.join(OPS)}) or a call of walsh ops")
    calls = [call for call in CALLS.values() if call.op == op]
    named = {call.name: call for call in calls}
    return named.get(f"{op}_linear") or named.get(op) or calls[0]


class FunctionBackend:
    """A function that implements one call; its gradient too, if it works on torch tensors that carry one.

    Args:
        function: takes the required arguments by position, optional ones and parameters by name; returns the outputs
            in the catalogue's order.
        op: a room or a call, see :func:`choose_call`.
        tensors: ``numpy`` or ``torch``: what it is given and returns.
        device: for torch tensors.
        name: of the backend; by default the function's.

    Raises:
        BackendError: for ``torch`` tensors without torch, or a device that is not there.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        op: str,
        tensors: str = "numpy",
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        """See the class."""
        self._function, self._call, self._tensors = function, choose_call(op), tensors
        self._name = name or f"{function.__module__}:{function.__qualname__}"
        self._parameters = _accepted(function)
        self._device: Any = None
        if tensors not in ("numpy", "torch"):
            raise ParameterError(f"tensors {tensors!r}: expected numpy or torch")
        if tensors == "torch":
            try:
                from walsh.suite.backends.torch import check_device
            except ImportError as error:
                raise BackendError(f"--tensors torch: {error}; install walsh[torch]") from None
            self._device = check_device(device, self._name)
        elif device not in (None, "cpu"):
            raise BackendError(f"device {device!r}: NumPy arrays live on cpu; add --tensors torch")

    def describe(self) -> dict[str, Any]:
        """Name and the calls that it can be held to."""
        gradient = self._call.name + ".backward"
        calls = [self._call.name] + [gradient] * (self._tensors == "torch" and gradient in CALLS)
        return {"name": self._name, "version": "function", "own": False, "calls": calls}

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Call the function; see :class:`walsh.suite.backend.Backend`."""
        del op  # the call says it
        call, keywords = split_params(params)
        named = {*keywords, *(name.partition(".")[0] for name in inputs)} & {*keywords, *self._call.optional}
        lacking = sorted(named - self._parameters) if self._parameters is not None else []
        if lacking:
            return Skip(f"takes no argument {lacking[0]!r}")
        if self._tensors == "numpy":
            results = invoke(call, self._function, inputs, keywords, out)
            deliver(results, out)
            return None
        return self._run_torch(call, keywords, inputs, out)

    def _run_torch(
        self, call: Call, keywords: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        from walsh.suite.backends.torch import differentiate, to_numpy, to_torch

        def run(given: Mapping[str, Any]) -> dict[str, Any]:
            arguments = {name: value for name, value in given.items() if name.partition(".")[0] in self._call.args}
            return invoke(self._call, self._function, arguments, keywords, {})

        tensors = {name: to_torch(array, self._device) for name, array in inputs.items()}
        results = differentiate(call, run, tensors, out) if call.kind == "backward" else run(tensors)
        if self._device.type != "cpu":
            for name, tensor in tensors.items():
                inputs[name][...] = to_numpy(tensor)
        if isinstance(results, Skip):
            return results
        deliver({name: to_numpy(value) for name, value in results.items()}, out)
        return None

    def close(self) -> None:
        """Nothing to let go of."""


def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names that may be passed by keyword; None if that cannot be known or everything may."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY)
