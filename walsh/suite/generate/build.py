"""From a case's inputs to its JSON: expected values from the reference, compared by the rule of its lane.

    lane            floating results are                                       held to rule
    exact, strict   the reference's, and shown to be exact or pinned            bits
    rounded         the reference's in float64, with the a-priori bound         bound
    transcendental  the reference's in float64                                  ulp
    choice          the preferred one and the closed list of alternatives       choice
    gradient        as exact or as rounded, as the group says
    invalid         an error class

Integer results are always compared bit for bit. Tensors up to 1 KiB are written as hex, painted ones as their recipe,
the rest goes to one safetensors file per group; a large result under rule ``bits`` leaves its digest only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from walsh.errors import ERRORS, VectorError
from walsh.suite import tensors, vectors
from walsh.suite.catalog import CALLS, Call
from walsh.suite.generate.evaluate import evaluate
from walsh.suite.generate.grids import ambiguous_zeros, check_exact
from walsh.suite.generate.numbers import Draw
from walsh.suite.generate.propagation import BOUNDS
from walsh.suite.tensors import DTYPES, Array

SOURCE = {"name": "walsh.reference", "version": "1"}
"""Who computed the expected values; the version counts changes of the definition, not releases."""

MAGNITUDE_BITS = 20
"""Significant bits that are kept of a magnitude, rounded up: what is asked must not depend on a machine's last bit."""


SEARCHED = 500
"""Draws that are tried for one case."""


@dataclass(frozen=True)
class Paint:
    """A tensor by its recipe ``(((i mul + add) mod mod) - sub) 2^shift``; see `walsh.suite.tensors.paint`."""

    dtype: str
    shape: tuple[int, ...]
    mul: int
    add: int
    mod: int
    sub: int
    shift: int = 0

    @property
    def recipe(self) -> dict[str, int]:
        """The integers of the recipe."""
        return {name: getattr(self, name) for name in ("mul", "add", "mod", "sub", "shift")}

    def array(self) -> Array:
        """The tensor itself."""
        return tensors.paint(self.recipe, self.dtype, self.shape)


Inputs = Mapping[str, Array | Paint]
"""Inputs by flat name."""


def realise(inputs: Inputs) -> dict[str, Array]:
    """The arrays of inputs, painted ones included."""
    return {name: value.array() if isinstance(value, Paint) else value for name, value in inputs.items()}


@dataclass(frozen=True)
class Flag:
    """Which bug a vector smells of: a failure of a vector with this flag names it."""

    name: str
    bug: str
    description: str
    links: tuple[str, ...] = ()

    def note(self) -> dict[str, Any]:
        """The entry under ``notes``."""
        return {"bug": self.bug, "description": self.description, "links": list(self.links)}


@dataclass(frozen=True)
class Bounded:
    """A float64 value with a bound that no formula of `walsh.suite.generate.propagation` gives."""

    value: Array
    magnitude: Array
    terms: int


