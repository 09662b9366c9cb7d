"""Call the reference by the catalogue's name: ``evaluate(call, params, inputs) -> outputs``, all by flat name.

Ordinary calls and gradients see their floating inputs in float64, which holds every value of the narrower dtypes: the
expected value is then the exact function of exactly those inputs, up to float64's own rounding. Strict calls see the
float32 that they define.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from walsh import reference
from walsh.errors import ParameterError
from walsh.reference import strict
from walsh.reference.kv_cache import run_script
from walsh.suite.catalog import Call, flatten, nest
from walsh.suite.tensors import Array, is_float
from walsh.suite.vectors import decode_params


def evaluate(call: Call, params: Mapping[str, Any], inputs: Mapping[str, Array], raw: bool = False) -> dict[str, Array]:
    """What the reference answers.

    Args:
        call: of the catalogue.
        params: keyword parameters as JSON has them.
        inputs: by flat name.
        raw: hand floating inputs over in the dtype they have, as a backend sees them.

    Returns:
        outputs by flat name.

    Raises:
        WalshError: whatever the reference raises.
    """
    keywords = decode_params(params)
    arrays = dict(inputs)
    if call.kind != "strict" and call.op != "sampling" and not raw:
        arrays = {name: array.astype(np.float64) if is_float(array.dtype) else array for name, array in inputs.items()}
    with np.errstate(all="ignore"):
        if call.name == "kv_cache.strict":
            return _strict_cache(keywords, arrays)
        # By name, because the order of the catalogue is that of tensors and skips the parameters between them.
        arguments = {name: nest(arrays).get(name) for name in call.args}
        if call.kind != "backward":
            arguments = {name: value for name, value in arguments.items() if value is not None}
        if call.name in ("forward", "forward.strict"):
            return _forward(_function(call), {**arguments, **keywords})
        results = _function(call)(**arguments, **keywords)
    if not isinstance(results, tuple):
        results = (results,)
    return {name: np.asarray(value) for name, value in flatten(dict(zip(call.outputs, results, strict=True))).items()}


def _function(call: Call) -> Callable[..., Any]:
    if call.kind == "strict":
        return getattr(strict, call.function)  # type: ignore[no-any-return]  # modules are untyped mappings here
    name = call.function + ("_backward" if call.kind == "backward" else "")
    return getattr(reference, name)  # type: ignore[no-any-return]  # as above


def _forward(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Array]:
    probes: dict[str, Array] = {}
    logits = function(**arguments, probes=probes)
    return {"logits": np.asarray(logits), **{f"probes.{name}": np.asarray(value) for name, value in probes.items()}}


def _strict_cache(params: Mapping[str, Any], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a script; see SPEC.md, section *kv_cache*.

    Expected values come from the strict attention over the float keys and values, so that they owe nothing to the int8
    store; the store runs beside it, for its refusals.
    """
    first = next(array for name, array in inputs.items() if name.startswith("k."))
    shape = (first.shape[0], int(params["capacity"]), *first.shape[2:])
    plain, store = reference.KVCache(*shape), strict.Int8KVCache(*shape)
    outputs: dict[str, Array] = {}
    positions = np.zeros((first.shape[0], 0), dtype=np.int64)
    for verb, argument, *more in params["script"]:
        listed = None if argument is None or isinstance(argument, str) else np.array(argument, dtype=np.int64)
        if verb == "append":
            counts = None if more[0] is None else np.array(more[0], dtype=np.int64)
            store.append(inputs[f"k.{argument}"], inputs[f"v.{argument}"], counts)
            positions = plain.append(inputs[f"k.{argument}"], inputs[f"v.{argument}"], counts)
        elif verb == "attend":
            store.attend(inputs[f"q.{argument}"], positions)
            keys, values = (part.astype(np.float32) for part in _masked(plain))
            outputs[f"o.{argument}"] = strict.attention(inputs[f"q.{argument}"], keys, values, positions)
        elif verb == "fork":
            assert listed is not None
            plain, store, positions = plain.fork(listed), store.fork(listed), positions[listed]
        elif verb in ("truncate", "reset"):
            for cache in (plain, store):
                getattr(cache, verb)(listed)
        else:
            raise ParameterError(f"script step {verb!r}: expected append, truncate, reset, fork or attend")
    return {"lengths": np.asarray(plain.lengths, dtype=np.int64), **outputs}


def _masked(cache: reference.KVCache) -> tuple[Array, Array]:
    """Keys and values with the slots past each length set to 0."""
    live = (np.arange(cache.capacity) < cache.lengths[:, None])[:, :, None, None]
    return np.where(live, cache.keys, 0.0), np.where(live, cache.values, 0.0)


class _Witness(reference.KVCache):
    """A cache that remembers the arguments of every attention."""

    seen: list[dict[str, Array]]

    def attend(self, q: Any, positions: Any) -> Any:
        """As the reference does; its arguments are kept."""
        keys, values = _masked(self)
        self.seen.append({"q": np.asarray(q), "k": keys, "v": values, "positions": np.asarray(positions)})
        return super().attend(q, positions)

    def fork(self, rows: Any) -> reference.KVCache:
        """The fork goes on with the same list."""
        plain = super().fork(rows)
        copy = _Witness(len(plain.lengths), *plain.keys.shape[1:])
        copy.keys, copy.values, copy.lengths, copy.seen = plain.keys, plain.values, plain.lengths, self.seen
        return copy


def attended(script: list[list[Any]], capacity: int, inputs: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The arguments of ``attention`` at each ``attend`` of an ordinary script, by its key."""
    parts = nest({name: array.astype(np.float64) for name, array in inputs.items()})
    first = inputs[f"k.{script[0][1]}"]
    cache = _Witness(first.shape[0], capacity, *first.shape[2:])
    seen: list[dict[str, Array]] = []
    cache.seen = seen
    run_script(cache, parts["k"], parts["v"], parts.get("q"), script)
    return dict(zip((str(step[1]) for step in script if step[0] == "attend"), seen, strict=True))
