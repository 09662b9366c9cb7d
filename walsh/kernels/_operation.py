"""Registration with ``torch.library``: a function of tensors becomes ``torch.ops.NAMESPACE.NAME``.

To ``torch.compile`` and ``torch.export`` a registered operation is one node of the graph, whose shapes its fake
implementation tells; its gradient is registered as a second operation, so that the backward graph is traced too.
``torch.library.custom_op`` would do the same, but imports the compiler at the first ordinary call, which takes seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {}
"""The function behind each overload, for those who must see what an operation does inside."""


class Operation:
    """A function of tensors that PyTorch knows by name, called like the function.

    Attributes:
        name: with its namespace.
        implementation: annotated with the types that ``infer_schema`` of ``torch.library`` knows; returns new memory.
        overload: what PyTorch's dispatcher calls.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        implementation: Callable[..., Any],
        fake: Callable[..., Any],
        mutates: tuple[str, ...] = (),
    ) -> None:
        """Register a function.

        Args:
            namespace, name: what PyTorch shall know it by.
            implementation: as above.
            fake: from the same arguments to empty tensors of the right shapes and dtypes.
            mutates: names of the arguments that it writes to.
        """
        self.name, self.implementation = f"{namespace}::{name}", implementation
        self._backward: Callable[..., Any] | None = None
        self._setup: Callable[..., None] | None = None
        schema = torch.library.infer_schema(implementation, mutates_args=mutates)
        torch.library.define(self.name, schema)
        torch.library.impl(self.name, "default", _announcing(implementation, mutates) if mutates else implementation)
        torch.library.register_fake(self.name, fake)
        if not mutates:
            torch.library.register_autograd(self.name, self._differentiate, setup_context=self._keep)
        self.overload: Any = getattr(getattr(torch.ops, namespace), name).default
        IMPLEMENTATIONS[self.overload] = implementation

    @property
    def differentiable(self) -> bool:
        """Whether a gradient was registered."""
        return self._backward is not None

    def differentiate(self, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
        """Register the gradient: ``setup(ctx, inputs, output)`` saves, ``backward(ctx, *grads)`` returns gradients."""
        self._backward, self._setup = backward, setup

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if self._setup is not None:
            self._setup(ctx, inputs, output)

    def _differentiate(self, ctx: Any, *grads: Any) -> Any:
        if self._backward is None:
            raise RuntimeError(f"{self.name} has no gradient; expected inputs without requires_grad: detach them")
        return self._backward(ctx, *grads)

    def __call__(self, *args: Any) -> Any:
        """Run the operation through PyTorch's dispatcher."""
        return self.overload(*args)


def _announcing(implementation: Callable[..., Any], mutates: tuple[str, ...]) -> Callable[..., Any]:
    """The same function, which also tells autograd that it wrote to these arguments."""
    places = [place for place, name in enumerate(inspect.signature(implementation).parameters) if name in mutates]

    def run(*args: Any) -> Any:
        result = implementation(*args)
        for tensor in (args[place] for place in places):
            if tensor is not None and not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
        return result

    return run
