"""Ternary hyper-complex language-model kernels: definitions, implementations, proof and measurement.

walsh.load("model.walsh").generate("Once upon a time")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from walsh.model.loaded import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """``load``, imported when it is asked for: ``import walsh`` stays light."""
    if name == "load":
        return importlib.import_module("walsh.model.loaded").load
    raise AttributeError(f"module 'walsh' has no attribute {name!r}")
