"""A miniature suite: the transform of size 2, ``y = (a + b, a - b)``, whose answers anyone can check in their head."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from walsh.errors import ShapeError
from walsh.suite.policy import Policy
from walsh.suite.tensors import encode
from walsh.suite.vectors import write_group, write_manifest

NOTE = {"bug": "swapped halves", "description": "sum and difference change places", "links": []}


def butterfly(x):
    return np.stack([x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]], axis=-1)


class Butterfly:
    """A right backend; wrong ones derive from it."""

    name = "butterfly"

    def describe(self):
        return {"name": self.name, "version": "1", "calls": ["hadamard_transform"]}

    def run(self, op, params, inputs, out):
        x = inputs["x"]
        if x.shape[-1] != 2:
            raise ShapeError(f"last axis {x.shape[-1]}: expected 2")
        out["y"][...] = butterfly(x)

    def close(self):
        pass


def exact_test(number, dtype=np.float32, rows=3, flags=("halves",)):
    x = (np.arange(2 * rows).reshape(rows, 2) * 3 + number).astype(dtype)
    y = butterfly(x.astype(np.int64)).astype(dtype)
    return {
        "id": f"case-{number}",
        "comment": "sums and differences",
        "flags": list(flags),
        "inputs": {"x": encode(x)},
        "outputs": {"y": {"dtype": y.dtype.name, "shape": list(y.shape)}},
        "result": {"y": {**encode(y), "compare": {"rule": "bits"}}},
    }


def invalid_test(identifier="three"):
    return {
        "id": identifier,
        "comment": "three is no power of two",
        "flags": [],
        "inputs": {"x": encode(np.zeros((2, 3), dtype=np.float32))},
        "outputs": {"y": {"dtype": "float32", "shape": [2, 3]}},
        "result": {"error": "ShapeError", "phase": "validate"},
    }


def group(tests, name="exact", lane="exact", notes=None):
    used = {flag for test in tests for flag in test["flags"]} - {"smoke"}
    return {
        "schema": 1,
        "op": "hadamard",
        "group": name,
        "lane": lane,
        "source": {"name": "tests", "version": "1"},
        "params": {"call": "hadamard_transform", "normalize": False},
        "notes": dict.fromkeys(used, NOTE) if notes is None else notes,
        "tests": tests,
    }


def write_suite(root: Path, groups) -> Path:
    for document in groups:
        write_group(root, document)
    write_manifest(root)
    return root


class Toys:
    """What tests of several files share; pytest has no other way to share code under importlib mode."""

    Butterfly = Butterfly
    NOTE = NOTE
    butterfly = staticmethod(butterfly)
    exact_test = staticmethod(exact_test)
    invalid_test = staticmethod(invalid_test)
    group = staticmethod(group)
    write_suite = staticmethod(write_suite)
    policy = Policy({}, (), "0" * 64)


@pytest.fixture(scope="session")
def toys():
    return Toys


@pytest.fixture
def small(tmp_path):
    """A suite of four cases."""
    tests = [exact_test(0, flags=("smoke",)), exact_test(1), exact_test(2, dtype=np.int32)]
    return write_suite(tmp_path / "small", [group(tests), group([invalid_test()], "invalid", "invalid")])


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    tests = [exact_test(i, flags=("smoke",) if i < 2 else ("halves",)) for i in range(400)]
    groups = [group(tests), group([invalid_test()], "invalid", "invalid")]
    return write_suite(tmp_path_factory.mktemp("built"), groups)


@pytest.fixture
def full(tmp_path, built):
    """A suite that is large enough to be believed; a copy, because tests break it."""
    return Path(shutil.copytree(built, tmp_path / "full"))
