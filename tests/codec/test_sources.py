"""Models from one format to another: nothing is lost that the target can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from walsh import codec
from walsh.codec import spin
from walsh.codec.sources import (
    Source,
    detect,
    from_spin,
    from_walsh,
    read_source,
    strict_form_of,
    to_spin,
    without_unused_rows,
)
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer
from walsh.errors import DataError, FormatError, NonFiniteError, ParameterError, ShapeError, WalshError
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.packed import PackedModel
from walsh.model.published import SHAKESPEARE, infer_config, published_config, published_names, rename, tokenizer_for
from walsh.model.transformer import Walsh
from walsh.reference import strict

IDS = [3, 200, 41, 1]
KINDS: dict[str, dict[str, Any]] = {
    "octonion": {"algebra": "octonion"},
    "octonion mixer": {"algebra": "octonion", "head_mixing": True},
    "hadamard mixer": {"algebra": "hadamard", "n_head": 32, "n_embd": 64, "head_mixing": True},
    "hash": {"algebra": "octonion", "hash_embeddings": 3, "hash_scale": True},
}


def model_of(**changes: Any) -> Source:
    given = {"n_layer": 2, "n_head": 8, "n_embd": 32, "block_size": 8, "vocab_size": 257, "activation_bits": None}
    config = WalshConfig.from_dict({"algebra": "octonion"} | given | changes)
    weights = {name: tensor.numpy().copy() for name, tensor in Walsh(config, seed=2).state_dict().items()}
    if config.hash_embeddings == 3:
        weights["embedding.indices"] = (np.arange(257)[:, None] * np.array([3, 5, 7])) % 31
        weights |= {f"embedding.tables.{i}": weights[f"embedding.tables.{i}"][:31] for i in range(3)}
    return Source("checkpoint", config, ByteTokenizer(), weights, None, 0)


def logits(weights: dict[str, Any], config: WalshConfig) -> torch.Tensor:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}
    return kernels.forward(torch.tensor([IDS]), tensors, config.to_dict())


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_spin_holds_a_published_model(changes: dict[str, Any]) -> None:
    source = model_of(**changes)
    content = to_spin(source)
    assert content[:6] == b"SPIN\x04\0"
    found = from_spin(content)
    assert found.config == source.config
    assert set(found.trained) == set(source.trained)
    for name, value in source.trained.items():
        stored = found.trained[name]
        if value.ndim == 3 and ".mixer." not in name:
            assert stored.dtype == np.int8
            assert (stored == kernels.ternary(torch.from_numpy(value))[0].numpy()).all()
        elif name.startswith("embedding.") and value.ndim == 2 and "importance" not in name and "indices" not in name:
            assert np.abs(stored - value).max() <= np.abs(value).max() / 127 * 0.501
        else:  # float16, or exact
            np.testing.assert_allclose(stored, value, rtol=2**-10, atol=1e-7)
    # A second time nothing changes any more.
    again = from_spin(to_spin(found))
    assert all((again.trained[name] == found.trained[name]).all() for name in found.trained)
    # The codes of its rows are kept as they are when it becomes strict weights.
    assert found.strict is not None
    records = {record.name: record for record in spin.read_records(content)[0]}
    first = "tok_embeddings.emb_tables.0.weight" if "hash_embeddings" in changes else "tok_embeddings.weight"
    stem = "embedding.tables.0" if "hash_embeddings" in changes else "embedding"
    assert (found.strict[f"{stem}.codes"] == records[first].values).all()
    packed = PackedModel(found.strict, found.config.to_dict())
    close = {"rtol": 1e-3, "atol": 2e-2 if changes.get("head_mixing") else 1e-4}  # mixers are rounded to eight bits
    torch.testing.assert_close(packed.logits(IDS, last_only=False), logits(found.trained, found.config)[0], **close)


def test_walsh_files_become_checkpoints_and_files_again() -> None:
    source = model_of(activation_bits=8, head_mixing=True)
    content = codec.dump(strict_form_of(source), source.config.to_dict(), source.tokenizer)
    read = from_walsh(content)
    plain = Source("checkpoint", read.config, read.tokenizer, read.trained, None, 0)
    assert codec.dump(strict_form_of(plain), plain.config.to_dict(), plain.tokenizer) == content
    again = strict_form_of(plain, rows=4)
    assert np.abs(again["embedding.codes"]).max() == 7


def test_unused_rows_are_left_out() -> None:
    for changes in ({}, {"tied_head": False}, {"hash_embeddings": 2}):
        source = model_of(vocab_size=270, activation_bits=8, **changes)
        smaller = without_unused_rows(source)
        assert smaller.config.vocab_size == 257
        full, cut = (strict_form_of(one) for one in (source, smaller))
        expected = strict.forward(np.array([IDS]), full, source.config.to_dict())[..., :257]
        assert (strict.forward(np.array([IDS]), cut, smaller.config.to_dict()) == expected).all()
        back = from_walsh(codec.dump(full, source.config.to_dict(), source.tokenizer))
        assert without_unused_rows(back).strict is not None
        assert set(without_unused_rows(back).trained) == set(back.trained)
    assert without_unused_rows(model_of()).config.vocab_size == 257


def test_published_details() -> None:
    config = WalshConfig(n_layer=1, n_head=32, n_embd=64, block_size=8, vocab_size=65, algebra="hadamard")
    names = published_names(config)
    weights = {theirs: np.zeros(config.weight_shapes()[ours]) for ours, theirs in names.items()}
    assert set(rename(weights)) == set(names)
    inner = {re_name(theirs): value for theirs, value in weights.items()}
    buffers = {"layers.0.attention.wq.inner.H": np.zeros(1), "tok_embeddings.hash_a": np.zeros(1)}
    assert set(rename(inner | buffers)) == set(names)
    found = infer_config(rename(weights), {"n_head": 32, "block_size": 8, "dropout": 0.1})
    assert (found.algebra, found.hadamard_size, found.vocab_size) == ("hadamard", 32, 65)
    assert published_config(config)["algebra"] == "hadamard"
    for wrong in ({"algebra": "quaternion"}, {"tied_head": False}, {"hash_embeddings": 2}, {"hash_embeddings": 3}):
        with pytest.raises(ParameterError):
            published_config(WalshConfig(n_layer=1, n_head=8, n_embd=64, **{"algebra": "octonion", **wrong}))
    assert tokenizer_for(65).decode(range(66)) == SHAKESPEARE
    assert tokenizer_for(3, "abc").encode("cab").tolist() == [2, 0, 1]
    for size, characters in ((64, None), (3, "ab c")):
        with pytest.raises(ParameterError):
            tokenizer_for(size, characters)


def re_name(name: str) -> str:
    """The name that a tuple-valued Hadamard layer gave its parameters."""
    parts = name.rsplit(".", 1)
    return f"{parts[0]}.inner.{parts[1]}" if ".wq." in name else name


def _changed(change: str) -> bytes:
    source = model_of()
    records, config, _ = spin.read_records(to_spin(source))
    weights = {one.name: one.weight for one in records}
    markers = {one.name: one.marker for one in records}
    if change == "a record is missing":
        name = "layers.1.attention.wk.weight"
        del weights[name], markers[name]
    elif change == "a record is not finite":
        weights["norm.weight"] = np.full(32, np.inf, dtype=np.float16)
    elif change == "an unknown record":
        weights["extra"], markers["extra"] = np.zeros(3, dtype=np.float32), "R"
    elif change == "a flat embedding":
        weights["tok_embeddings.weight"] = weights["tok_embeddings.weight"].ravel()
    elif change == "a wrong shape":
        weights["layers.0.attention_norm.weight"] = np.ones(31, dtype=np.float16)
    return spin.dump(weights, config, markers)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("a record is missing", ParameterError),
        ("a record is not finite", NonFiniteError),
        ("an unknown record", ParameterError),
        ("a flat embedding", ShapeError),
        ("a wrong shape", ShapeError),
    ],
)
def test_spin_files_of_no_model_are_refused(change: str, error: type[WalshError]) -> None:
    with pytest.raises(error):
        from_spin(_changed(change))


def test_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.walsh"
    path.write_bytes(to_spin(model_of()))
    assert detect(path) == "spin"  # published files have this name too
    assert read_source(path).kind == "spin"
    torch.save({"model": {}}, path)
    assert detect(path) == "published"
    path.write_bytes(b"garbage")
    with pytest.raises(FormatError):
        read_source(path)
    with pytest.raises(DataError):
        detect(tmp_path / "none")
    with pytest.raises(DataError):
        read_source(tmp_path)


def test_a_character_model_of_the_published_kind_has_no_end_token(tmp_path: Path) -> None:
    source = model_of(vocab_size=65)
    found = from_spin(to_spin(source))
    assert isinstance(found.tokenizer, CharacterTokenizer)
    assert found.tokenizer.end_token == 65 == found.config.vocab_size
