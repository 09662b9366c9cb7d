"""Registration with ``torch.library``: a function of tensors becomes ``torch.ops.walsh_torch.NAME``.

To ``torch.compile`` and ``torch.export`` a registered operation is one node of the graph, whose shapes its fake
implementation tells; its gradient is registered as a second one. ``torch.library.custom_op`` would do the same, but
imports the compiler at the first ordinary call, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "walsh_torch"


def operation(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register a function that neither changes nor returns its arguments' memory.

    Args:
        name: without namespace.
        implementation: annotated with the types that ``torch.library.infer_schema`` knows.
        fake: from the same arguments to empty tensors of the right shapes and dtypes.

    Returns:
        The operation, called like the function.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, torch.library.infer_schema(implementation, mutates_args=()))
    torch.library.impl(qualified, "default", implementation)
    torch.library.register_fake(qualified, fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def differentiate(name: str, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Give an operation its gradient: ``setup(ctx, inputs, output)`` saves, ``backward(ctx, *grads)`` returns it."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup)
