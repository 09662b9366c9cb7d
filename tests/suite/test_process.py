"""Backends behind pipes: right ones, and ones that die, hang, or talk nonsense."""

import os
import select
import shlex
import sys
import textwrap

import numpy as np
import pytest

from walsh.errors import BackendError, VectorError
from walsh.suite.backend import AdapterBroken, BackendDied
from walsh.suite.backends.process import ProcessBackend
from walsh.suite.protocol import decode_tensor, encode_params, encode_tensor
from walsh.suite.runner import Exit, run_backend
from walsh.suite.schema import check
from walsh.suite.vectors import load_suite

# A backend in thirty lines without any of our code: what INTERPRETING.md promises is enough.
STRANGER = """
import base64, json, os, signal, struct, sys, time

def answer(request):
    x = request["inputs"]["x"]
    if x["shape"][-1] != 2:
        return {"error": {"class": "ShapeError", "message": "expected 2"}}
    code = "f" if x["dtype"] == "float32" else "i"
    data = base64.b64decode(x["base64"])
    values = struct.unpack(f"<{len(data) // 4}{code}", data)
    pairs = zip(values[::2], values[1::2])
    result = [number for a, b in pairs for number in (a + b, a - b)]
    return {"outputs": {"y": {**x, "base64": base64.b64encode(struct.pack(f"<{len(result)}{code}", *result)).decode()}}}

for line in sys.stdin:
    request = json.loads(line)
    if request["message"] == "describe":
        reply = {"description": {"name": "stranger", "version": "1"}}
    elif request["message"] == "close":
        break
    else:
        first = base64.b64decode(request["inputs"]["x"]["base64"])[:4] == b"\\1\\0\\0\\0"
        number = len(request["inputs"]["x"]["base64"])
        MISBEHAVE
        reply = {"id": request["id"], **answer(request)}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def stranger(tmp_path):
    made = []

    def make(misbehave="pass", timeout=20.0):
        path = tmp_path / f"stranger{len(made)}.py"
        path.write_text(STRANGER.replace("MISBEHAVE", misbehave))
        made.append(ProcessBackend(shlex.join([sys.executable, str(path)]), timeout))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def cases(small):
    return load_suite(small, min_cases=1).cases


def outcomes(found):
    return [outcome.outcome for outcome in found.outcomes]


def test_a_program_that_knows_nothing_of_us(stranger, cases, toys):
    found = run_backend(stranger(), cases, toys.policy)
    assert [(o.outcome, o.message) for o in found.outcomes] == [("pass", "")] * 4
    assert found.name == "stranger"


# int32 data of the third case begin with the bytes of 2; the float32 cases never do.
THIRD = 'struct.unpack("<i", base64.b64decode(request["inputs"]["x"]["base64"])[:4])[0] == 2'


def test_a_killed_process_is_an_error_and_the_next_case_runs(stranger, cases, toys):
    found = run_backend(stranger(f"{THIRD} and os.kill(os.getpid(), signal.SIGKILL)"), cases, toys.policy)
    assert outcomes(found) == ["pass", "pass", "error", "pass"]
    assert "killed by signal 9" in found.outcomes[2].message


def test_last_words_are_quoted(stranger, cases, toys):
    found = run_backend(stranger(f"{THIRD} and sys.exit('out of luck')"), cases, toys.policy)
    assert "exit code 1: out of luck" in found.outcomes[2].message


def test_a_hanging_process_is_cut_off(stranger, cases, toys):
    # Long enough for a loaded machine to start Python in; what hangs would sleep for eleven days.
    found = run_backend(stranger(f"{THIRD} and time.sleep(10**6)", timeout=5.0), cases, toys.policy)
    assert outcomes(found) == ["pass", "pass", "error", "pass"]
    assert "no reply within 5 s" in found.outcomes[2].message


@pytest.mark.parametrize(
    "nonsense",
    [
        "print('hello')",
        "print('{}')",
        "print(json.dumps({'id': request['id']}))",
        "print(json.dumps({'id': request['id'] + 1, 'outputs': {}}))",
        "print(json.dumps({'id': request['id'], 'outputs': {'y': {'dtype': 'float32', 'shape': [1], 'hex': '00'}}}))",
        "print(json.dumps({'id': request['id'], 'skip': {'reason': 'x', 'why': 'y'}}))",
    ],
)
def test_nonsense_breaks_the_adapter(stranger, cases, toys, nonsense):
    found = run_backend(stranger(nonsense), cases, toys.policy)
    assert found.exit_code == Exit.BROKEN


def test_after_three_deaths_the_adapter_is_broken(stranger, cases, toys):
    without_smoke = [case for case in cases if "smoke" not in case.flags] * 2
    found = run_backend(stranger("sys.exit(1)"), without_smoke, toys.policy)
    assert found.exit_code == Exit.BROKEN
    assert "died 3 times" in found.broken


def test_wrong_outputs_are_failures(stranger, cases, toys):
    y = {"dtype": "int8", "shape": [0], "hex": ""}
    reply = f"print(json.dumps({{'id': request['id'], 'outputs': {{'y': {y}}}}})); continue"
    found = run_backend(stranger(reply), cases[:2], toys.policy)
    assert outcomes(found) == ["fail", "fail"]
    assert "expected float32[3,2]" in found.outcomes[0].message


def test_no_description(stranger):
    backend = ProcessBackend(f"{shlex.quote(sys.executable)} -c pass")
    with pytest.raises(AdapterBroken, match="no description"):
        backend.describe()
    backend.close()


def test_no_program():
    with pytest.raises(BackendError, match="cmd"):
        ProcessBackend("")
    backend = ProcessBackend("/no/such/program")
    with pytest.raises(BackendError, match="cannot start"):
        backend.describe()
    backend.close()


def test_children_die_with_their_parent(tmp_path, stranger, cases, toys):
    # The child holds the only writing end of a named pipe: once it is gone, whoever killed it, reading meets the end.
    fifo = str(tmp_path / "held")
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        child = f"import time; held = open({fifo!r}, 'w'); print('up', flush=True); time.sleep(10**6)"
        arguments = f"[sys.executable, '-c', {child!r}]"
        start = f"up = __import__('subprocess').Popen({arguments}, stdout=-1).stdout.readline()"
        found = run_backend(stranger(f"{start}; print('nonsense ' + repr(up))"), cases[1:2], toys.policy)
        assert "nonsense b'up" in found.broken
        assert select.select([reading], [], [], 60)[0], "the child lives on"
        assert os.read(reading, 1) == b""
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("os.close(0); sys.exit(7)", "ended with exit code 7"),
        ("os.close(1); sys.exit(7)", "ended with exit code 7"),
        ("os.close(0); time.sleep(10**6)", "closed its input"),
        ("os.close(1); time.sleep(10**6)", "closed its output"),
    ],
)
def test_an_end_is_told_alike_whichever_pipe_noticed_it(tmp_path, before, message):
    # The request is larger than a pipe holds, so that writing meets a closed input however fast we are.
    large = {"x": np.zeros(1 << 20, np.int8)} if "close(0)" in before else {}
    path = tmp_path / "ends.py"
    path.write_text(f"import os, sys, time\n{before}\n")
    backend = ProcessBackend(shlex.join([sys.executable, str(path)]), 60.0)
    with pytest.raises(BackendDied, match=message):
        backend.run("rms_norm", {}, large, {})
    backend.close()


def test_a_large_message_does_not_jam_the_pipes(stranger, toys, tmp_path):
    test = toys.exact_test(1)
    recipe = {"mul": 3, "add": 0, "mod": 1000, "sub": 500, "shift": 0}
    shape = [100_000, 2]
    test["inputs"]["x"] = {"dtype": "float32", "shape": shape, "paint": recipe}
    test["outputs"]["y"]["shape"] = shape
    from walsh.suite.tensors import digest, paint

    y = toys.butterfly(paint(recipe, "float32", tuple(shape)))
    test["result"] = {"y": {"dtype": "float32", "shape": shape, "digest": digest(y), "compare": {"rule": "bits"}}}
    found = run_backend(stranger(), load_suite(toys.write_suite(tmp_path, [toys.group([test])]), 1).cases, toys.policy)
    assert outcomes(found) == ["pass"]


SERVED = """
import numpy as np
from walsh.errors import ShapeError
print("a banner that a library prints on import")

