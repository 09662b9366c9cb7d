"""Published checkpoints: every tensor arrives, and what does not fit is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from walsh.data import Gpt2Tokenizer
from walsh.errors import DataError, FormatError, ParameterError, ShapeError
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.convert import convert
from walsh.model.text import open_model
from walsh.model.transformer import Walsh

NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def published(model: Walsh, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a model under the names that the published code gives them."""
    result = {}
    for name, tensor in model.state_dict().items():
        new = name.replace("blocks.", "layers.").replace(".mixer.weight", ".attention.head_mixer.W")
        new = new.replace(".mixer.beta", ".attention.head_mixer.beta").replace("head.weight", "output.weight")
        for short, long in NAMES.items():
            new = new.replace(f".ffn.{short}.", f".feed_forward.{long}.")
        new = new.replace("embedding.weight", "tok_embeddings.weight")
        new = new.replace("embedding.importance", "tok_embeddings.importance.weight")
        if new.startswith("embedding.tables."):
            new = f"tok_embeddings.emb_tables.{new.rpartition('.')[2]}.weight"
        result[prefix + new] = tensor
    return result


def write(path: Path, model: Walsh, prefix: str = "", config: dict[str, Any] | None = None, **more: Any) -> Path:
    known = {"n_head": model.config.n_head, "block_size": model.config.block_size, "dropout": 0.1, "n_layer": 2}
    torch.save({"model": published(model, prefix) | more, "config": known | (config or {}), "iter": 7}, path)
    return path


CONFIGS = {
    "octonion mixer": {"algebra": "octonion", "n_head": 8, "head_mixing": True},
    "hadamard": {"algebra": "hadamard", "n_head": 8, "hadamard_size": 8, "head_mixing": True},
    "hash 2": {"algebra": "octonion", "n_head": 2, "hash_embeddings": 2},
    "hash 3": {"algebra": "quaternion", "n_head": 2, "hash_embeddings": 3, "hash_scale": True},
    "dense untied": {"algebra": "dense", "n_head": 2, "tied_head": False},
}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_published_model_gives_its_logits(tmp_path: Path, changes: dict[str, Any], prefix: str) -> None:
    config = WalshConfig(n_layer=2, n_embd=32, block_size=8, vocab_size=257, activation_bits=None, **changes)
    model = Walsh(config, seed=9)
    more = {prefix + "freqs_cis": torch.zeros(3)}
    if config.tied_head and not config.hash_embeddings:
        more[prefix + "output.weight"] = model.state_dict()["embedding.weight"].clone()
    checkpoint = convert(write(tmp_path / "ckpt.pt", model, prefix, **more))
    other, tokenizer = open_model(checkpoint)
    assert other.config == config
    assert tokenizer.kind == "bytes"
    ids = torch.tensor([[0, 5, 200, 256]])
    torch.testing.assert_close(other(ids), model(ids))


def test_stored_indices_and_tall_tables_are_kept(tmp_path: Path) -> None:
    config = WalshConfig(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=257, hash_embeddings=2)
    model = Walsh(config, seed=9)
    indices = kernels.hash_indices(torch.arange(257), 2).flip(0)
    tall = torch.randn(1021, 32)
    more = {"tok_embeddings.emb_tables.1.weight": tall, "tok_embeddings.hash_indices": indices.t().contiguous()}
    other, _ = open_model(convert(write(tmp_path / "ckpt.pt", model, **more), {"activation_bits": 8}))
    weights = dict(model.state_dict()) | {"embedding.tables.1": tall, "embedding.indices": indices}
    ids = torch.tensor([[0, 5, 200, 256]])
    torch.testing.assert_close(other(ids), kernels.forward(ids, weights, config.to_dict()))


def test_a_padded_vocabulary_has_gpt2s_tokenizer(tmp_path: Path) -> None:
    config = WalshConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=50304)
    _, tokenizer = open_model(convert(write(tmp_path / "ckpt.pt", Walsh(config))))
    assert isinstance(tokenizer, Gpt2Tokenizer)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = WalshConfig(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=257)
    model, path = Walsh(config), tmp_path / "ckpt.pt"
    with pytest.raises(DataError, match="no such file"):
        convert(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError):
        convert(path)
    torch.save([1, 2], path)
    with pytest.raises(FormatError, match="list"):
        convert(path)
    torch.save({"model": {"a": 1}}, path)
    with pytest.raises(FormatError, match="no tensors"):
        convert(path)
    with pytest.raises(ParameterError, match=r"'wpe\.weight' is unknown"):
        convert(write(path, model, **{"wpe.weight": torch.zeros(2)}))
    with pytest.raises(ParameterError, match="twice"):
        convert(write(path, model, **{"_orig_mod.norm.weight": torch.zeros(2)}))
    with pytest.raises(ParameterError, match="n_layer is 3, the weights have 2"):
        convert(write(path, model, config={"n_layer": 3}))
    torch.save({"model": published(model)}, path)
    with pytest.raises(ParameterError, match="--set n_head"):
        convert(path)
    assert convert(path, {"n_head": 2, "block_size": 8}).model["n_head"] == 2
    with pytest.raises(ShapeError, match=r"norm\.weight"):
        open_model(convert(write(path, model, **{"norm.weight": torch.ones(31)})))
    tensors = published(model)
    del tensors["layers.1.feed_forward.up_proj.beta"]
    torch.save({"state_dict": tensors, "model_args": {"n_head": 2}}, path)
    with pytest.raises(ParameterError, match=r"blocks\.1\.ffn\.up\.beta"):
        open_model(convert(path))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def test_no_code_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"model": {"a": torch.zeros(1)}, "config": Evil()}, path)
    with pytest.raises(FormatError, match="more than tensors"):
        convert(path)
    assert "code was run" not in capsys.readouterr().out
