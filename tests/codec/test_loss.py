"""What rounding costs is measured by the definition of the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from walsh.codec.loss import losses
from walsh.data.tokenizers import ByteTokenizer
from walsh.errors import ParameterError
from walsh.kernels import torch as kernels
from walsh.model.checkpoint import Checkpoint, save_checkpoint
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh


def test_losses_of_a_text(tmp_path: Path) -> None:
    config = WalshConfig(n_layer=1, n_head=2, n_embd=32, block_size=8, vocab_size=270)
    model = Walsh(config, seed=1)
    save_checkpoint(tmp_path / "c", Checkpoint(model.state_dict(), config.to_dict(), ByteTokenizer().to_dict()))
    text = "Round to the nearest: half to even."
    trained, int8, int4 = losses(tmp_path / "c", text)
    ids = list(text.encode())
    total = torch.tensor(0.0)
    for start in range(0, len(ids) - 1, 8):
        window = torch.tensor([ids[start : start + 9]])
        logits = model(window[:, :-1]).detach()[..., :257]
        total += kernels.cross_entropy(logits, window[:, 1:]) * (window.shape[1] - 1)
    assert trained.tokens == int8.tokens == len(ids) - 1
    assert trained.nats == pytest.approx(float(total) / trained.tokens, rel=1e-5)
    assert int8.nats == pytest.approx(trained.nats, rel=0.01)
    assert int4.nats == pytest.approx(trained.nats, rel=0.05)
    assert int4.nats != int8.nats
    with pytest.raises(ParameterError):
        next(losses(tmp_path / "c", "x"))
