"""Ternary hyper-complex language-model kernels: definitions, implementations, proof and measurement.

walsh.load("model.walsh").generate("Once upon a time")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from walsh.model.loaded import load, load_walsh

__all__ = ["__version__", "load", "load_walsh"]


def __getattr__(name: str) -> Any:
    """``load`` and ``load_walsh``, imported when they are asked for: ``import walsh`` stays light."""
    if name in ("load", "load_walsh"):
        return getattr(importlib.import_module("walsh.model.loaded"), name)
    raise AttributeError(f"module 'walsh' has no attribute {name!r}")
