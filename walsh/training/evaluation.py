"""How good a model is: nats per token and bits per byte of held-out text.

    bits per byte = (sum of -ln p(token)) / ln 2 / (bytes that the tokens stand for)

Bits per byte compares models with different tokenizers. End tokens are predicted and paid for, and stand for no bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from walsh.data.tokenizers import Tokenizer
from walsh.errors import DataError
from walsh.training.batches import Tokens, bytes_per_token, evaluation_batches
from walsh.training.distributed import World


@dataclass(frozen=True)
class Evaluation:
    """What was found on held-out text.

    Attributes:
        loss: nats per token.
        bits_per_byte: see the module.
        tokens: how many were predicted.
    """

    loss: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def evaluate(
    module: nn.Module, tokens: Tokens, tokenizer: Tokenizer, world: World, batch: int, length: int, limit: int = 0
) -> Evaluation:
    """Predict every token of consecutive windows; each window begins without context.

    Args:
        module: the model, perhaps wrapped for several processes; all of them call this together.
        tokens: [count] of the held-out text.
        tokenizer: whose they are.
        world: the processes, which share the windows.
        batch: windows per process at a time.
        length: T.
        limit: batches at most, 0 for all.

    Raises:
        DataError: if the text holds fewer than two tokens, or only end tokens.
    """
    sizes = bytes_per_token(tokenizer)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    for ids, targets in evaluation_batches(tokens, batch * world.size, length, limit):
        mine = _share(ids, targets, world)
        valid = mine[1] >= 0
        loss = module(mine[0].to(world.device), mine[1].to(world.device))
        count = int(valid.sum())
        sums += torch.tensor([float(loss) * count, count, int(sizes[mine[1][valid]].sum())], dtype=torch.float64)
    # float64 exists on every device that torch.distributed serves; MPS, which lacks it, has one process.
    nats, predicted, volume = world.sum(sums.to(world.device) if world.size > 1 else sums).tolist()
    if not volume:
        raise DataError("the held-out text has no bytes; give a longer corpus")
    return Evaluation(nats / predicted, nats / math.log(2) / volume, int(predicted))


def _share(ids: Tensor, targets: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """The windows of this process; one without targets if there are too few, since all must call the model."""
    mine = ids[world.rank :: world.size], targets[world.rank :: world.size]
    return mine if len(mine[0]) else (ids[:1], torch.full_like(targets[:1], -1))
