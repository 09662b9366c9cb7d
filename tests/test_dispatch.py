import subprocess
import sys

import numpy as np
import pytest

from walsh import kernels, reference
from walsh.errors import BackendError, DTypeError
from walsh.kernels.dispatch import choose_backend

torch = pytest.importorskip("torch")


def run(code, **env):
    """Run code in a fresh interpreter without TRITON_INTERPRET."""
    import os

    clean = {key: value for key, value in os.environ.items() if key not in {"TRITON_INTERPRET", "WALSH_BACKEND"}}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | env)


def test_backend_follows_the_tensors():
    assert choose_backend((np.ones(2),)) == "reference"
    assert choose_backend(([torch.ones(2)], {"w": torch.ones(1)})) == "torch"


def test_argument_beats_environment(monkeypatch):
    monkeypatch.setenv("WALSH_BACKEND", "triton")
    assert choose_backend((torch.ones(2),)) == "triton"
    assert choose_backend((torch.ones(2),), "torch") == "torch"


@pytest.mark.parametrize("source", ["argument", "environment"])
def test_unknown_backend(monkeypatch, source):
    monkeypatch.setenv("WALSH_BACKEND", "cuda" if source == "environment" else "torch")
    with pytest.raises(BackendError, match="'cuda': expected one of reference, torch, triton"):
        choose_backend((torch.ones(2),), "cuda" if source == "argument" else None)


def test_same_numbers_by_array_and_by_tensor():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    expected = reference.hadamard_transform(x).tolist()
    assert kernels.hadamard_transform(x).tolist() == expected
    assert kernels.hadamard_transform(torch.from_numpy(x)).tolist() == expected
    strict = kernels.strict.hadamard_transform(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert strict.tolist() == expected


def test_arrays_and_tensors_of_one_call_are_told_apart():
    x, w = np.ones((2, 16), np.float32), torch.ones(8, 2, 2)
    with pytest.raises(DTypeError, match=r"the first float32\[2, 16\]: expected one kind"):
        kernels.cayley_dickson_linear(x, w)
    logits = torch.zeros(2, 4)
    assert kernels.sample(logits, temperature=0.0, seed=np.int64(3), position=np.array([1, 2])).tolist() == [0, 0]


def test_unknown_operation():
    with pytest.raises(AttributeError, match="no operation 'octonionize'"):
        kernels.octonionize(torch.ones(1))


TRITON = """
import torch, walsh.kernels as k
try: k.hadamard_transform(torch.ones(4)%s)
except Exception as e: print(type(e).__name__, e)
"""


def test_triton_on_cpu_without_the_interpreter_says_why():
    pytest.importorskip("triton")
    for result in (run(TRITON % ", backend='triton'"), run(TRITON % "", WALSH_BACKEND="triton")):
        assert result.stdout.startswith("BackendError"), result.stderr
        assert "TRITON_INTERPRET=1" in result.stdout
        assert "'cuda'" in result.stdout


def test_triton_that_is_not_installed_says_so():
    hide = "import sys; sys.modules['triton'] = None\nimport importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda n, *a: None if n == 'triton' else f(n, *a)\n"
    result = run(hide + TRITON % ", backend='triton'")
    assert result.stdout.startswith("BackendError"), result.stderr
    assert "install walsh[triton]" in result.stdout


def test_a_gpu_run_without_a_gpu_ends_in_one_line():
    import os
    from pathlib import Path

    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "bench.gpu"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert result.returncode == 4, result.stderr
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "gpu: this machine has no GPU that PyTorch can use; `nox -s triton` needs none"
    ]
