"""One clock reading: how long did this call take, cold, on this device?

On a CPU: caches are flushed by *reading* a buffer of twice the last level (so that no dirty lines are left to be
written back during the call), then the monotonic clock brackets the call. On a GPU: the L2 is overwritten, and device
events bracket the replay of a CUDA graph, or the plain call where it cannot be captured.

The clock is bound at import: a provider that patches the ``time`` module changes nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

import torch
from torch import Tensor

from walsh.measure.case import Inputs, Run

_CLOCK = perf_counter_ns


def last_level_cache() -> int:
    """Bytes of the largest cache of core 0; 32 MiB where the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text("ascii").strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes)


class Clock(Protocol):
    """Times single calls."""

    device: str
    graphs: bool

    def measure(self, run: Run, inputs: Inputs, warm: bool) -> tuple[float, Any]:
        """Seconds of ``run(inputs)`` and what it returned."""


class CpuClock:
    """The monotonic clock, on flushed caches."""

    device = "cpu"
    graphs = False

    def __init__(self, flush_bytes: int | None = None) -> None:
        size = 2 * last_level_cache() if flush_bytes is None else flush_bytes
        self._buffer = torch.ones(max(size // 4, 1), dtype=torch.float32)

    def measure(self, run: Run, inputs: Inputs, warm: bool) -> tuple[float, Any]:
        """Seconds of one call and its output."""
        if not warm:
            self._buffer.sum()
        start = _CLOCK()
        output = run(inputs)
        return (_CLOCK() - start) * 1e-9, output


class CudaClock:
    """Device events around a graph replay; each provider is captured once, on buffers that fresh values are copied to.

    A provider whose capture fails (it synchronises, or moves data to the host) is timed as a plain call; :attr:`graphs`
    tells which of the two the last measurement was.
    """

    device = "cuda"

    def __init__(self) -> None:
        self.graphs = True
        self._buffer = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
        self._captured: dict[int, tuple[Run, torch.cuda.CUDAGraph | None, dict[str, Any], Any]] = {}

    def _capture(self, run: Run, inputs: Inputs) -> tuple[Run, torch.cuda.CUDAGraph | None, dict[str, Any], Any]:
        key = id(run)
        # The function is kept beside its graph, so that its id is not given to another one.
        if key not in self._captured:
            static = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
            run(static)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    output = run(static)
                self._captured[key] = (run, graph, static, output)
            except RuntimeError:
                torch.cuda.synchronize()
                self._captured[key] = (run, None, static, None)
        return self._captured[key]

    def forget(self) -> None:
        """Let go of all graphs; after each case."""
        self._captured.clear()

    def measure(self, run: Run, inputs: Inputs, warm: bool) -> tuple[float, Any]:
        """Seconds of one replay (or call) and its output."""
        _, graph, static, output = self._capture(run, inputs)
        _refill(static, inputs)
        if not warm:
            self._buffer.zero_()
        event: Any = torch.cuda.Event  # untyped in PyTorch
        start, stop = event(enable_timing=True), event(enable_timing=True)
        start.record()
        if graph is None:
            output = run(static)
        else:
            graph.replay()
        stop.record()
        stop.synchronize()
        self.graphs = graph is not None
        return float(start.elapsed_time(stop)) * 1e-3, output


def _refill(static: Mapping[str, Any], inputs: Inputs) -> None:
    """Copy fresh values to where a graph reads them."""
    for name, value in static.items():
        if isinstance(value, Tensor):
            with torch.no_grad():
                value.copy_(inputs[name])


def make_clock(device: str) -> CpuClock | CudaClock:
    """The clock of a device."""
    return CudaClock() if device == "cuda" else CpuClock()


def load_average() -> float | None:
    """Runnable processes, averaged over a minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
