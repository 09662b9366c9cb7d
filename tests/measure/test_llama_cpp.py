"""llama.cpp as a peer: its file is the dense twin, its logits are the definition's, its absence has a reason."""

import pytest
import torch

from bench import prefill
from walsh.measure import kernels, llama_cpp
from walsh.measure.case import Setting
from walsh.measure.continuation import token_checks
from walsh.measure.llama_cpp import FLOAT16, Q8_0, TQ2_0, Loaded, Sequence
from walsh.measure.models import Model

PAIRS = [("octonion", FLOAT16), ("octonion", Q8_0), ("octonion", TQ2_0), ("hadamard", FLOAT16), ("hadamard", Q8_0)]
PAST = 16


def need(*modules):
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install llama-cpp-python gguf")


def make_model(algebra="octonion"):
    """Two layers; the octonion model's hidden width 688 is made of whole blocks of neither 32 nor 256."""
    return Model(Setting(), 2, 4, 256, 320, algebra)


@pytest.mark.parametrize(
    ("setting", "installed", "reason"),
    [
        (Setting("cuda"), ["llama-cpp-python", "gguf"], "measured on a CPU only"),
        (Setting(), ["gguf"], "the package llama-cpp-python is not installed"),
        (Setting(), ["llama-cpp-python"], "the package gguf is not installed"),
        (Setting(quick=True), ["llama-cpp-python", "gguf"], "left out of a quick run"),
        (Setting(), ["llama-cpp-python", "gguf"], None),
    ],
)
def test_its_absence_has_a_name_and_a_reason(monkeypatch, setting, installed, reason):
    monkeypatch.setattr(kernels, "installed", lambda package: "1" if package in installed else None)
    found = llama_cpp.without_llama_cpp(setting, "decode/*")
    assert [(one.case, one.provider, one.reason) for one in found] == [("decode/*", "llama.cpp", reason)] * bool(reason)


def test_a_version_that_refuses_is_absent_with_its_own_words(monkeypatch):
    def refuse(model, form):
        raise AttributeError(f"no {form.name} here")

    monkeypatch.setattr(kernels, "installed", lambda package: "1")
    monkeypatch.setattr(llama_cpp, "load", refuse)
    found, refused = llama_cpp.providers("decode/x", make_model("hadamard"), 1, None, lambda tolerance: None)
    assert found == []
    assert [(one.provider, one.reason) for one in refused] == [
        ("llama.cpp float16", "AttributeError: no float16 here"),
        ("llama.cpp Q8_0", "AttributeError: no Q8_0 here"),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("embedding.weight", "token_embd.weight"),
        ("norm.weight", "output_norm.weight"),
        ("blocks.11.attention_norm.weight", "blk.11.attn_norm.weight"),
        ("blocks.0.ffn_norm.weight", "blk.0.ffn_norm.weight"),
        ("blocks.0.attention.wo.weight", "blk.0.attn_output.weight"),
        ("blocks.0.ffn.down.weight", "blk.0.ffn_down.weight"),
    ],
)
def test_names(ours, theirs):
    assert llama_cpp.rename(ours) == theirs


@pytest.mark.parametrize(("form", "hidden"), [(FLOAT16, 688), (Q8_0, 704), (TQ2_0, 768)])
def test_the_file_holds_the_dense_twin_and_zeros(tmp_path, form, hidden):
    need("gguf")
    import gguf

    model = make_model()
    llama_cpp.write_gguf(model, form, tmp_path / "model.gguf")
    stored = {
        one.name: torch.from_numpy(gguf.quants.dequantize(one.data, one.tensor_type).copy()).float()
        for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors
    }
    assert set(stored) == {llama_cpp.rename(name) for name in model.plain.weights}
    for name, dense in model.plain.weights.items():
        found = stored[llama_cpp.rename(name)]
        if name.endswith(("gate.weight", "up.weight")):
            assert found.shape[0] == hidden
            assert not found[688:].any()
            found = found[:688]
        if name.endswith("down.weight"):
            assert found.shape[1] == hidden
            assert not found[:, 688:].any()
            found = found[:, :688]
        # Of a largest value 1: half an ulp of float16, or half a step of 1/127.
        step = 2**-11 if dense.ndim == 2 and "embedding" not in name else 0.5 / 127 + 2**-11
        torch.testing.assert_close(found, dense, rtol=0, atol=step * float(dense.abs().max()))
        if form is TQ2_0 and dense.ndim == 2 and "embedding" not in name:
            assert torch.equal(found.sign(), dense.sign())
            assert found.abs().unique().tolist() == [0.0, float(dense.abs().max().half())]


@pytest.mark.parametrize(("algebra", "form"), PAIRS)
@pytest.mark.parametrize("job", ["decode", "prefill", "first token"])
def test_its_logits_are_those_of_the_definition(algebra, form, job):
    need("gguf", "llama_cpp")
    model = make_model(algebra)
    prompt = model.draw(7, 1, PAST) if job == "decode" else None
    checks = prefill.float_checks(model) if prompt is None else token_checks(model, prompt, None)
    tokens = 1 if job == "decode" else PAST
    last = job == "first token"
    provider = llama_cpp.make_provider(model, form, tokens, prompt, checks(form.tolerance), last)
    for seed in range(3):
        inputs = {"ids": model.draw(seed, 1, tokens)}
        output = provider.run(inputs)
        assert output.shape == (1, 1 if last else tokens, 320)
        assert provider.check(inputs, output, 0) <= 0.7
        assert not provider.check({"ids": model.draw(seed + 10, 1, tokens)}, output, 0) <= 1


def halves_for_pairs(weight, heads=4):
    """The other convention of RoPE: pairs (i, i + d/2)."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("form", [FLOAT16, Q8_0, TQ2_0])
@pytest.mark.parametrize(
    ("part", "change"), [("attention.wk", halves_for_pairs), ("attention.wo", torch.neg), ("ffn.up", torch.zeros_like)]
)
def test_the_tolerance_rejects_one_wrong_matrix(form, part, change):
    need("gguf", "llama_cpp")
    right, wrong = make_model(), make_model()
    name = f"blocks.0.{part}.weight"
    wrong.plain.weights[name] = change(wrong.plain.weights[name])
    prompt, ids = right.draw(7, 1, PAST), right.draw(8, 1, 1)
    sequence = Sequence(Loaded(wrong, form), PAST + 1)
    sequence.read(prompt)
    check = token_checks(right, prompt, None)(form.tolerance)
    assert check({"ids": ids}, sequence.read(ids, PAST), 0) > 1


def test_it_says_nothing_and_its_refusals_are_python_errors(capfd, monkeypatch):
    need("gguf", "llama_cpp")
    Sequence(Loaded(make_model(), Q8_0), 8).read(torch.tensor([[1, 2]]))
    with pytest.raises(llama_cpp.BackendError, match=r"cannot read 1 tokens: .*invalid token"):
        Sequence(Loaded(make_model(), Q8_0), 8).read(torch.tensor([[320]]))
    monkeypatch.setattr(llama_cpp, "write_gguf", lambda model, form, path: path.write_bytes(b"GGUF, or not"))
    with pytest.raises(llama_cpp.BackendError, match=r"cannot load the model: .*gguf"):
        Loaded(make_model(), Q8_0)
    assert capfd.readouterr() == ("", "")
