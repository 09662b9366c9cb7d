"""Adapters between the runner's arrays and functions of other kinds."""

import types

import ml_dtypes
import numpy as np
import pytest

from walsh.errors import BackendError, ParameterError
from walsh.suite import load_backend
from walsh.suite.backend import OutputMismatch, Skip
from walsh.suite.backends import calling
from walsh.suite.backends.function import FunctionBackend, choose_call
from walsh.suite.catalog import find_call


def test_unknown_backends():
    with pytest.raises(BackendError, match="reference, torch"):
        load_backend("nonsense")
    with pytest.raises(BackendError, match="cpu only"):
        load_backend("walsh.suite.backends.reference:ReferenceBackend", device="cuda")


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("cayley_dickson", "cayley_dickson_linear"),
        ("hadamard", "hadamard_linear"),
        ("rope", "rope"),
        ("activations", "quantize_activations"),
        ("rms_norm.strict", "rms_norm.strict"),
    ],
)
def test_which_call_a_function_is_held_to(op, call):
    assert choose_call(op).name == call


def test_an_op_that_does_not_exist():
    with pytest.raises(ParameterError, match="room"):
        choose_call("nothing")


def test_arguments_by_position_and_by_name():
    seen = {}

    def hash_embedding(ids, tables, importance, indices=None, scale=1.0):
        seen.update(ids=ids, tables=tables, importance=importance, indices=indices, scale=scale)
        return "e"

    call = find_call("hash_embedding")
    inputs = {"ids": 1, "tables.0": 2, "tables.1": 3, "importance": 4}
    assert calling.invoke(call, hash_embedding, inputs, {"scale": 2.0}, {}) == {"e": "e"}
    assert seen == {"ids": 1, "tables": [2, 3], "importance": 4, "indices": None, "scale": 2.0}


def test_gradients_get_every_argument_by_position():
    def rope_backward(x, positions, dy, theta=0):
        return (x, positions, dy, theta)

    found = calling.invoke(find_call("rope.backward"), rope_backward, {"x": 1, "dy": 2}, {"theta": 3}, {})
    assert found == {"dx": 1}


def test_probes_are_gathered():
    def forward(ids, weights, config, probes=None):
        probes["x.0"] = weights["norm.weight"]
        return ids

    found = calling.invoke(
        find_call("forward"), forward, {"ids": 1, "weights.norm.weight": 2}, {"config": {}}, {"probes.x.0": None}
    )
    assert found == {"logits": 1, "probes.x.0": 2}


def test_a_missing_function_is_an_error_not_a_skip():
    package = types.ModuleType("empty")
    for name in ("rope", "rope.strict", "sample"):
        with pytest.raises(BackendError, match="has no function"):
            calling.find_function(find_call(name), package)


class ListCache:
    """One sequence of scalars, enough to watch a script."""

    def __init__(self, batch=2, capacity=4, *_):
        self.log, self.keys, self.values = [], "K", "V"

    def append(self, k, v, counts):
        self.log.append(("append", k, v, counts))
        return f"positions {len(self.log)}"

    def truncate(self, lengths):
        self.log.append(("truncate", lengths))

    def reset(self, rows):
        self.log.append(("reset", rows))

    def fork(self, rows):
        self.log.append(("fork", rows))
        copy = ListCache()
        copy.log = [*self.log, "forked"]
        return copy


def test_scripts():
    script = [
        ["append", "a", None],
        ["append", "b", [1, 0]],
        ["truncate", [1, 1]],
        ["fork", [0, 0]],
        ["attend", "c"],
        ["reset", None],
        ["reset", [1]],
    ]
    inputs = {"k.a": 1, "v.a": 2, "k.b": 3, "v.b": 4, "q.c": 5}
    cache, outputs = calling.run_script(ListCache(), lambda *given: given, script, inputs, tuple)
    assert outputs == {"o.c": (5, "K", "V", "positions 2")}
    assert cache.log == [
        ("append", 1, 2, None),
        ("append", 3, 4, (1, 0)),
        ("truncate", (1, 1)),
        ("fork", (0, 0)),
        "forked",
        ("reset", None),
        ("reset", (1,)),
    ]
    with pytest.raises(ParameterError, match="jump"):
        calling.run_script(ListCache(), len, [["jump", 1]], {}, tuple)


def test_a_cache_that_attends_by_itself():
    class Own(ListCache):
        def attend(self, q, positions):
            return q, positions

    _, outputs = calling.run_script(
        Own(), len, [["append", "a", None], ["attend", "c"]], {"k.a": 1, "v.a": 2, "q.c": 5}, tuple
    )
    assert outputs == {"o.c": (5, "positions 1")}


