"""Under the compiler: layers pass PyTorch's own examination of operations, and a block is one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from torch import Tensor

from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


LAYERS: list[tuple[str, Callable[[], tuple[Any, ...]]]] = [
    ("cayley_dickson", lambda: (randn(3, 16), randn(8, 4, 2), randn(4), 8, "absmean", 0.7, "auto")),
    ("cayley_dickson", lambda: (randn(3, 16), randn(8, 4, 2), None, None, None, None, "fast")),
    ("hadamard", lambda: (randn(3, 16), randn(8, 4, 2), randn(8, 2), randn(8, 4), 8, "absmean", 0.7, True)),
    ("hadamard", lambda: (randn(3, 16), randn(8, 4, 2), None, None, None, None, None, False)),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_layers_are_operations_that_the_compiler_can_trust(index: int) -> None:
    name, arguments = LAYERS[index]
    torch.library.opcheck(getattr(torch.ops.walsh_torch, name).default, arguments())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # and makes one, in torch 2.11
@pytest.mark.parametrize("algebra", ["octonion", "hadamard"])
def test_a_block_is_one_graph(algebra: str) -> None:
    config = WalshConfig(algebra=algebra, n_layer=1, n_head=8, n_embd=64, vocab_size=11, hadamard_size=8)
    block = Walsh(config).blocks[0]
    seen: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        seen.append(len(graph.graph.nodes))
        return graph.forward

    x, positions = torch.randn(2, 5, 64, requires_grad=True), torch.arange(5)
    expected = block(x, positions)
    found = torch.compile(block, backend=count, fullgraph=True)(x, positions)
    assert len(seen) == 1
    torch.testing.assert_close(found, expected)
