"""The model as modules: equal to the definition, causal, cached, of preserved variance, and able to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from walsh import reference
from walsh.data import open_corpus
from walsh.errors import CapacityError, DTypeError, ParameterError, RangeError, ShapeError
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh

SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 41}
CONFIGS = {
    "dense": WalshConfig(**SMALL, algebra="dense", tied_head=False),
    "dense float": WalshConfig(**SMALL, algebra="dense", ternary=False, activation_bits=None),
    "complex": WalshConfig(**SMALL, algebra="complex", head_mixing=True, hash_embeddings=2),
    "quaternion": WalshConfig(**SMALL, algebra="quaternion", head_mixing=True, hash_embeddings=3, hash_scale=True),
    "octonion": WalshConfig(**SMALL, algebra="octonion", rule="round", activation_bits=None),
    "octonion mixer": WalshConfig(**SMALL | {"n_head": 8}, algebra="octonion", head_mixing=True, ste_clip=0.1),
    "sedenion": WalshConfig(**SMALL, algebra="sedenion", hash_embeddings=2, tied_head=False),
    "hadamard": WalshConfig(**SMALL | {"n_head": 8}, algebra="hadamard", hadamard_size=8, head_mixing=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make_model(config: WalshConfig, dtype: torch.dtype = torch.float64) -> Walsh:
    """A model whose scales are no longer at their initial values, in float64: roundings are then never in doubt."""
    model = Walsh(config, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std(correction=0).clamp(min=0.1) * _noise(parameter, generator))
    return model


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)


def draw_ids(config: WalshConfig, batch: int = 2, tokens: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, tokens), generator=generator)


@every_config
def test_logits_probes_and_gradients_are_those_of_the_reference(config: WalshConfig) -> None:
    model = make_model(config)
    ids, targets = draw_ids(config), draw_ids(config, seed=1)
    targets[0, 2] = -1
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    expected_probes: dict[str, Any] = {}
    expected = reference.forward(ids.numpy(), weights, config.to_dict(), probes=expected_probes)
    probes: dict[str, torch.Tensor] = {}
    np.testing.assert_allclose(model(ids, probes=probes).detach().numpy(), expected, rtol=1e-9, atol=1e-11)
    assert list(probes) == list(expected_probes)
    for name, value in probes.items():
        np.testing.assert_allclose(value.detach().numpy(), expected_probes[name], rtol=1e-9, atol=1e-11)
    loss = model(ids, targets)
    loss.backward()
    expected_loss, gradients = reference.forward_backward(ids.numpy(), weights, targets.numpy(), config.to_dict())
    assert loss.item() == pytest.approx(expected_loss, rel=1e-10)
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        scale = max(float(np.abs(gradients[name]).max()), 1e-12)
        np.testing.assert_allclose(parameter.grad.numpy(), gradients[name], atol=1e-9 * scale, err_msg=name)


@every_config
def test_a_later_token_never_changes_an_earlier_logit(config: WalshConfig) -> None:
    # Item 13 of the known mistakes: a feature that looks at future tokens.
    model = make_model(config)
    ids = draw_ids(config)
    before = model(ids)
    for place in (1, 4, 8):
        changed = ids.clone()
        changed[0, place:] = (changed[0, place:] + 1) % config.vocab_size
        after = model(changed)
        torch.testing.assert_close(after[0, :place], before[0, :place], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(after[1], before[1], rtol=1e-9, atol=1e-12)
        assert (after[0, place:] != before[0, place:]).any(dim=-1).all()


@every_config
@pytest.mark.parametrize("growing", [False, True])
def test_any_split_over_a_cache_equals_one_pass(config: WalshConfig, growing: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("walsh.model.cache.FIRST", 2)  # so that growth happens at this size
    model = make_model(config)
    ids = draw_ids(config, batch=3, tokens=12)
    whole = model(ids)
    for split in ((1,) * 12, (5, 7), (1, 10, 1), (11, 1), (12,)):
        cache = model.make_cache(3, 12, growing)
        parts = [model(part, cache=cache) for part in torch.split(ids, list(split), dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-11)
        assert all(layer.lengths.tolist() == [12, 12, 12] for layer in cache)


def test_a_growing_cache_grows_and_forks_and_stops_at_its_limit() -> None:
    model = make_model(CONFIGS["octonion"])
    cache = model.make_cache(2, 20, growing=True)
    assert cache[0].capacity == 20
    model(draw_ids(model.config, tokens=5), cache=cache)
    fork = [layer.fork([1, 1, 0]) for layer in cache]
    model(draw_ids(model.config, batch=3, tokens=15), cache=fork)
    assert fork[0].lengths.tolist() == [20, 20, 20]
    assert cache[0].lengths.tolist() == [5, 5]
    with pytest.raises(CapacityError):
        model(draw_ids(model.config, batch=3, tokens=1), cache=fork)
    assert all(layer.lengths.tolist() == [20, 20, 20] for layer in fork)


@every_config
def test_every_layer_preserves_variance_at_first(config: WalshConfig) -> None:
    wide = WalshConfig.from_dict(config.to_dict() | {"n_embd": 256, "ffn_hidden": 512, "n_layer": 1})
    model = Walsh(wide, seed=11)
    generator = torch.Generator().manual_seed(1)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    layers = [name.removesuffix(".weight") for name in weights if ".attention.w" in name or ".ffn." in name]
    names = sorted({name.removesuffix(".beta").removesuffix(".alpha") for name in layers})
    assert len(names) == 7
    for name in names:
        w, beta = weights[f"{name}.weight"], weights[f"{name}.beta"]
        x = torch.randn(256, w.shape[0] * w.shape[2], generator=generator)
        if wide.algebra == "hadamard":
            linear = kernels.hadamard_bit_linear
            y = linear(x, w, weights[f"{name}.alpha"], beta, wide.activation_bits, wide.rule)
        elif wide.ternary:
            y = kernels.cayley_dickson_bit_linear(x, w, beta, wide.activation_bits, wide.rule)
        else:
            y = kernels.cayley_dickson_linear(x, w, beta)
        # 256 x 256 draws have a relative spread of the variance below 1 %; each row of weights has its own number of
        # zeros, which adds to it for the few and short rows of the large algebras.
        assert float(y.var()) == pytest.approx(1.0, abs=0.08), name


def test_initialisation_of_one_layer_is_not_overwritten_by_another() -> None:
    # Item 4: beta set by a later loop over parameters, importance near 0.
    config = CONFIGS["quaternion"]
    weights = dict(Walsh(config).named_parameters())
    for name, parameter in weights.items():
        if name.endswith(("norm.weight", "mixer.beta", "importance")):
            assert bool((parameter == 1).all()), name
        elif name.endswith(".beta"):
            fan_in = np.prod(weights[name.replace("beta", "weight")].shape) / parameter.shape[0]
            q, _ = reference.ternary(weights[name.replace("beta", "weight")].detach().numpy())
            expected = 1 / np.sqrt((q != 0).mean() * fan_in)
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6)
    mixer = weights["blocks.1.mixer.weight"].detach()
    identity = torch.eye(mixer.shape[1])
    assert float((mixer[0] - identity).std()) == pytest.approx(0.02, rel=0.4)
    assert float(mixer[1:].std()) == pytest.approx(0.02, rel=0.4)


def test_hash_embeddings_start_distinct() -> None:
    # Item 5: thousands of tokens that share all rows.
    config = WalshConfig(n_layer=0, n_head=1, n_embd=8, vocab_size=50257, hash_embeddings=3)
    table = Walsh(config).features(torch.arange(50257)[:, None][:, :1])
    assert torch.unique(table[:, 0], dim=0).shape[0] == 50257


@pytest.mark.parametrize("checkpointing", [False, True])
@every_config
def test_activation_checkpointing_changes_no_bit(config: WalshConfig, checkpointing: bool) -> None:
    losses, gradients = [], []
    for on in (False, checkpointing):
        model = Walsh(config)
        model.activation_checkpointing = on
        loss = model(draw_ids(config), draw_ids(config, seed=1))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in model.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_the_stream_and_not_the_loss(dtype: torch.dtype) -> None:
    config = CONFIGS["octonion mixer"]
    model = Walsh(config)
    ids, targets, probes = draw_ids(config), draw_ids(config, seed=1), dict[str, torch.Tensor]()
    with torch.autocast("cpu", dtype):
        loss = model(ids, targets, probes=probes)
    assert {probe.dtype for probe in probes.values()} == {dtype}
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(ids, targets).item(), rel=0.01)
    loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_in_any_published_form_give_the_same_logits() -> None:
    config = CONFIGS["complex"]
    model = make_model(config, torch.float32)
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())
    indices = kernels.hash_indices(torch.arange(config.vocab_size), 2)
    tall = torch.cat([weights["embedding.tables.1"], torch.ones(1020, config.n_embd)])
    codes = {
        name: kernels.ternary(w.detach(), config.rule)[0]
        for name, w in weights.items()
        if w.ndim == 3 and ".mixer." not in name
    }
    assert len(codes) == 14
    other = Walsh(config, weights=weights | codes | {"embedding.indices": indices, "embedding.tables.1": tall})
    ids = draw_ids(config)
    torch.testing.assert_close(other(ids), model(ids), rtol=1e-5, atol=1e-6)  # products of taller tables, same sums
    assert set(other.state_dict()) == set(weights) | {"embedding.indices"}
    assert not any(name.endswith("wq.weight") for name, _ in other.named_parameters())


def test_wrong_input_is_refused_and_leaves_the_cache_alone() -> None:
    model = make_model(CONFIGS["octonion"])
    cache = model.make_cache(2, 6)
    model(draw_ids(model.config, tokens=4), cache=cache)
    for ids, error in (
        (torch.tensor([[41], [0]]), RangeError),
        (torch.tensor([[-1], [0]]), RangeError),
        (draw_ids(model.config, tokens=3), CapacityError),
        (draw_ids(model.config, batch=3, tokens=1), ShapeError),
        (torch.zeros(2, 1), DTypeError),
        (torch.zeros(2, dtype=torch.int64), ShapeError),
    ):
        with pytest.raises(error):
            model(ids, cache=cache)
        assert all(layer.lengths.tolist() == [4, 4] for layer in cache)
    with pytest.raises(CapacityError, match=r"25 tokens.*24 fit"):
        # Item 16: positions past the context are refused, not rotated by an identity.
        model(draw_ids(model.config, tokens=25))
    with pytest.raises(RangeError, match="targets"):
        model(draw_ids(model.config), torch.full((2, 9), 41))
    with pytest.raises(ShapeError):
        model(draw_ids(model.config), torch.zeros(2, 8, dtype=torch.int64))


def test_a_weight_that_is_missing_or_left_over_is_an_error() -> None:
    # Item 10: missing tensors silently replaced.
    config = CONFIGS["octonion"]
    weights = dict(Walsh(config).state_dict())
    missing = {name: w for name, w in weights.items() if name != "blocks.1.ffn.up.beta"}
    with pytest.raises(ParameterError, match=r"blocks\.1\.ffn\.up\.beta"):
        Walsh(config, weights=missing)
    with pytest.raises(ParameterError, match=r"head\.weight"):
        Walsh(config, weights=weights | {"head.weight": weights["embedding.weight"]})
    with pytest.raises(ShapeError, match=r"norm\.weight"):
        Walsh(config, weights=weights | {"norm.weight": torch.ones(31)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embed": 64}, "'n_embed' is unknown: did you mean 'n_embd'"),
        ({"algebra": "octonions"}, "did you mean 'octonion'"),
        ({"algebra": "dense", "head_mixing": True}, "head_mixing"),
        ({"hash_scale": True}, "hash_scale"),
        ({"hash_embeddings": 1}, "hash_embeddings"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"n_embd": 36}, "n_embd"),
        ({"head_mixing": True}, "n_head"),
        ({"ternary": 1}, "ternary"),
        ({"rule": "mean"}, "rule"),
        ({"ste_clip": -1.0}, "ste_clip"),
        ({"hadamard_size": 24}, "hadamard_size"),
        ({"ffn_hidden": 12}, "ffn_hidden"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"n_layer": 1.5}, "n_layer"),
    ],
)
def test_a_configuration_mistake_is_an_error_that_names_it(change: dict[str, Any], message: str) -> None:
    # Item 11: unknown keys silently ignored.
    with pytest.raises(ParameterError, match=message):
        WalshConfig.from_dict(SMALL | change)


@pytest.mark.slow
@pytest.mark.parametrize("algebra", ["dense", "complex", "quaternion", "octonion", "sedenion", "hadamard"])
def test_it_overfits_one_kilobyte_in_every_algebra(algebra: str) -> None:
    config = WalshConfig(
        n_layer=2, n_head=8, n_embd=128, block_size=128, vocab_size=256, algebra=algebra, hadamard_size=8
    )
    torch.manual_seed(0)
    model = Walsh(config)
    text = "".join(open_corpus("pydoc").train()).encode()[:1024]
    data = torch.tensor(list(text)).reshape(8, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    best = float("inf")
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min((step + 1) / 20, 1 - step / 520)
        loss = model(data[:, :-1], data[:, 1:])
        best = min(best, loss.item())
        if best < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    pytest.fail(f"best loss {best:.3f} nats a byte after 500 steps: expected below 0.05")
