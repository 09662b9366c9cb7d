"""From flat named inputs to a Python call and back, the same for NumPy and PyTorch.

Required arguments are passed by position in the catalogue's order, optional ones and parameters by name; gradients take
every argument by position (``NAME_backward(arguments..., dy)``), absent ones as None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from walsh.errors import BackendError, ParameterError
from walsh.suite.backend import OutputMismatch
from walsh.suite.catalog import Call, find_call, flatten, nest


def split_params(params: Mapping[str, Any]) -> tuple[Call, dict[str, Any]]:
    """The catalogue's entry and the keyword parameters."""
    keywords = dict(params)
    return find_call(str(keywords.pop("call"))), keywords


def find_function(call: Call, package: Any, suffix: str = "") -> Callable[..., Any]:
    """The function of a package that a call names.

    Args:
        call: of the catalogue; strict calls look in ``package.strict``.
        package: the module of a backend.
        suffix: ``_backward`` where gradients have functions of their own.

    Raises:
        BackendError: if the package lacks it: that is an incomplete backend, never a refusal.
    """
    name = call.function + suffix
    # Sampling and generation exist in strict arithmetic only and may live in either place.
    places = [package] if call.kind != "strict" else []
    if call.kind == "strict" or call.op == "sampling":
        places.append(getattr(package, "strict", None))
    for place in places:
        if hasattr(place, name):
            return getattr(place, name)  # type: ignore[no-any-return]  # a module's attribute has no static type
    where = f"{package.__name__}.strict" if call.kind == "strict" else package.__name__
    raise BackendError(f"{where} has no function {name}, which call {call.name} needs")


def invoke(
    call: Call,
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    keywords: Mapping[str, Any],
    wanted: Mapping[str, Any],
) -> dict[str, Any]:
    """Call a function with flat named inputs.

    Args:
        call: whose arguments these are.
        function: takes them.
        inputs: tensors by flat name.
        keywords: parameters.
        wanted: keyed by the flat names of the outputs that are asked for; ``probes.*`` makes a dict that is filled.

    Returns:
        results by flat name.
    """
    arguments, extra = nest(inputs), dict(keywords)
    if call.kind == "backward":
        positional = [arguments.get(name) for name in call.args]
    else:
        positional = [arguments.get(name) for name in call.args if name not in call.optional]
        extra.update({name: arguments[name] for name in call.args if name in call.optional and name in arguments})
    probes: dict[str, Any] = {}
    if any(name.startswith("probes.") for name in wanted):
        extra["probes"] = probes
    results = function(*positional, **extra)
    names = [name for name in call.outputs if name != "probes"]
    if not isinstance(results, tuple):
        results = (results,)
    if len(results) > len(names) and call.kind != "backward":
        raise OutputMismatch(f"{len(results)} results were returned, expected {len(names)}: {', '.join(names)}")
    flat = flatten(dict(zip(names, results, strict=False)))
    flat.update({f"probes.{name}": value for name, value in probes.items()})
    return flat


def run_script(
    cache: Any,
    attention: Callable[..., Any],
    script: list[list[Any]],
    inputs: Mapping[str, Any],
    integers: Callable[[list[int]], Any],
) -> tuple[Any, dict[str, Any]]:
    """Run a ``kv_cache`` script (SPEC.md, section *kv_cache*).

    Args:
        cache: an empty cache.
        attention: used where the cache has no ``attend(q, positions)`` of its own.
        script: the steps.
        inputs: tensors ``k.*``, ``v.*`` and ``q.*``.
        integers: makes an int64 tensor of a list.

    Returns:
        the cache at the end, and outputs ``o.*``.
    """
    outputs: dict[str, Any] = {}
    positions: Any = None
    for verb, argument, *rest in script:
        if verb == "append":
            counts = integers(rest[0]) if rest and rest[0] is not None else None
            positions = cache.append(inputs[f"k.{argument}"], inputs[f"v.{argument}"], counts)
        elif verb == "truncate":
            cache.truncate(integers(argument))
        elif verb == "reset":
            cache.reset(None if argument is None else integers(argument))
        elif verb == "fork":
            cache = cache.fork(integers(argument))
        elif verb == "attend":
            query = inputs[f"q.{argument}"]
            if hasattr(cache, "attend"):
                outputs[f"o.{argument}"] = cache.attend(query, positions)
            else:
                outputs[f"o.{argument}"] = attention(query, cache.keys, cache.values, positions)
        else:
            raise ParameterError(f"script step {verb!r}: expected append, truncate, reset, fork or attend")
    return cache, outputs


def cache_sizes(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(batch, capacity, heads, head_dim) for a script: the first key tensor is [B, T, H, d]."""
    batch, _, heads, head_dim = next(tensor.shape for name, tensor in inputs.items() if name.startswith("k."))
    return int(batch), int(params["capacity"]), int(heads), int(head_dim)
