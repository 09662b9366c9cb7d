"""Both engines and a checkpoint continue texts with the same tokens; what is generated follows its definition."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import walsh
from walsh.codec import same_tokens, write_walsh
from walsh.codec.sources import read_source, strict_form_of, to_spin
from walsh.data.tokenizers import ByteTokenizer, CharacterTokenizer
from walsh.engine.model import Sampling
from walsh.errors import BackendError, DataError, ParameterError, RangeError, StrictError
from walsh.model.checkpoint import Checkpoint, save_checkpoint
from walsh.model.config import WalshConfig
from walsh.model.generation import SamplingConfig, generate
from walsh.model.language import moved_seed
from walsh.model.text import load_model
from walsh.model.transformer import Walsh
from walsh.reference import strict

pytest.importorskip("wasmtime")

KINDS: dict[str, dict[str, Any]] = {
    "octonion mixer": {"algebra": "octonion", "head_mixing": True},
    "hadamard hash": {"algebra": "hadamard", "hadamard_size": 8, "hash_embeddings": 2, "hash_scale": True},
}


def save(folder: Path, tokenizer: Any = None, **changes: Any) -> Path:
    """A checkpoint of a small model with confident, varied choices."""
    tokenizer = tokenizer or ByteTokenizer()
    config = WalshConfig(n_layer=1, n_head=8, n_embd=32, block_size=24, vocab_size=tokenizer.vocab_size, **changes)
    model = Walsh(config, seed=3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(("embedding.weight", "embedding.tables")):
                tensor.mul_(20)
    save_checkpoint(folder, Checkpoint(model.state_dict(), config.to_dict(), tokenizer.to_dict()))
    return folder


@pytest.fixture(scope="module", params=KINDS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the file made of it."""
    folder = tmp_path_factory.mktemp("same")
    checkpoint = save(folder / "checkpoint", **KINDS[request.param])
    source = read_source(checkpoint)
    write_walsh(folder / "model.walsh", strict_form_of(source), source.config.to_dict(), source.tokenizer)
    return checkpoint, folder / "model.walsh"


def test_engines_give_the_same_tokens(pair: tuple[Path, Path]) -> None:
    prompts = ["", "café 🙂", "你好", same_tokens.LONGER]
    found = list(same_tokens.compare(walsh.load(pair[1], "wasm"), walsh.load(pair[1], "torch"), prompts, count=40))
    assert [one.difference for one in found] == [""] * 8
    assert all(one.tokens >= 41 for one in found)
    # A checkpoint that is rounded in memory is the file.
    greedy = {"max_tokens": 12, "seed": 5}
    expected = walsh.load(pair[1], "wasm").generate("ab", **greedy)
    assert walsh.load(pair[0], "wasm").generate("ab", **greedy) == expected
    assert walsh.load(pair[0], "torch", strict=True).generate("ab", **greedy) == expected


def test_tokens_follow_the_definition(pair: tuple[Path, Path]) -> None:
    """By the reference: every token from a full pass over the window that the rule leaves visible."""
    model = walsh.load(pair[1], "wasm")
    source = read_source(pair[1])
    weights, config = strict_form_of(source), source.config.to_dict()
    known, first = list(range(65, 65 + 30)), 6
    sampling = Sampling(temperature=1.2, top_k=30, top_p=0.9, repetition_penalty=1.3, seed=2**64 - 7)
    drawn = list(model.tokens(known, 24, sampling))
    for token in drawn:
        if len(known) - first > 24:
            first = len(known) - 12
        logits = strict.forward(np.array([known[first:]]), weights, config)[:, -1]
        expected = strict.sample(
            logits,
            np.array([known[first:]]),
            temperature=1.2,
            top_k=30,
            top_p=0.9,
            repetition_penalty=1.3,
            seed=2**64 - 7,
            position=len(known),
        )
        assert token == int(expected[0])
        known.append(token)
    assert len(set(drawn)) > 5


def test_a_moved_seed_draws_what_is_drawn_further_on() -> None:
    for places in (0, 1, 77, 2**40):
        first = strict.uniform(123, 5 + places)
        assert strict.uniform(moved_seed(123, places), 5) == first


