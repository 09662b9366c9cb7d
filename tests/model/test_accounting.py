"""Parameter and byte counts: the published ones, and those of the tensors themselves."""

from __future__ import annotations

import math

import pytest

from walsh.model import accounting
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh

OCTONION = WalshConfig()


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (OCTONION, 28.90),
        (WalshConfig(head_mixing=True), 29.16),
        (WalshConfig(algebra="hadamard", n_head=32, head_mixing=True), 26.67),
        (WalshConfig(n_layer=24, n_embd=1280, n_head=20, vocab_size=50304), 123.5),
    ],
    ids=["octonion", "octonion mixer", "hadamard", "scholar"],
)
def test_the_published_counts(config: WalshConfig, millions: float) -> None:
    assert accounting.count_parameters(config) / 1e6 == pytest.approx(millions, abs=0.005 if millions < 100 else 0.05)


def test_hash_tables_as_published_and_as_kept() -> None:
    config = WalshConfig(hash_embeddings=2)
    tables = [shape for name, shape in accounting.published_shapes(config).items() if ".tables." in name]
    assert tables == [(1021, 512), (1021, 512)]
    assert sum(map(math.prod, tables)) / 1e6 == pytest.approx(1.05, abs=0.005)
    kept = config.weight_shapes()["embedding.tables.1"]
    assert kept == (50, 512)  # 50257 / 1021 = 49.2
    published = accounting.count_parameters(config, accounting.published_shapes(config))
    assert published - accounting.count_parameters(config) == (1021 - 50) * 512


@pytest.mark.parametrize(
    "config",
    [
        WalshConfig(n_layer=2, n_head=8, n_embd=64, vocab_size=100, head_mixing=True),
        WalshConfig(n_layer=1, n_head=2, n_embd=64, vocab_size=3000, hash_embeddings=3, algebra="hadamard"),
        WalshConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=90, algebra="dense", tied_head=False, ternary=False),
    ],
)
def test_counts_are_those_of_the_tensors(config: WalshConfig) -> None:
    weights = dict(Walsh(config).named_parameters())
    assert accounting.count_parameters(config) == sum(weight.numel() for weight in weights.values())
    assert accounting.checkpoint_bytes(config) == sum(weight.nbytes for weight in weights.values())
    linears = [w for name, w in weights.items() if w.ndim == 3 and ".mixer." not in name]
    tables = [w for name, w in weights.items() if w.ndim == 2 and (".tables." in name or name.endswith("weight"))]
    mixers = [w for name, w in weights.items() if name.endswith("mixer.weight")]
    scales = sum(w.numel() for w in weights.values()) - sum(w.numel() for w in [*linears, *tables, *mixers])
    expected = sum(w.numel() for w in linears) * (2 / 8 if config.ternary else 4) + 4 * scales
    expected += sum(w.numel() + 4 * w.shape[0] for w in tables)
    expected += sum(w.numel() + 4 * w.shape[-1] for w in mixers)
    assert accounting.packed_bytes(config) == math.ceil(expected)


def test_multiplications_of_a_token() -> None:
    # One dense layer by hand: 4 C^2 of attention, 3 C F of the feed-forward, V C of the head.
    config = WalshConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=90, algebra="dense", ffn_hidden=96)
    expected = 4 * 32 * 32 + 3 * 32 * 96 + 90 * 32
    assert accounting.count_multiplications(config) == expected
    octonion = WalshConfig.from_dict(config.to_dict() | {"algebra": "octonion"})
    assert accounting.count_multiplications(octonion) == expected
    hadamard = WalshConfig.from_dict(config.to_dict() | {"algebra": "hadamard", "hadamard_size": 8})
    assert accounting.count_multiplications(hadamard) == (4 * 32 * 32 + 3 * 32 * 96) // 8 + 90 * 32
