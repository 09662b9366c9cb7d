"""Configurations measured on real hardware: ``configs.json``, written by :mod:`walsh.kernels.triton.tune`.

``{device name: {key: {bm, bn, bk, warps, stages}}}``; the key names the kernel and all of M, N, K, D and dtype. Where
the table has nothing for a device or a shape, the kernels choose by shape with rules that were *not* measured.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch

PATH = Path(__file__).with_name("configs.json")


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, dict[str, int]]]:
    """The measured configurations by device name."""
    devices: dict[str, dict[str, dict[str, int]]] = json.loads(PATH.read_text())["devices"]
    return devices


def key(kernel: str, rows: int, cols: int, reds: int, d: int, dtype: torch.dtype) -> str:
    """The name of one shape; rows are rounded up to a power of two, since batch sizes vary from call to call."""
    bucket = 1 << max(0, rows - 1).bit_length()
    return f"{kernel}/M{bucket}/N{cols}/K{reds}/D{d}/{str(dtype).removeprefix('torch.')}"


def lookup(device: torch.device, *shape: object) -> dict[str, int] | None:
    """The configuration measured on this device for this shape (the arguments of :func:`key`), if there is one."""
    if device.type != "cuda":
        return None
    found = table().get(torch.cuda.get_device_name(device))
    return None if found is None else found.get(key(*shape))  # type: ignore[arg-type]  # forwarded as they came
