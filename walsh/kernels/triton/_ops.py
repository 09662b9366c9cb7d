"""Registration with ``torch.library``: every operation becomes ``torch.ops.walsh_triton.NAME``.

A registered operation has a fake implementation (shapes only), so that ``torch.compile`` and ``torch.export`` trace
it, and its gradient is registered as a second operation, so that the backward graph is traced too. Under
:func:`walsh.kernels.triton._launch.record_launches` the Python function is called directly, since there is nothing to
run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from walsh.kernels.triton import _launch

NAMESPACE = "walsh_triton"


class Operation:
    """A function of tensors that PyTorch knows by name.

    Attributes:
        name: without namespace.
        implementation: the Python function that launches kernels.
        mutates: names of the arguments that it writes to.
    """

    def __init__(
        self, name: str, implementation: Callable[..., Any], fake: Callable[..., Any], mutates: tuple[str, ...]
    ) -> None:
        self.name = name
        self.implementation = implementation
        self.mutates = mutates
        self.operation: Any = torch.library.custom_op(f"{NAMESPACE}::{name}", implementation, mutates_args=mutates)
        self.operation.register_fake(fake)

    def differentiate(self, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
        """Register the gradient: ``setup(ctx, inputs, output)`` saves, ``backward(ctx, *grads)`` returns gradients."""
        self.operation.register_autograd(backward, setup_context=setup)

    def __call__(self, *args: Any) -> Any:
        """Run the operation, through PyTorch's dispatcher unless launches are only recorded."""
        return self.implementation(*args) if _launch.recording() else self.operation(*args)


REGISTERED: dict[str, Operation] = {}
"""Every operation of the package by its name, once its module is imported."""


def operation(
    name: str, fake: Callable[..., Any], mutates: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Operation]:
    """Decorator: register the function under this name with this fake implementation."""

    def register(implementation: Callable[..., Any]) -> Operation:
        REGISTERED[name] = Operation(name, implementation, fake, mutates)
        return REGISTERED[name]

    return register