class Served:
    def describe(self):
        return {"name": "served", "version": "1"}

    def run(self, op, params, inputs, out):
        x = inputs["x"]
        print("chatter")
        if x.shape[-1] != 2:
            HASTE
            raise ShapeError("expected 2")
        out["y"][..., 0], out["y"][..., 1] = x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]
        LATE

    def close(self):
        pass
"""


@pytest.mark.parametrize(
    ("haste", "late", "expected"),
    [
        ("pass", "pass", ["pass"] * 4),
        ("out['y'].fill(0)", "pass", ["pass"] * 3 + ["fail"]),
        ("pass", "inputs['x'].fill(0)", ["fail"] * 3 + ["pass"]),
        ("pass", "import os; inputs['x'].size and os._exit(3)", []),
    ],
)
def test_a_python_backend_behind_a_pipe(tmp_path, cases, toys, monkeypatch, haste, late, expected):
    (tmp_path / "served_module.py").write_text(textwrap.dedent(SERVED).replace("HASTE", haste).replace("LATE", late))
    monkeypatch.chdir(tmp_path)
    backend = ProcessBackend(f"{shlex.quote(sys.executable)} -m walsh.suite.serve served_module:Served")
    try:
        found = run_backend(backend, cases, toys.policy)
    finally:
        backend.close()
    if expected:
        assert outcomes(found) == expected
    else:
        assert found.exit_code == Exit.BROKEN


def test_protocol_tensors_round_trip():
    array = np.array([[1.5, -0.0]], dtype=np.float16)
    spec = encode_tensor(array)
    assert decode_tensor(spec).tobytes() == array.tobytes()
    assert decode_tensor({"dtype": "float16", "shape": [1, 2], "hex": "003e0080"}).tobytes() == array.tobytes()
    with pytest.raises(VectorError, match="base64"):
        decode_tensor({**spec, "base64": "?"})


def test_protocol_params():
    assert encode_params({"a": float("nan"), "b": float("-inf"), "c": 1.5}) == {"a": "nan", "b": "-inf", "c": 1.5}


@pytest.mark.parametrize(
    "message",
    [
        {"message": "describe", "protocol": 1, "extra": 1},
        {"message": "run", "id": 1},
        {"id": 1, "outputs": {}, "expected": {}},
        {"id": 1, "error": {"class": "ShapeError"}},
        {"id": 1, "outputs": {"y": {"dtype": "float8", "shape": [], "hex": ""}}},
    ],
)
def test_the_message_schema_forbids(message):
    with pytest.raises(VectorError):
        check("message", message, "here")
