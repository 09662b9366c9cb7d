"""Conformance vectors: read, checked, and counted before a single one is believed.

A data folder holds ``manifest.json`` and ``vectors/<op>/<group>.json`` with safetensors files beside them. The manifest
lists every file with its sha256 and number of cases, and the floors (in total, per op, per op and lane) that the suite
must reach. ``MIN_CASES`` in this code guards against a manifest that was edited together with the files.

A case is known as ``op/group/id``. Its expected values stay encoded until the runner asks, after the backend has run.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from walsh.errors import ERRORS, VectorError
from walsh.suite import tensors
from walsh.suite.catalog import CALLS, Call
from walsh.suite.schema import check, dump_canonical, load_canonical
from walsh.suite.seal import require_unsealed
from walsh.suite.tensors import Array

MIN_CASES = 400
"""Fewer cases than this are not a suite, whatever the manifest says."""

SMOKE = "smoke"
"""The flag of the cases that tell a broken adapter from a wrong kernel. Needs no note."""

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Note:
    """Why a vector exists: the flag, the bug it smells of, a description and links."""

    flag: str
    bug: str
    description: str
    links: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    """dtype name and shape of one output."""

    dtype: str
    shape: tuple[int, ...]


class Expected:
    """What one output must be: an encoded tensor and the rule by which it is compared; shut while a backend runs.

    Attributes:
        folder: where its file lies, if it has one.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self.__spec, self.folder = spec, folder

    @property
    def spec(self) -> Mapping[str, Any]:
        """The encoded tensor with its rule.

        Raises:
            walsh.suite.seal.Sealed: while a backend runs.
        """
        require_unsealed("the expected value")
        return self.__spec

    @property
    def rule(self) -> str:
        """``bits``, ``bound``, ``ulp`` or ``choice``."""
        return str(self.spec["compare"]["rule"])

    @property
    def digest(self) -> str | None:
        """The digest, where the vector holds nothing else."""
        return self.spec.get("digest")

    def value(self) -> Array:
        """The expected tensor, float64 under the rules ``bound`` and ``ulp``."""
        return tensors.decode(self.spec, self.folder)

    def alternatives(self) -> list[Array]:
        """The tensors that rule ``choice`` allows besides the preferred one."""
        return [tensors.decode(spec, self.folder) for spec in self.spec["compare"]["alternatives"]]

    def magnitude(self) -> Array:
        """float64, scalar or of the output's shape: the sums of absolute products of rule ``bound``."""
        return tensors.decode(self.spec["compare"]["magnitude"], self.folder)


@dataclass(frozen=True)
class ExpectedError:
    """The error class that must be raised, and the phase it belongs to."""

    error: str
    phase: str


@dataclass(frozen=True)
class Case:
    """One vector.

    Attributes:
        name: ``op/group/id``.
        op, lane: its room and its lane.
        call: the catalogue's entry that is called.
        params: keyword parameters, with ``call``, as JSON has them (see :func:`decode_params`).
        comment: what is tried.
        flags: labels; those with a note say which bug the vector smells of.
        notes: the notes of its flags.
        inputs: encoded tensors by (flat) name.
        outputs: dtype and shape of every output.
        expected: what each output must be, or the error that must be raised.
        folder: where its files lie.
    """

    name: str
    op: str
    lane: str
    call: Call
    params: Mapping[str, Any]
    comment: str
    flags: tuple[str, ...]
    notes: tuple[Note, ...]
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Output]
    expected: Mapping[str, Expected] | ExpectedError
    folder: Path

    def load_inputs(self) -> dict[str, Array]:
        """Fresh, writable arrays of the inputs."""
        return {name: tensors.decode(spec, self.folder) for name, spec in self.inputs.items()}


@dataclass(frozen=True)
class Suite:
    """Vectors that have been checked against their manifest.

    Attributes:
        root: the data folder.
        digest: sha256 of the manifest, by which reports name the vectors.
        cases: all of them, in the order of the files.
    """

    root: Path
    digest: str
    cases: tuple[Case, ...]


