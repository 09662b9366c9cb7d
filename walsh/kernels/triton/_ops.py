"""Every operation of this package, registered as ``torch.ops.walsh_triton.NAME``.

Under :func:`walsh.kernels.triton._launch.record_launches` the Python function is called directly, since there is
nothing to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from walsh.kernels._operation import Operation
from walsh.kernels.triton import _launch


class Launched(Operation):
    """An operation that launches kernels, or has its launches recorded."""

    def __call__(self, *args: Any) -> Any:
        """Run it through PyTorch's dispatcher, unless launches are only recorded."""
        return self.implementation(*args) if _launch.recording() else super().__call__(*args)


REGISTERED: dict[str, Launched] = {}
"""Every operation of the package by its name, once its module is imported."""


def operation(
    name: str, fake: Callable[..., Any], mutates: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Launched]:
    """Decorator: register the function under this name with this fake implementation."""

    def register(implementation: Callable[..., Any]) -> Launched:
        REGISTERED[name] = Launched("walsh_triton", name, implementation, fake, mutates)
        return REGISTERED[name]

    return register