@dataclass
class Group:
    """The vectors of one file.

    Attributes:
        op, name, lane: as the file says them.
        call: the catalogue's name of the function.
        params: parameters of every test.
        exact: whether lane gradient is compared bit for bit.
    """

    op: str
    name: str
    lane: str
    call: str
    params: dict[str, Any] = field(default_factory=dict)
    exact: bool = False
    tests: list[dict[str, Any]] = field(default_factory=list)
    flags: dict[str, Flag] = field(default_factory=dict)
    stored: dict[str, Array] = field(default_factory=dict)

    def draw(self, case: str) -> Draw:
        """Numbers that belong to this case alone."""
        return Draw(f"{self.op}/{self.name}/{case}")

    def add(
        self,
        case: str,
        comment: str,
        inputs: Inputs | Callable[[Draw], Inputs],
        *,
        flags: Sequence[Flag | str] = (),
        error: str | None = None,
        choices: Mapping[str, Sequence[Array]] | None = None,
        bounded: Mapping[str, Bounded] | None = None,
        expected: Mapping[str, Array] | None = None,
        unproven: bool = False,
        **params: Any,
    ) -> None:
        """Add one vector; the reference computes its results.

        Args:
            case: its id, unique in the group.
            comment: what is tried, and why it is worth trying.
            inputs: by flat name; or a function of a draw, which is tried on a numbered family of draws until no result
                is a zero whose sign depends on the algorithm.
            flags: a :class:`Flag` brings its note; ``smoke`` needs none.
            error: the error class that must be raised, in lane invalid.
            choices: alternatives to the preferred value, per output.
            bounded: outputs whose bound the caller derives.
            expected: outputs whose true value is not the reference's, for accuracy tests of the definition itself.
            unproven: the caller proves exactness, because the call is no sum of products.
            params: parameters of this test only.

        Raises:
            VectorError: if the case is not what its lane promises.
        """
        call = CALLS[self.call]
        settings = {**self.params, **params}
        where = f"{self.op}/{self.name}/{case}"
        if callable(inputs):
            inputs = self._search(case, inputs, settings)
        arrays = realise(inputs)
        outputs: dict[str, Any] = {}
        result: Mapping[str, Any]
        if error is not None:
            result = self._refusal(where, call, settings, arrays, error)
        else:
            results = evaluate(call, settings, arrays)
            truth = {**results, **(expected or {})}
            for name, value in results.items():
                dtype = output_dtype(call, name, value, arrays)
                outputs[name] = {"dtype": dtype, "shape": list(value.shape)}
            if not unproven and (self.lane == "exact" or self.exact):
                check_exact(where, call.name, settings, arrays, results)
            entries: dict[str, dict[str, Any]] = {}
            for name, value in truth.items():
                dtype = outputs[name]["dtype"]
                if choices and name in choices:
                    entries[name] = self._choice(case, name, round_to_kind(value, dtype), choices[name])
                elif bounded and name in bounded:
                    entries[name] = self._bound(case, name, dtype, bounded[name])
                else:
                    entries[name] = self._result(case, name, dtype, value, settings, arrays)
            result = entries
        test = {
            "id": case,
            "comment": comment,
            "flags": [flag if isinstance(flag, str) else flag.name for flag in flags],
            "inputs": {name: self._encode(f"{case}.{name}", value) for name, value in inputs.items()},
            "outputs": outputs,
            "result": result,
        }
        if params:
            test["params"] = params
        self.flags.update({flag.name: flag for flag in flags if isinstance(flag, Flag)})
        self.tests.append(test)

    def _search(self, case: str, make: Callable[[Draw], Inputs], params: Mapping[str, Any]) -> Inputs:
        """The first inputs of a numbered family whose exact results have signs that every algorithm agrees on."""
        for number in range(SEARCHED):
            inputs = make(self.draw(f"{case}#{number}"))
            arrays = realise(inputs)
            if not ambiguous_zeros(self.call, params, arrays, evaluate(CALLS[self.call], params, arrays)):
                return inputs
        raise VectorError(
            f"{self.op}/{self.name}/{case}: zeros of ambiguous sign in {SEARCHED} draws; use larger integers"
        )

    def _refusal(
        self, where: str, call: Call, params: Mapping[str, Any], arrays: Mapping[str, Array], error: str
    ) -> dict[str, str]:
        """The error, after the reference has been seen to raise it."""
        expected = ERRORS[error]
        try:
            evaluate(call, params, arrays, raw=True)
        except Exception as raised:
            if type(raised) is not expected:
                raise VectorError(f"{where}: the reference raises {raised!r}, expected {error}") from raised
            return {"error": error, "phase": expected.phase}
        raise VectorError(f"{where}: the reference accepts what should be a {error}")

    def _result(
        self, case: str, name: str, dtype: str, value: Array, params: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> dict[str, Any]:
        floating = tensors.is_float(DTYPES[dtype])
        if floating and self.lane == "transcendental":
            return {**self._encode(f"{case}.{name}", value.astype(np.float64)), "compare": {"rule": "ulp"}}
        if floating and (self.lane == "rounded" or (self.lane in ("gradient", "choice") and not self.exact)):
            magnitude, terms = BOUNDS[self.call](arrays, params)[name]
            return self._bound(case, name, dtype, Bounded(value, magnitude, terms))
        exact = round_to_kind(value, dtype)
        return {**self._encode(f"{case}.{name}", exact, digest=True), "compare": {"rule": "bits"}}

    def _choice(self, case: str, name: str, preferred: Array, others: Sequence[Array]) -> dict[str, Any]:
        alternatives = [
            self._encode(f"{case}.{name}.{i}", other.astype(preferred.dtype)) for i, other in enumerate(others)
        ]
        return {
            **self._encode(f"{case}.{name}", preferred),
            "compare": {"rule": "choice", "alternatives": alternatives},
        }

    def _bound(self, case: str, name: str, dtype: str, bounded: Bounded) -> dict[str, Any]:
        value = np.asarray(bounded.value, dtype=np.float64)
        magnitude = np.asarray(bounded.magnitude, dtype=np.float64)
        if magnitude.shape not in ((), value.shape):
            magnitude = np.broadcast_to(magnitude, value.shape)
        # The reference itself rounds in float64, so a float64 result is charged for both sides.
        unit, terms = ("float64", 2 * bounded.terms) if dtype == "float64" else ("float32", bounded.terms)
        # Where the value is NaN or infinite it must be met exactly, and no magnitude is needed.
        magnitude = np.where(np.isfinite(value), magnitude, 0.0)
        return {
            **self._encode(f"{case}.{name}", value),
            "compare": {
                "rule": "bound",
                "magnitude": self._encode(f"{case}.{name}.magnitude", round_up(magnitude)),
                "terms": terms,
                "unit": unit,
            },
        }

    def _encode(self, key: str, value: Array | Paint, digest: bool = False) -> dict[str, Any]:
        if isinstance(value, Paint):
            return {"dtype": value.dtype, "shape": list(value.shape), "paint": value.recipe}
        if value.nbytes <= tensors.MAX_INLINE:
            return tensors.encode(value)
        described = {"dtype": value.dtype.name, "shape": list(value.shape)}
        if digest:
            return {**described, "digest": tensors.digest(value)}
        for known, other in self.stored.items():
            if other.dtype == value.dtype and other.shape == value.shape and other.tobytes() == value.tobytes():
                key = known
        self.stored[key] = value
        return {**described, "file": {"path": f"{self.name}.safetensors", "key": key}}

    def document(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema": 1,
            "op": self.op,
            "group": self.name,
            "lane": self.lane,
            "source": SOURCE,
            "params": {"call": self.call, **self.params},
            "notes": {name: flag.note() for name, flag in self.flags.items()},
            "tests": self.tests,
        }

    def write(self, root: Path) -> None:
        """Write the file, and the safetensors file beside it if one is needed."""
        folder = root / "vectors" / self.op
        folder.mkdir(parents=True, exist_ok=True)
        if self.stored:
            tensors.write_tensors(folder / f"{self.name}.safetensors", self.stored)
        vectors.write_group(root, self.document())


def round_to_kind(value: Array, dtype: str) -> Array:
    """The value in the dtype of the output, floating values rounded once."""
    kind = DTYPES[dtype]
    return tensors.round_to(value, kind) if tensors.is_float(kind) else np.asarray(value).astype(kind)


def round_up(values: Array) -> Array:
    """Values rounded up to :data:`MAGNITUDE_BITS` significant bits."""
    significand, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.ceil(np.ldexp(significand, MAGNITUDE_BITS)), exponent - MAGNITUDE_BITS))


def output_dtype(call: Call, name: str, value: Array, arrays: Mapping[str, Array]) -> str:
    """The dtype that SPEC.md gives this output.

    Integers and strict results are as the reference has them. A gradient has the dtype of its argument; scales are
    float64 for float64 inputs and else float32; anything else has the dtype of the first floating argument.
    """
    if not tensors.is_float(value.dtype) or call.kind == "strict" or call.op == "sampling":
        return value.dtype.name
    if call.kind == "backward" and name.startswith("d") and name[1:] in arrays:
        return arrays[name[1:]].dtype.name
    floating = [array.dtype.name for array in arrays.values() if tensors.is_float(array.dtype)]
    if name in ("scale", "gamma"):
        return "float64" if floating[0] == "float64" else "float32"
    if arrays[next(iter(arrays))].dtype == np.int8 and "x_scale" in arrays:
        return "float32"
    return floating[0]