def decode_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for a call: the strings ``nan``, ``inf`` and ``-inf`` stand for the floats that JSON has not."""
    return {key: _SPECIAL.get(value, value) if isinstance(value, str) else value for key, value in params.items()}


def load_suite(root: Path, min_cases: int = MIN_CASES) -> Suite:
    """Read and check all vectors of a data folder.

    Args:
        root: holds ``manifest.json`` and ``vectors/``.
        min_cases: the floor on the number of cases; only tests of the tester lower it.

    Raises:
        VectorError: if a file is missing, unlisted, edited, malformed or not canonical; if a case occurs twice or
            contradicts the catalogue; if a floor is not reached.
    """
    data = _read(root / "manifest.json", str(root / "manifest.json"))
    manifest = load_canonical(data, "manifest.json")
    check("manifest", manifest, "manifest.json")
    _check_files(root, manifest["files"])
    cases: list[Case] = []
    for path, entry in manifest["files"].items():
        if path.endswith(".json"):
            found = read_group(root / path)
            if len(found) != entry["cases"]:
                raise VectorError(f"{path}: {len(found)} cases, the manifest says {entry['cases']}")
            cases += found
    _check_unique(cases)
    _check_floors(cases, manifest["floors"], min_cases)
    return Suite(root, hashlib.sha256(data).hexdigest(), tuple(cases))


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VectorError(f"{name}: {error.strerror}; the suite is incomplete") from None


def _listed(root: Path) -> list[str]:
    """Every file under vectors/, relative to root."""
    return sorted(path.relative_to(root).as_posix() for path in (root / "vectors").rglob("*") if path.is_file())


def _check_files(root: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    present = _listed(root)
    if not present:
        raise VectorError("vectors/: no files; the suite is incomplete")
    for path in present:
        if path not in files:
            raise VectorError(f"{path}: not in the manifest; add it with walsh conformance generate, or remove it")
    for path, entry in files.items():
        found = hashlib.sha256(_read(root / path, path)).hexdigest()
        if found != entry["sha256"]:
            raise VectorError(f"{path}: sha256 {found[:12]}, the manifest says {entry['sha256'][:12]}; it was edited")


def _check_unique(cases: Iterable[Case]) -> None:
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            raise VectorError(f"{name}: this case occurs {count} times; ids are unique")


def count_cases(cases: Iterable[Case]) -> dict[str, Any]:
    """``{total, ops: {op: n}, lanes: {"op/lane": n}}``, the form of a manifest's floors."""
    cases = list(cases)
    return {
        "total": len(cases),
        "ops": dict(Counter(case.op for case in cases)),
        "lanes": dict(Counter(f"{case.op}/{case.lane}" for case in cases)),
    }


def _check_floors(cases: Iterable[Case], floors: Mapping[str, Any], min_cases: int) -> None:
    counts = count_cases(cases)
    total = max(int(floors["total"]), min_cases)
    if counts["total"] < total:
        raise VectorError(f"{counts['total']} cases, expected at least {total}; the suite is incomplete")
    for kind in ("ops", "lanes"):
        for name, floor in floors[kind].items():
            if counts[kind].get(name, 0) < floor:
                raise VectorError(f"{name}: {counts[kind].get(name, 0)} cases, expected at least {floor}")


def read_group(path: Path) -> list[Case]:
    """The cases of one file, checked by themselves (the manifest is not looked at).

    Raises:
        VectorError: if the file is malformed, not canonical, or contradicts the catalogue.
    """
    require_unsealed("a file of vectors")
    where = f"{path.parent.name}/{path.name}"
    document = load_canonical(_read(path, where), where)
    check("vector", document, where)
    op, group = document["op"], document["group"]
    if (path.parent.name, path.stem) != (op, group):
        raise VectorError(f"{where}: says op {op!r} and group {group!r}; the file must be {op}/{group}.json")
    cases = [_case(document, test, path.parent) for test in document["tests"]]
    _check_unique(cases)
    unused = set(document["notes"]) - {flag for case in cases for flag in case.flags}
    if unused:
        raise VectorError(f"{where}: notes {sorted(unused)} belong to no test")
    return cases


