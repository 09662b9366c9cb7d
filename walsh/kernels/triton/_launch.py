# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Where a kernel runs, and how it is launched: one door for every Triton program of this package.

Three machines are possible: a GPU (kernels compiled for it), the CPU through Triton's interpreter (environment variable
``TRITON_INTERPRET=1``, set before Triton is imported), and no machine at all, when launches are only *recorded* so that
:mod:`walsh.kernels.triton.compile` can compile them ahead of time. Anything else is a ``BackendError``; no launch is
ever handed to another backend.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from walsh.errors import BackendError

if importlib.util.find_spec("triton") is None:
    raise BackendError(
        "backend 'triton': the package triton is not installed; expected triton >= 3.6; "
        "install walsh[triton] (Linux), or choose the backend 'torch'"
    )

import triton

from walsh.kernels.triton._interpreter import replace_language_once

INTERPRET: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter: decided once, when they are decorated."""

if INTERPRET:
    replace_language_once()

_TYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """What determines the machine code of one launch.

    Attributes:
        kernel: the decorated function.
        signature: Triton's type of every argument by name, ``constexpr`` for constants.
        constants: values of the constants.
        attributes: Triton's divisibility hints by argument position.
        options: ``num_warps``, ``num_stages`` and ``enable_fp_fusion``.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, Any]

    def key(self) -> str:
        """One string per distinct machine code."""
        return repr((self.kernel.__name__, self.signature, self.constants, self.attributes, self.options))


@dataclass
class _State:
    """Launches seen by the context managers below."""

    counters: list[list[str]] = field(default_factory=list)
    recorders: list[dict[str, Launch]] = field(default_factory=list)


_STATE = _State()


@contextlib.contextmanager
def count_launches() -> Iterator[list[str]]:
    """Collect the names of the kernels launched inside the ``with`` block."""
    names: list[str] = []
    _STATE.counters.append(names)
    try:
        yield names
    finally:
        _STATE.counters.remove(names)


@contextlib.contextmanager
def record_launches() -> Iterator[dict[str, Launch]]:
    """Run nothing; collect each distinct launch by its key. Tensors may be on the device ``meta``."""
    launches: dict[str, Launch] = {}
    _STATE.recorders.append(launches)
    try:
        yield launches
    finally:
        _STATE.recorders.pop()


def recording() -> bool:
    """Whether launches are being recorded instead of run."""
    return bool(_STATE.recorders)


def interpreting() -> bool:
    """Whether block sizes should suit the interpreter: few programs, each as large as the data."""
    return INTERPRET and not recording()


def require_device(*tensors: torch.Tensor | None) -> torch.device:
    """The device of all these tensors, if kernels can run there.

    Raises:
        BackendError: for tensors on different devices, for CPU tensors without the interpreter, for other devices.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        raise BackendError(
            f"backend 'triton': tensors on {sorted(map(str, devices))}; expected one device; move them together"
        )
    (device,) = devices
    if device.type == "meta" or recording():
        return device
    if device.type == "cpu" and not INTERPRET:
        raise BackendError(
            "backend 'triton': the tensors are on the CPU, where compiled Triton kernels cannot run; expected a GPU; "
            "move the tensors to 'cuda', or set TRITON_INTERPRET=1 before Python starts, or choose the backend 'torch'"
        )
    if device.type not in {"cpu", "cuda"}:
        raise BackendError(f"backend 'triton': device {device}; expected 'cuda', or 'cpu' with TRITON_INTERPRET=1")
    return device


def synchronous(*tensors: torch.Tensor) -> bool:
    """Whether values may be read back to the host: not on ``meta``, in a traced graph or in a CUDA graph capture."""
    if recording() or torch.compiler.is_compiling() or any(tensor.device.type == "meta" for tensor in tensors):
        return False
    on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
    return not (on_gpu and torch.cuda.is_current_stream_capturing())


def _describe(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]) -> Launch:
    """The launch as Triton's own dispatcher would specialise it: ones are constants, multiples of 16 are known."""
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for position, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPE_NAMES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif value is None or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    for name, value in constants.items():
        signature[name], fixed[name] = "constexpr", value
    ordered = {name: signature[name] for name in kernel.arg_names}
    return Launch(kernel, ordered, fixed, attributes, options)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    warps: int = 4,
    stages: int = 2,
    fusion: bool = True,
    **constants: Any,
) -> None:
    """Launch a kernel, or record it; an empty grid launches nothing.

    Args:
        kernel: function decorated with ``triton.jit``.
        grid: number of programs along one to three axes.
        args: tensors, integers and floats in the kernel's order. None for an absent tensor.
        warps: warps per program.
        stages: depth of the software pipeline.
        fusion: whether a product and a sum may fuse into one rounding; never for strict or quantising kernels.
        constants: compile-time arguments by name.
    """
    if 0 in grid:
        return
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": fusion}
    if _STATE.recorders:
        described = _describe(kernel, args, constants, options)
        _STATE.recorders[-1].setdefault(described.key(), described)
        return
    for names in _STATE.counters:
        names.append(kernel.__name__)
    if not INTERPRET:
        kernel[grid](*args, **constants, **options)
        return
    # NumPy under the interpreter warns where a GPU is silent: overflow to infinity and arithmetic on NaN are values
    # here.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        # The interpreter of Triton 3.6 takes numbers from arrays of one element, which NumPy 2.4 no longer allows.
        warnings.simplefilter("ignore", DeprecationWarning)
        kernel[grid](*args, **constants, **options)


def cdiv(a: int, b: int) -> int:
    """ceil(a / b) for positive b."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def flat_block(count: int) -> int:
    """Elements per program of an elementwise kernel."""
    return min(next_power_of_two(count), 1 << 16) if interpreting() else 1024


def processors(device: torch.device) -> int:
    """Multiprocessors to keep busy: those of the device, 132 (an H100 or H200) when only recording."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 1 if interpreting() else 132


Kernel = Callable[..., Any]