def swish(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_a_numpy_function():
    backend = FunctionBackend(swish, "swiglu")
    assert backend.describe()["calls"] == ["swiglu"]
    out = {"h": f32(0, 0)}
    assert backend.run("swiglu", {"call": "swiglu"}, {"gate": f32(0, 1), "up": f32(5, 2)}, out) is None
    assert out["h"].tolist() == pytest.approx([0, 1.462117], rel=1e-6)
    with pytest.raises(BackendError, match="tensors torch"):
        FunctionBackend(swish, "swiglu", device="cuda")
    with pytest.raises(ParameterError, match="numpy or torch"):
        FunctionBackend(swish, "swiglu", tensors="jax")


def test_a_function_that_lacks_an_argument_refuses():
    def norm(x, weight):
        return x

    backend = FunctionBackend(norm, "rms_norm")
    answer = backend.run("rms_norm", {"call": "rms_norm", "eps": 1.0}, {"x": f32(1), "weight": f32(1)}, {"y": f32(0)})
    assert answer == Skip("takes no argument 'eps'")
    assert backend.run("rms_norm", {"call": "rms_norm"}, {"x": f32(1), "weight": f32(1)}, {"y": f32(0)}) is None


torch = pytest.importorskip("torch")


def adapter():
    from walsh.suite.backends import torch as module

    return module


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int64, np.uint64, np.bool_]
)
def test_tensors_share_memory_and_strides(dtype):
    array = np.arange(12).reshape(2, 6).astype(dtype)[:, 1::2]
    tensor = adapter().to_torch(array, torch.device("cpu"))
    assert str(tensor.dtype) == f"torch.{array.dtype.name}"
    assert [n * array.itemsize for n in tensor.stride()] == list(array.strides)
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    back = adapter().to_numpy(tensor)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_a_torch_function_and_its_gradient():
    def fn(gate, up):
        return torch.nn.functional.silu(gate) * up

    backend = FunctionBackend(fn, "swiglu", tensors="torch")
    assert backend.describe()["calls"] == ["swiglu", "swiglu.backward"]
    gate, up, dh = f32(0.5, -1), f32(2, 3), f32(1, 10)
    out = {"dgate": f32(0, 0), "dup": f32(0, 0)}
    assert backend.run("swiglu", {"call": "swiglu.backward"}, {"gate": gate, "up": up, "dh": dh}, out) is None
    s = 1 / (1 + np.exp(-gate.astype(np.float64)))
    assert out["dup"].tolist() == pytest.approx((dh * gate * s).tolist(), rel=1e-6)
    assert out["dgate"].tolist() == pytest.approx((dh * up * (s + gate * s * (1 - s))).tolist(), rel=1e-6)


def test_a_torch_function_without_gradient_refuses_it():
    backend = FunctionBackend(lambda gate, up: (gate * up).detach(), "swiglu", tensors="torch", name="f")
    inputs = {"gate": f32(1), "up": f32(1), "dh": f32(1)}
    assert isinstance(backend.run("swiglu", {"call": "swiglu.backward"}, inputs, {"dup": f32(0)}), Skip)


def test_an_input_without_influence_has_gradient_zero():
    backend = FunctionBackend(lambda gate, up: gate * 2, "swiglu", tensors="torch", name="f")
    out = {"dgate": f32(9), "dup": f32(9)}
    inputs = {"gate": f32(1), "up": f32(1), "dh": f32(3)}
    backend.run("swiglu", {"call": "swiglu.backward"}, inputs, out)
    assert (out["dgate"].tolist(), out["dup"].tolist()) == ([6], [0])
    with pytest.raises(OutputMismatch, match="asked for"):
        backend.run("swiglu", {"call": "swiglu.backward"}, {"gate": f32(1), "dh": f32(1)}, out)


@pytest.fixture
def package(monkeypatch):
    """A package of two kernels, as another torch backend would be."""
    module = types.ModuleType("toy_torch_kernels")
    module.forward = lambda ids, weights, config: weights["a"][ids] * config["factor"]
    module.cross_entropy = lambda logits, targets: (logits.sum(-1) * targets).sum()
    monkeypatch.setitem(__import__("sys").modules, "toy_torch_kernels", module)
    return type("Toy", (adapter().TorchBackend,), {"name": "toy", "package": "toy_torch_kernels"})()


def test_loss_and_gradients_of_a_model(package):
    inputs = {
        "ids": np.array([1, 0]),
        "weights.a": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32),
        "weights.unused": f32(1),
        "targets": np.array([10, 1]),
    }
    out = {"loss": np.zeros((), np.float32), "dweights.a": np.ones((3, 2), np.float32), "dweights.unused": f32(9)}
    params = {"call": "forward.backward", "config": {"factor": 2.0}}
    assert package.run("forward", params, inputs, out) is None
    assert float(out["loss"]) == 2 * (10 * 7 + 1 * 3)
    assert out["dweights.a"].tolist() == [[2, 2], [20, 20], [0, 0]]
    assert out["dweights.unused"].tolist() == [0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there():
    for device in ("cuda", "nonsense"):
        with pytest.raises(BackendError, match="cannot be used here"):
            load_backend("torch", device=device)