def _case(document: Mapping[str, Any], test: Mapping[str, Any], folder: Path) -> Case:
    name = f"{document['op']}/{document['group']}/{test['id']}"
    params = {**document["params"], **test.get("params", {})}
    call = CALLS.get(str(params.get("call")))
    if call is None or call.op != document["op"]:
        raise VectorError(f"{name}: params.call is {params.get('call')!r}, expected a call of {document['op']!r}")
    result, outputs = test["result"], {key: _output(spec) for key, spec in test["outputs"].items()}
    expected: Mapping[str, Expected] | ExpectedError
    if "error" in result:
        expected = ExpectedError(result["error"], result["phase"])
    else:
        expected = {key: Expected(spec, folder) for key, spec in result.items()}
    notes = tuple(
        Note(flag, note["bug"], note["description"], tuple(note["links"]))
        for flag in test["flags"]
        if (note := document["notes"].get(flag)) is not None
    )
    lacking = [flag for flag in test["flags"] if flag != SMOKE and flag not in document["notes"]]
    if lacking:
        raise VectorError(f"{name}: flags {lacking} have no note that says which bug they smell of")
    case = Case(
        name=name,
        op=document["op"],
        lane=document["lane"],
        call=call,
        params=params,
        comment=test["comment"],
        flags=tuple(test["flags"]),
        notes=notes,
        inputs=test["inputs"],
        outputs=outputs,
        expected=expected,
        folder=folder,
    )
    try:
        _check_case(case)
    except VectorError as error:
        raise VectorError(f"{name}: {error}") from None
    return case


def _output(spec: Mapping[str, Any]) -> Output:
    return Output(spec["dtype"], tuple(spec["shape"]))


def _check_case(case: Case) -> None:
    """What the schema cannot say: the catalogue's names, and results that fit their outputs and their lane."""
    call = case.call
    heads = {name.partition(".")[0] for name in case.inputs}
    if heads - set(call.args):
        raise VectorError(f"inputs {sorted(heads - set(call.args))} are not arguments of {call.name}")
    # A missing argument can itself be what an invalid vector tries, but only there.
    missing = set(call.args) - call.optional - heads
    if missing and case.lane != "invalid":
        raise VectorError(f"arguments {sorted(missing)} of {call.name} are missing")
    unknown = set(case.params) - {"call"} - set(call.params)
    if unknown:
        raise VectorError(f"params {sorted(unknown)} are not parameters of {call.name}")
    strange = {name.partition(".")[0] for name in case.outputs} - set(call.outputs)
    if strange:
        raise VectorError(f"outputs {sorted(strange)} are not results of {call.name}")
    for spec in case.inputs.values():
        _check_encoded(spec)
    if isinstance(case.expected, ExpectedError):
        _check_error(case, case.expected)
        return
    if case.lane == "invalid":
        raise VectorError("a vector of lane invalid must expect an error")
    if set(case.expected) != set(case.outputs):
        raise VectorError(f"results {sorted(case.expected)} and outputs {sorted(case.outputs)} differ")
    for name, expected in case.expected.items():
        _check_expected(case, name, expected)


def _check_error(case: Case, expected: ExpectedError) -> None:
    if case.lane != "invalid":
        raise VectorError(f"expects an error in lane {case.lane}; only lane invalid does")
    if ERRORS[expected.error].phase != expected.phase:
        raise VectorError(f"{expected.error} belongs to phase {ERRORS[expected.error].phase}, not {expected.phase}")


