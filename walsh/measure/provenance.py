"""Where a figure comes from: the facts that go into every row."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from walsh import __version__
from walsh.suite.report import find_commit

PACKAGES = ("numpy", "torch", "triton", "wasmtime", "safetensors", "zstandard", "liger-kernel", "cut-cross-entropy",
            "fast-hadamard-transform", "hadamard-transform", "llama-cpp-python",
            "gguf")  # fmt: skip  # one list, not a column
"""What can compute or be compared with."""


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def utc_now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _affinity() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def gather(device: str, seed: int) -> dict[str, Any]:
    """Commit, versions, machine, threads and seed of this process.

    Args:
        device: ``cpu`` or ``cuda``.
        seed: of the run.
    """
    import torch  # here, because reports are read without it

    commit = find_commit()
    return {
        "walsh": __version__,
        "commit": commit.rstrip("+") if commit else None,
        "dirty": commit.endswith("+") if commit else None,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name)) is not None},
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        "cores": os.cpu_count(),
        "affinity": _affinity(),
        "torch_threads": torch.get_num_threads(),
        "thread_settings": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ
        },
        "seed": seed,
    }


def machine_name(provenance: dict[str, Any]) -> str:
    """What compares with what: processor or GPU, and threads."""
    if provenance["gpu"]:
        return str(provenance["gpu"])
    return f"{provenance['cpu']}, {provenance['torch_threads']} of {provenance['cores']} cores"
