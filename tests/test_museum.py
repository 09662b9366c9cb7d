"""The museum of mistakes: each re-created, seen to pass an ordinary test, and caught (conformance/museum.md).

What is wrong here is wrong on purpose. Where a vector catches it, the vector is run by the runner itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from walsh.algebra import cayley_dickson_signs
from walsh.suite.backend import deliver
from walsh.suite.policy import load_policy
from walsh.suite.runner import run_case
from walsh.suite.schema import locate_data
from walsh.suite.tensors import round_to
from walsh.suite.vectors import load_suite

ROOT = locate_data()
PAGE = Path(__file__).parents[1] / "conformance" / "museum.md"
SIGNS = cayley_dickson_signs(8).astype(np.float64)


@pytest.fixture(scope="module")
def cases():
    return {case.name: case for case in load_suite(ROOT).cases}


@pytest.fixture(scope="module")
def judge(cases):
    policy = load_policy(ROOT)

    def judge(name, function):
        """Outcome of a function (params, inputs) -> outputs on one vector."""

        class Exhibit:
            def describe(self):
                return {"name": "exhibit", "version": "1"}

            def run(self, op, params, inputs, out):
                deliver({key: np.asarray(value) for key, value in function(params, inputs).items()}, out, cast=True)

            def close(self):
                pass

        backend = Exhibit()
        return run_case(backend, backend.describe(), cases[name], policy)

    return judge


def split(inputs):
    """x as [m, 8, K] and dy as [m, 8, N], in float64."""
    w = inputs["w"].astype(np.float64)
    x = inputs["x"].astype(np.float64).reshape(-1, 8, w.shape[2])
    dy = inputs["dy"].astype(np.float64).reshape(-1, 8, w.shape[1]) if "dy" in inputs else None
    beta = inputs["beta"].astype(np.float64) if "beta" in inputs else np.ones(w.shape[1])
    return x, w, beta, dy


def product(x, w, signs=SIGNS):
    return np.stack([sum(signs[i, j] * x[:, j] @ w[i ^ j].T for j in range(8)) for i in range(8)], axis=1)


def gradients(inputs, table=SIGNS, components=range(8)):
    x, w, beta, dy = split(inputs)
    g = dy * beta
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(8):
        for j in range(8):
            dw[i ^ j] += SIGNS[i, j] * g[:, i].T @ x[:, j]
            if j in components:
                dx[:, j] += table[i, j] * g[:, i] @ w[i ^ j]
    found = {"dx": dx.reshape(inputs["x"].shape), "dw": dw, "dbeta": (dy * product(x, w)).sum(axis=(0, 1))}
    return {name: value for name, value in found.items() if name != "dbeta" or "beta" in inputs}


def right_gradients(_, inputs):
    return gradients(inputs)


def test_01_gradient_of_the_first_component_only(judge):
    def lost(_, inputs):
        return gradients(inputs, components=[0])

    x = np.arange(16.0).reshape(1, 16)
    ordinary = lost({}, {"x": x, "w": np.ones((8, 1, 2)), "dy": np.ones((1, 8))})
    assert ordinary["dx"].any()  # there is a gradient, and it is finite
    assert judge("cayley_dickson/gradient-exact/d8-float64", right_gradients).outcome == "pass"
    found = judge("cayley_dickson/gradient-exact/d8-float64", lost)
    assert found.outcome == "fail"
    assert "dx" in found.message


def test_02_a_kernel_compared_with_itself(judge):
    def fast(x, w):
        return product(x, w, SIGNS.T)  # the conjugate's table

    def reference(x, w):
        return fast(x, w)  # "dispatches to the fast kernel when it is available"

    x, w = np.random.default_rng(0).normal(size=(3, 8, 4)), np.random.default_rng(1).normal(size=(8, 2, 4))
    assert np.abs(fast(x, w) - reference(x, w)).max() == 0.0

    def layer(_, inputs):
        x, w, beta, _ = split(inputs)
        return {"y": (fast(x, w) * beta).reshape(*inputs["x"].shape[:-1], -1)}

    def right(_, inputs):
        x, w, beta, _ = split(inputs)
        return {"y": (product(x, w) * beta).reshape(*inputs["x"].shape[:-1], -1)}

    assert judge("cayley_dickson/exact-linear/d8-float32", right).outcome == "pass"
    assert judge("cayley_dickson/exact-linear/d8-float32", layer).outcome == "fail"


def test_03_the_transposed_table_in_the_backward(judge):
    def transposed(_, inputs):
        return gradients(inputs, table=SIGNS.T)

    rng = np.random.default_rng(2)
    sample = {"x": rng.normal(size=(64, 16)), "w": rng.normal(size=(8, 3, 2)), "dy": rng.normal(size=(64, 24))}
    true, found = gradients(sample)["dx"], transposed({}, sample)["dx"]
    # The size is right, and that is all that a norm can see.
    assert 0.9 < np.linalg.norm(found) / np.linalg.norm(true) < 1.1
    assert judge("cayley_dickson/gradient-exact/table-d8", right_gradients).outcome == "pass"
    assert judge("cayley_dickson/gradient-exact/table-d8", transposed).outcome == "fail"


def test_04_initialisation_overwritten():
    torch = pytest.importorskip("torch")
    from walsh.model.config import WalshConfig
    from walsh.model.transformer import Walsh

    config = WalshConfig(
        algebra="octonion", n_layer=1, n_head=8, n_embd=64, vocab_size=2000, block_size=8, hash_embeddings=2
    )
    model = Walsh(config, seed=1)

    @torch.no_grad()
    def scales(model):
        h = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        weights = dict(model.named_parameters())
        from walsh.kernels.torch import cayley_dickson_bit_linear

        name = "blocks.0.attention.wq"
        return float(cayley_dickson_bit_linear(h, weights[f"{name}.weight"], weights[f"{name}.beta"]).std() / h.std())

    assert 0.8 < scales(model) < 1.25  # variance is kept
    importance = dict(model.named_parameters())["embedding.importance"]
    assert (importance == 1).all()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(3))
    assert torch.isfinite(model(torch.zeros(1, 4, dtype=torch.int64))).all()  # the ordinary test
    assert not 0.8 < scales(model) < 1.25
    assert float(importance.detach().abs().max()) < 0.2


def test_05_degenerate_hashing(judge):
    moduli = (1021, 1019, 1013)

    def degenerate(params, inputs):
        t = inputs["ids"]
        if params["tables"] == 2:
            return {"indices": np.stack([t % 1021, t // 1021], axis=-1)}
        return {"indices": np.stack([t % 1021 % m for m in moduli], axis=-1)}

    def right(_, inputs):
        return {"indices": np.stack([inputs["ids"] % m for m in moduli], axis=-1)}

    ids = np.arange(50257)
    rows = degenerate({"tables": 3}, {"ids": ids})["indices"]
    assert ((rows >= 0) & (rows < np.array(moduli))).all()  # every index is in range
    assert len(np.unique(rows, axis=0)) == 1021
    assert len(np.unique(right({}, {"ids": ids})["indices"], axis=0)) == 50257
    assert judge("embedding/exact-hash-indices/vocabulary-3", right).outcome == "pass"
    assert judge("embedding/exact-hash-indices/vocabulary-3", degenerate).outcome == "fail"


def test_06_a_chunked_loss_that_keeps_its_chunks():
    torch = pytest.importorskip("torch")
    from walsh.kernels.torch import cross_entropy, linear_cross_entropy

    tokens, features, vocabulary = 32, 4, 500
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, features, generator=generator, requires_grad=True)
    table = torch.randn(vocabulary, features, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)

    def keeping(x, table, targets, chunk_size):
        parts = [
            cross_entropy(part @ table.T, ids) * len(ids)
            for part, ids in zip(x.split(chunk_size), targets.split(chunk_size), strict=True)
        ]
        return sum(parts) / len(targets)

    def saved(function):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            loss = function(x, table, targets, 8)
        return loss, torch.autograd.grad(loss, x)[0], sum(sizes)

    wrong, right = saved(keeping), saved(linear_cross_entropy)
    assert torch.allclose(wrong[0], right[0])  # the value
    assert torch.allclose(wrong[1], right[1], atol=1e-6)  # and the gradient
    assert wrong[2] >= tokens * vocabulary
    assert right[2] < tokens * vocabulary // 4


def run_cache(inputs, params, row_of):
    """A cache of its own, in which sequence b stores what ``row_of(b)`` was given."""
    first = inputs["k.0"] if "k.0" in inputs else next(v for n, v in sorted(inputs.items()) if n.startswith("k."))
    batch, _, heads, d = first.shape
    store = {side: [[] for _ in range(batch)] for side in "kv"}
    for verb, argument, *rest in params["script"]:
        assert verb == "append"
        width = inputs[f"k.{argument}"].shape[1]
        counts = rest[0] if rest and rest[0] is not None else [width] * batch
        for b in range(batch):
            for side in "kv":
                store[side][b] += list(inputs[f"{side}.{argument}"][row_of(b), : counts[b]])
    held = {}
    for side, name in (("k", "keys"), ("v", "values")):
        held[name] = np.zeros((batch, params["capacity"], heads, d), dtype=first.dtype)
        for b, rows in enumerate(store[side]):
            for t, row in enumerate(rows):
                held[name][b, t] = row
    return {**held, "lengths": np.array([len(rows) for rows in store["k"]], dtype=np.int64)}


def test_07_row_0_for_the_whole_batch(judge, cases):
    name = "kv_cache/exact/split"

    def wrong(params, inputs):
        return run_cache(inputs, params, lambda b: 0)

    def right(params, inputs):
        return run_cache(inputs, params, lambda b: b)

    one = np.arange(6.0).reshape(1, 3, 1, 2)
    script = {"script": [["append", "0", None]], "capacity": 3}
    alone = {"k.0": one, "v.0": one}
    assert (wrong(script, alone)["keys"] == right(script, alone)["keys"]).all()  # one sequence hides it
    if any(step[0] != "append" for step in cases[name].params["script"]):
        pytest.fail("the vector has other steps now; choose one that only appends")
    assert judge(name, right).outcome == "pass"
    assert judge(name, wrong).outcome == "fail"


def test_08_edges_of_generation(judge, cases):
    def keeps_nothing(params, inputs):
        l = inputs["logits"]  # noqa: E741  # the letter of SPEC.md
        kept = np.argsort(-l, axis=1)[:, : params.get("top_k", 0)]
        return {"ids": kept[:, 0].astype(np.int64)}  # top_k = 1 works

    def divides(params, inputs):
        with np.errstate(all="ignore"):
            p = np.exp(inputs["logits"] / np.float32(params["temperature"]))
            p = p / p.sum(axis=1, keepdims=True)
        return {"ids": p.argmax(axis=1).astype(np.int64)}

    def at_least_one(params, inputs):
        tokens = [np.zeros(len(np.atleast_2d(inputs["ids"])), dtype=np.int64)]
        while len(tokens) < params["max_new_tokens"]:
            tokens.append(tokens[-1])
        return {"tokens": np.stack(tokens, axis=1)}

    def goes_on(params, inputs):
        batch, tokens = inputs["ids"].shape
        return {"logits": np.zeros((batch, tokens, params["config"]["vocab_size"]))}

    example = {"logits": np.array([[0.0, 2.0, 1.0]])}
    assert keeps_nothing({"top_k": 1}, example)["ids"] == [1]
    assert divides({"temperature": 0.7}, example)["ids"] == [1]
    assert at_least_one({"max_new_tokens": 3}, {"ids": np.zeros((2, 4))})["tokens"].shape == (2, 3)
    assert judge("sampling/strict-filters/top-k-0", keeps_nothing).outcome == "error"
    assert judge("sampling/strict-greedy/reals", divides).outcome == "fail"
    assert judge("forward/strict-tokens/none", at_least_one).outcome == "fail"
    assert "returned normally" in judge("forward/invalid/too-long", goes_on).message


def test_09_greedy_longest_match_is_no_bpe():
    pytest.importorskip("tiktoken")
    from walsh.data.tokenizers import ByteTokenizer, Gpt2Tokenizer

    tokenizer = Gpt2Tokenizer()
    pieces = {tokenizer.token_bytes(i): i for i in range(tokenizer.end_token)}
    longest = max(map(len, pieces))

    def greedy(text):
        data, ids, at = text.encode("utf-8"), [], 0
        while at < len(data):
            size = next(n for n in range(longest, 0, -1) if data[at : at + n] in pieces)
            ids.append(pieces[data[at : at + size]])
            at += size
        return ids

    text = "the cat and the dog"
    assert greedy(text) == tokenizer.encode(text).tolist()  # the ordinary example
    hard = "unfathomable hyperbolicities"
    assert tokenizer.decode(greedy(hard)) == hard  # the round trip is right
    words = [hard, "antidisestablishmentarianism", "redoing tokenizations", "misunderstandings"]
    assert any(greedy(word) != tokenizer.encode(word).tolist() for word in words)

    heart = ByteTokenizer().encode("\N{BLACK HEART SUIT}")
    one_by_one = "".join(ByteTokenizer().decode([token]) for token in heart)
    assert "\ufffd" in one_by_one
    stream = ByteTokenizer().stream()
    assert "".join(stream.push(int(token)) for token in heart) + stream.finish() == "\N{BLACK HEART SUIT}"


def test_10_missing_tensors_become_zeros(judge):
    needed = ("a", "b")

    def load(weights):
        return {name: weights.get(name, np.zeros(2)) for name in needed}

    assert set(load({"a": np.ones(2), "b": np.ones(2)})) == set(needed)  # a whole checkpoint loads

    def lenient(params, inputs):
        load({name: value for name, value in inputs.items() if name.startswith("weights.")})
        return {}

    found = judge("forward/invalid/missing-weight", lenient)
    assert found.outcome == "fail"
    assert "returned normally, expected ParameterError" in found.message


def test_11_unknown_keys_and_missing_data(judge, tmp_path):
    def lenient(params, inputs):
        config = params["config"]
        config.get("head_mixing", False)
        return {}

    assert "returned normally" in judge("forward/invalid/unknown-key", lenient).message
    pytest.importorskip("torch")
    from walsh.data.corpora import open_corpus
    from walsh.errors import WalshError

    with pytest.raises(WalshError):
        open_corpus(str(tmp_path / "no-such-file.txt"))


def test_12_float16_without_a_scaler():
    torch = pytest.importorskip("torch")
    weight = torch.zeros(1, requires_grad=True)

    def gradient(scale):
        loss = (weight.to(torch.float16) * 1e-4) * torch.tensor(1e-4, dtype=torch.float16)
        weight.grad = None
        (loss.float() * scale).sum().backward()
        return float(weight.grad) / scale

    assert gradient(1.0) == 0.0
    assert abs(gradient(2.0**10) / 1e-8 - 1) < 0.01
    import inspect

    from walsh.training.loop import Trainer

    source = inspect.getsource(Trainer)
    assert "GradScaler" in source
    assert source.index("scaler.scale(loss)") < source.index("scaler.unscale_") < source.index("clip_grad_norm_")


def attend(q, k, v, last, leak):
    d = q.shape[-1]
    o = np.zeros_like(q)
    if leak:
        # "Centre the values": harmless as long as the whole sequence may be seen.
        v = v - 0.1 * (v - v.mean(axis=1, keepdims=True))
    for b, t in np.argwhere(last >= 0):
        n = last[b, t] + 1
        score = np.einsum("hd,shd->hs", q[b, t], k[b, :n]) / np.sqrt(d)
        p = np.exp(score - score.max(axis=1, keepdims=True))
        o[b, t] = np.einsum("hs,shd->hd", p / p.sum(axis=1, keepdims=True), v[b, :n])
    return o


def attention(inputs, leak):
    q, k, v = (inputs[name].astype(np.float64) for name in "qkv")
    (batch, tokens), keys = q.shape[:2], k.shape[1]
    last = np.broadcast_to(inputs.get("positions", np.arange(keys - tokens, keys)), (batch, tokens))
    return {"o": attend(q, k, v, last, leak)}


def test_13_a_feature_that_sees_the_future(judge):
    def leaking(_, inputs):
        return attention(inputs, leak=True)

    def right(_, inputs):
        return attention(inputs, leak=False)

    one = {name: np.ones((1, 1, 1, 2)) for name in "qkv"}
    assert np.abs(leaking({}, one)["o"] - right({}, one)["o"]).max() < 1e-12  # one token has no future
    assert judge("attention/rounded/future", right).outcome == "pass"
    assert judge("attention/rounded/future", leaking).outcome == "fail"


def test_14_accounting():
    torch = pytest.importorskip("torch")
    from walsh.data.tokenizers import ByteTokenizer
    from walsh.model.accounting import checkpoint_bytes, count_parameters
    from walsh.model.config import WalshConfig
    from walsh.model.transformer import Walsh
    from walsh.training.config import OptimizerConfig
    from walsh.training.optimizer import make_optimizer

    config = WalshConfig(algebra="octonion", n_layer=1, n_head=8, n_embd=16, vocab_size=50, block_size=8)
    model = Walsh(config, seed=0)
    optimizer = make_optimizer(model, OptimizerConfig())
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model(ids, ids).backward()
    optimizer.step()
    state = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.ndim)
    counted = count_parameters(config)
    assert counted == sum(p.numel() for p in model.parameters())
    assert checkpoint_bytes(config) == 4 * counted
    assert counted + state == 3 * counted  # what a checkpoint folder on disk would say
    text = "\N{SNOWMAN}" * 100
    assert len(ByteTokenizer().encode(text)) == 300 != len(text) // 4


def test_15_every_embedding_is_row_0(judge):
    def no_offset(_, inputs):
        ids, table = inputs["ids"], inputs["table"]
        return {"e": np.broadcast_to(table[0], (*ids.shape, table.shape[1]))}

    def right(_, inputs):
        return {"e": inputs["table"][inputs["ids"]]}

    single = {"ids": np.array([0]), "table": np.eye(3)}
    assert (no_offset({}, single)["e"] == right({}, single)["e"]).all()
    assert judge("embedding/exact-embedding/float32", right).outcome == "pass"
    assert judge("embedding/exact-embedding/float32", no_offset).outcome == "fail"


def rope(params, inputs, table_end=None):
    x = inputs["x"].astype(np.float64)
    tokens, _, d = x.shape[-3:]
    positions = inputs.get("positions", np.arange(tokens)).astype(np.float64)
    angle = positions[..., None, None] * params.get("theta", 10000.0) ** (-2 * np.arange(d // 2) / d)
    if table_end is not None:
        angle = np.where(positions[..., None, None] < table_end, angle, 0.0)
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)]
    return {"y": np.stack(pairs, axis=-1).reshape(x.shape)}


def test_16_rope_past_its_table(judge):
    def ends(params, inputs):
        return rope(params, inputs, table_end=4096)

    inside = {"x": np.ones((100, 1, 4))}
    assert (ends({}, inside)["y"] == rope({}, inside)["y"]).all()
    assert judge("rope/rounded/past-4096", rope).outcome == "pass"
    assert judge("rope/rounded/past-4096", ends).outcome == "fail"


def test_17_weight_decay_on_scales():
    torch = pytest.importorskip("torch")
    from walsh.model.config import WalshConfig
    from walsh.model.transformer import Walsh
    from walsh.training.config import OptimizerConfig
    from walsh.training.optimizer import make_optimizer

    config = WalshConfig(
        algebra="hadamard", hadamard_size=4, n_layer=1, n_head=2, n_embd=16, vocab_size=50, block_size=8
    )
    scales = ("beta", "alpha", "norm.weight", "importance")

    def decayed(optimizer, model):
        names = {id(p): name for name, p in model.named_parameters()}
        groups = [group for group in optimizer.param_groups if group["weight_decay"]]
        return {name for group in groups for p in group["params"] if (name := names[id(p)]).endswith(scales)}

    model = Walsh(config, seed=0)
    careless = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    assert decayed(careless, model)
    assert not decayed(make_optimizer(model, OptimizerConfig(weight_decay=0.1)), model)


def test_18_a_bfloat16_kernel_and_its_bfloat16_reference(judge):
    def rms(params, inputs, dtype):
        x, weight = (np.asarray(inputs[name]) for name in ("x", "weight"))
        total = np.zeros(x.shape[:-1], dtype=dtype)
        for i in range(x.shape[-1]):
            square = (x[..., i].astype(dtype) * x[..., i].astype(dtype)).astype(dtype)
            total = (total + square).astype(dtype)
        mean = (total / np.array(x.shape[-1], dtype=dtype)).astype(dtype)
        root = np.sqrt(mean.astype(np.float64) + params.get("eps", 1e-6)).astype(dtype)[..., None]
        y = (x.astype(dtype) / root).astype(dtype) * weight.astype(dtype)
        return round_to(y.astype(np.float64), x.dtype)

    name = "rms_norm/rounded/bfloat16-2x17"
    narrow = load_narrow()

    def kernel(params, inputs):
        return {"y": rms(params, inputs, narrow)}

    def wide(params, inputs):
        return {"y": rms(params, inputs, np.float32)}

    sample = {"x": np.linspace(-2, 2, 34).reshape(2, 17).astype(narrow), "weight": np.ones(17).astype(narrow)}
    assert (kernel({}, sample)["y"] == rms({}, sample, narrow)).all()  # the parity test, in bfloat16 on both sides
    assert judge(name, wide).outcome == "pass"
    assert judge(name, kernel).outcome == "fail"


def load_narrow():
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def test_the_page_names_cases_that_exist_and_tests_that_run_them(cases):
    text = PAGE.read_text("utf-8")
    source = Path(__file__).read_text("utf-8")
    sections = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)[1:]
    numbers = [int(number) for number in sections[::2]]
    assert numbers == list(range(1, 19))
    for number, body in zip(numbers, sections[1::2], strict=True):
        assert f"def test_{number:02}_" in source
        named = re.findall(r"`([a-z_]+/[a-z0-9-]+/[a-z0-9-]+)`", body)
        assert named or "tests/test_museum.py" in body, number
        exhibit = source[source.index(f"def test_{number:02}_") :].split("\ndef test_")[0]
        for name in named:
            assert name in cases, name
            assert name in exhibit, (number, name)