def _check_expected(case: Case, name: str, expected: Expected) -> None:
    spec, output, rule = expected.spec, case.outputs[name], expected.rule
    _check_encoded(spec)
    if tuple(spec["shape"]) != output.shape:
        raise VectorError(f"result {name} has shape {spec['shape']}, the output {list(output.shape)}")
    floating = tensors.is_float(tensors.find_dtype(output.dtype))
    dtype = "float64" if rule in ("bound", "ulp") else output.dtype
    if spec["dtype"] != dtype or (rule in ("bound", "ulp") and not floating):
        raise VectorError(f"result {name} is {spec['dtype']}, expected {dtype} for {output.dtype} under rule {rule}")
    if case.lane in ("exact", "strict") and rule != "bits":
        raise VectorError(f"result {name} has rule {rule}; lane {case.lane} is compared bit for bit")
    if "digest" in spec and rule != "bits":
        raise VectorError(f"result {name} is a digest; only rule bits can be held to one")
    if rule == "bound":
        magnitude = spec["compare"]["magnitude"]
        _check_encoded(magnitude)
        if magnitude["dtype"] != "float64" or tuple(magnitude["shape"]) not in ((), output.shape):
            raise VectorError(f"magnitude of {name}: expected float64 of shape [] or {list(output.shape)}")
    for alternative in spec["compare"].get("alternatives", ()):
        _check_encoded(alternative)
        if alternative["dtype"] != output.dtype or tuple(alternative["shape"]) != output.shape:
            raise VectorError(f"an alternative of {name} has another dtype or shape than the output")


def _check_encoded(spec: Mapping[str, Any]) -> None:
    """Inline bits have the right length; recipes and files are decoded when they are used."""
    if "bits" in spec:
        size = math.prod(spec["shape"]) * tensors.find_dtype(spec["dtype"]).itemsize
        if len(spec["bits"]) != 2 * size:
            raise VectorError(f"{len(spec['bits']) // 2} bytes for {spec['dtype']}{spec['shape']}: expected {size}")


def write_group(root: Path, document: Mapping[str, Any]) -> Path:
    """Write one vector file in canonical form to ``root/vectors/<op>/<group>.json`` and check it.

    Returns:
        its path. The manifest is written afterwards by :func:`write_manifest`.

    Raises:
        VectorError: if what was written could not be loaded again.
    """
    path = root / "vectors" / str(document["op"]) / f"{document['group']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dump_canonical(document))
    for case in read_group(path):
        try:
            _check_decodable(case)
        except VectorError as error:
            raise VectorError(f"{case.name}: {error}") from None
    return path


def _check_decodable(case: Case) -> None:
    """Everything that a run would decode; too slow for every load, right for the day on which a vector is made."""
    case.load_inputs()
    if isinstance(case.expected, ExpectedError):
        return
    for name, expected in case.expected.items():
        if expected.digest is not None:
            continue
        value = expected.value()
        if expected.rule == "choice":
            expected.alternatives()
        if expected.rule == "bound":
            magnitude = np.broadcast_to(expected.magnitude(), value.shape)
            if not (np.isfinite(magnitude) & (magnitude >= 0))[np.isfinite(value)].all():
                raise VectorError(f"magnitude of {name}: negative or not finite where the result is finite")


def write_manifest(root: Path, lower_floors: bool = False) -> str:
    """Write ``manifest.json`` for the files that are there; the floors become their numbers of cases.

    Args:
        root: holds ``vectors/``.
        lower_floors: allow fewer cases than the manifest that stands there asks for.

    Returns:
        the digest of the manifest.

    Raises:
        VectorError: if a file does not load, or a floor would sink unasked.
    """
    files: dict[str, dict[str, Any]] = {}
    cases: list[Case] = []
    for path in _listed(root):
        found = read_group(root / path) if path.endswith(".json") else []
        cases += found
        files[path] = {"sha256": hashlib.sha256((root / path).read_bytes()).hexdigest(), "cases": len(found)}
    _check_unique(cases)
    target = root / "manifest.json"
    if target.exists() and not lower_floors:
        standing = load_canonical(target.read_bytes(), "manifest.json")
        try:
            _check_floors(cases, standing["floors"], 0)
        except VectorError as error:
            raise VectorError(
                f"{error}; to remove vectors on purpose, call write_manifest(lower_floors=True)"
            ) from None
    document = {"schema": 1, "files": files, "floors": count_cases(cases)}
    check("manifest", document, "manifest.json")
    data = dump_canonical(document)
    target.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
