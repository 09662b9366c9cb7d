"""What this machine can do at most, measured in the same run as everything that is compared with it.

    limit(work) = max(bytes / bandwidth,  flops / peak,  launches * launch floor)

- bandwidth: copying (one read, one write) and summing (one read) a working set of each size, under the same cache
  flush as the cases; the larger of the two. A case is held to the rate of the next larger working set.
- peak: the fastest square GEMM of each dtype; for ``wasm`` a loop of ``i32x4.dot_i16x8_s`` under wasmtime.
- launch floor: the shortest call that does anything.

Each is the *best* that was seen, before, between and after the cases, while a case reports its median: a case above
its limit is therefore an error of the measurement, and fails the run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from walsh.measure.machine import Limits
from walsh.measure.timing import CpuClock, CudaClock

WORKING_SETS = tuple(1 << power for power in (16, 18, 20, 22, 24, 26, 28))
"""Bytes of copies, both sides together."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "float64": torch.float64}


def _best(clock: CpuClock | CudaClock, run: Callable[[Any], Any], repeats: int, warm: bool) -> float:
    return min(clock.measure(run, {}, warm)[0] for _ in range(repeats + 1))


def _bandwidth(clock: CpuClock | CudaClock, size: int, repeats: int) -> float:
    source = torch.ones(size // 8, dtype=torch.float32, device=clock.device)
    target = torch.zeros_like(source)
    whole = torch.ones(size // 4, dtype=torch.float32, device=clock.device)
    copied = _best(clock, lambda _: target.copy_(source), repeats, warm=False)
    summed = _best(clock, lambda _: whole.sum(), repeats, warm=False)
    return size / min(copied, summed)


def _gemm(clock: CpuClock | CudaClock, name: str, size: int, repeats: int) -> float:
    dtype = _DTYPES[name]
    if dtype == torch.int8:
        a = torch.randint(-127, 128, (size, size), dtype=dtype, device=clock.device)
        b = a.clone().t()
        seconds = _best(clock, lambda _: torch._int_mm(a, b), repeats, warm=True)
    else:
        x = torch.randn(size, size, device=clock.device).to(dtype)
        out = torch.empty_like(x)
        seconds = _best(clock, lambda _: torch.mm(x, x.t(), out=out), repeats, warm=True)
    return 2 * size**3 / seconds


def measure_limits(clock: CpuClock | CudaClock, quick: bool = False, repeats: int = 7) -> Limits:
    """Measure the machine.

    Args:
        clock: of the device.
        quick: fewer sizes.
        repeats: of each; the best counts.
    """
    limits = Limits()
    for size in WORKING_SETS[:-1] if quick else WORKING_SETS:
        limits.bandwidth[size] = _bandwidth(clock, size, repeats)
    sizes = (1024,) if quick else (1024, 2048)
    if clock.device == "cuda":
        sizes = (4096, 8192)
    for name in _DTYPES if clock.device == "cuda" or not quick else ("float32", "bfloat16", "int8"):
        try:
            limits.peak[name] = max(_gemm(clock, name, size, repeats) for size in sizes)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            limits.missing[name] = str(error).splitlines()[0]
    one = torch.ones(1, device=clock.device)
    limits.launch = _best(clock, lambda _: one.add_(0), 20 * repeats, warm=True)
    if clock.device == "cpu":
        _add_wasm(limits)
    return limits


_WASM_LOOP = """
(module (memory 1) (func (export "dot") (param $n i32) (result i32)
  (local $p i32) (local $a v128) (local $s v128) (local $t v128) (local $u v128) (local $v v128)
  (local.set $a (i16x8.splat (local.get $n)))
  (loop $again
    (local.set $p (i32.shl (i32.and (local.get $n) (i32.const 15)) (i32.const 4)))
    {body}
    (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
  (i32x4.extract_lane 0
    (i32x4.add (i32x4.add (local.get $s) (local.get $t)) (i32x4.add (local.get $u) (local.get $v))))))
"""
_WASM_DOTS = 32
"""In the body of the loop, on four accumulators."""


def _add_wasm(limits: Limits) -> None:
    """The rate of 16-bit dot products in Wasm, from a module of nothing else."""
    if importlib.util.find_spec("wasmtime") is None:
        limits.missing["wasm"] = "the package wasmtime is not installed"
        return
    import wasmtime  # here, because it is optional

    # One operand is loaded from another place each time: equal products would be computed once by any compiler.
    one = (
        "(local.set ${0} (i32x4.add (local.get ${0}) "
        "(i32x4.dot_i16x8_s (v128.load offset={1} (local.get $p)) (local.get $a))))"
    )
    body = "\n    ".join(one.format("stuv"[i % 4], 16 * i) for i in range(_WASM_DOTS))
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, _WASM_LOOP.replace("{body}", body))
    dot = wasmtime.Instance(store, module, []).exports(store)["dot"]
    assert isinstance(dot, wasmtime.Func)
    clock, turns = CpuClock(flush_bytes=4), 200_000
    seconds = _best(clock, lambda _: dot(store, turns), 5, warm=True)
    limits.peak["wasm"] = 2 * 8 * _WASM_DOTS * turns / seconds