def test_a_checkpoint_generates_as_it_was_trained(pair: tuple[Path, Path]) -> None:
    model = walsh.load(pair[0])
    assert (model.engine, model.strict) == ("torch", False)
    inner = model.inner  # type: ignore[attr-defined]  # of CheckpointModel
    expected = generate(inner, [[65, 66]], 30, SamplingConfig(0.9, 20, seed=3, vocabulary=257))[0]
    assert list(model.tokens([65, 66], 30, Sampling(0.9, 20, seed=3))) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "prompt 3: expected a text"),
        ({"prompt": b"x"}, "prompt b'x': expected a text"),
        ({"prompt": "x", "max_tokens": 1.5}, "max_tokens 1.5: expected a whole number"),
        ({"prompt": "x", "temperature": "hot"}, "temperature 'hot': expected a number"),
        ({"prompt": "x", "stop": 3}, "stop 3: expected a text or several"),
    ],
)
def test_arguments_of_another_type_are_named(pair: tuple[Path, Path], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        walsh.load(pair[0], "wasm").generate(**arguments)


def test_streams_are_the_text_in_pieces(pair: tuple[Path, Path]) -> None:
    model = walsh.load(pair[1])
    assert model.engine == "wasm"
    whole = model.generate("é", 60, temperature=1.5, top_k=0, seed=1)
    pieces = list(model.generate("é", 60, temperature=1.5, top_k=0, seed=1, stream=True))
    assert "".join(pieces) == whole
    assert all(pieces)
    stop = whole[len(whole) // 2 :][:2]
    assert model.generate("é", 60, temperature=1.5, top_k=0, seed=1, stop=stop) == whole[: whole.index(stop)]
    assert model.generate("x", 0) == ""
    tokens = list(model.tokens(model.encode("é"), 60, Sampling(1.5, seed=1)))
    assert model.decode(tokens) == whole or 256 in tokens


def test_what_cannot_be_generated_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = walsh.load(pair[1])
    with pytest.raises(ParameterError, match="max_tokens"):
        model.generate("x", -1)
    with pytest.raises(ParameterError, match="top_p"):
        model.generate("x", top_p=0.0)
    with pytest.raises(ParameterError, match="empty prompt"):
        model.tokens([], 3)
    with pytest.raises(RangeError):
        list(model.tokens([257], 3))
    with pytest.raises(ParameterError, match="engine"):
        walsh.load(pair[1], "gpu")
    with pytest.raises(ParameterError, match="device"):
        walsh.load(pair[1], "wasm", device="cuda")
    with pytest.raises(BackendError):
        walsh.load(pair[1], "torch", device="nonsense")
    with pytest.raises(DataError):
        walsh.load(tmp_path / "nothing.walsh")
    floats = save(tmp_path / "floats", algebra="octonion", activation_bits=None)
    with pytest.raises(StrictError):
        list(same_tokens.compare(walsh.load(floats, "torch", strict=True), model, ["a"], 1))
    characters = save(tmp_path / "characters", CharacterTokenizer("ab"), algebra="octonion")
    narrow = walsh.load(characters, "wasm")
    with pytest.raises(RangeError):
        narrow.generate("x")
    found = list(same_tokens.compare(narrow, walsh.load(characters, "torch", strict=True), ["x", "ab"], 5))
    assert [one.refused for one in found] == ["RangeError", "", "RangeError", ""]


def test_a_difference_is_seen_and_described(pair: tuple[Path, Path]) -> None:
    model, other = walsh.load(pair[1], "wasm"), walsh.load(pair[1], "torch")
    honest = other.tokens
    other.tokens = lambda *args, **more: (t ^ 1 for t in honest(*args, **more))  # type: ignore[method-assign, assignment, misc, return-value]  # a broken engine
    found = next(same_tokens.compare(model, other, ["a"], 3))
    assert found.difference.startswith("token 1:")
    assert same_tokens.describe(found).startswith("DIFFERENT")


def test_a_missing_engine_is_named(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from walsh.model import loaded

    monkeypatch.setattr(loaded, "_installed", lambda package: package != "wasmtime")
    assert walsh.load(pair[1]).engine == "torch"
    with pytest.raises(BackendError, match=r"walsh\[wasm\]"):
        walsh.load(pair[1], "wasm")


def test_load_walsh_gives_what_the_guide_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    state, config = walsh.load_walsh(pair[1])
    model = Walsh(WalshConfig.from_dict(config), weights=state).eval()
    assert state["blocks.0.ffn.up.weight"].dtype == torch.int8
    checkpoint, _ = load_model(pair[0])
    close = {"rtol": 0.1, "atol": 0.5}  # rows of the embedding, twenty times their size here, are rounded to eight bits
    torch.testing.assert_close(model(torch.tensor([[1, 2]])), checkpoint(torch.tensor([[1, 2]])), **close)
    with pytest.raises(DataError, match="checkpoint"):
        walsh.load_walsh(pair[0])
    source = read_source(save(tmp_path / "c", algebra="octonion"))
    (tmp_path / "model.walsh").write_bytes(to_spin(source))
    state, config = walsh.load_walsh(tmp_path / "model.walsh")
    assert set(state["layers.0.attention.wq.weight"].unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert config["algebra"] == "octonion"


def test_importing_walsh_is_light(pair: tuple[Path, Path]) -> None:
    """``import walsh`` takes no package at all, and generating in the engine takes no PyTorch."""
    code = (
        "import sys, walsh\n"
        "assert 'numpy' not in sys.modules\n"
        f"assert walsh.load({str(pair[1])!r}, 'wasm').generate('a', 4, temperature=0) is not None\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
