"""The model through transformers: saved, loaded, padded, generated from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'walsh[hf]'")

from walsh.commands.convert import convert  # noqa: E402  # after the check that transformers is there
from walsh.data import ByteTokenizer, CharacterTokenizer, Gpt2Tokenizer, Tokenizer  # noqa: E402  # likewise
from walsh.errors import ParameterError  # noqa: E402  # likewise
from walsh.huggingface import WalshForCausalLM, WalshHFConfig, WalshTokenizer, export  # noqa: E402  # likewise
from walsh.model.checkpoint import Checkpoint, save_checkpoint  # noqa: E402  # likewise
from walsh.model.config import WalshConfig  # noqa: E402  # likewise
from walsh.model.generation import SamplingConfig, generate  # noqa: E402  # likewise
from walsh.model.transformer import Walsh  # noqa: E402  # likewise

pytestmark = pytest.mark.filterwarnings("default")  # transformers warns about itself

CONFIG = WalshConfig(
    n_layer=2, n_head=8, n_embd=32, block_size=16, vocab_size=31, head_mixing=True, activation_bits=None
)


@pytest.fixture(scope="module")
def pair() -> tuple[Walsh, WalshForCausalLM]:
    model = Walsh(CONFIG, seed=4)
    with torch.no_grad():
        model.get_parameter("embedding.weight").mul_(20)
    return model, WalshForCausalLM.from_walsh(model)


@pytest.mark.parametrize(
    "changes", [{}, {"hash_embeddings": 2}, {"algebra": "dense", "head_mixing": False, "tied_head": False}]
)
def test_saved_and_loaded_by_auto_classes_it_is_the_same(tmp_path: Path, changes: dict[str, object]) -> None:
    model = Walsh(WalshConfig.from_dict(CONFIG.to_dict() | {"ffn_hidden": None} | changes))
    WalshForCausalLM.from_walsh(model).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, WalshForCausalLM)
    assert loaded.config.to_walsh() == model.config
    ids = torch.tensor([[1, 2, 3, 30]])
    assert torch.equal(loaded(ids).logits, model(ids))


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharacterTokenizer("ab cdé\n"), Gpt2Tokenizer()], ids=lambda t: t.kind
)
def test_an_exported_folder_has_the_tokenizer_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = Walsh(WalshConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=tokenizer.vocab_size))
    export(model, tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, WalshTokenizer)
    assert (len(loaded), loaded.eos_token_id, loaded.model_max_length) == (
        tokenizer.vocab_size,
        tokenizer.end_token,
        16,
    )
    texts = ["abé dc\n ab", "", "\n  b"] if tokenizer.kind == "characters" else ["naïve 漢字 <|endoftext|>\n\n x", ""]
    for text in texts:
        assert loaded(text)["input_ids"] == tokenizer.encode(text).tolist()
        assert loaded.decode(loaded(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    batch = loaded(["a", "a b"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist()[-1] == 1
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    made = hf.generate(**batch, max_new_tokens=3, do_sample=False, eos_token_id=-1)
    alone = generate(
        model, [tokenizer.encode(text).tolist() for text in ("a", "a b")], 3, SamplingConfig(temperature=0)
    )
    assert made[:, -3:].tolist() == alone
    # What a program imports that only knows the folder.
    names: dict[str, object] = {}
    exec((tmp_path / "modeling_walsh.py").read_text(encoding="utf-8"), names)
    assert names["WalshForCausalLM"] is WalshForCausalLM


def test_convert_makes_such_a_folder_from_a_checkpoint(tmp_path: Path) -> None:
    model = Walsh(WalshConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257))
    record = Checkpoint(model.state_dict(), model.config.to_dict(), ByteTokenizer().to_dict())
    save_checkpoint(tmp_path / "run" / "checkpoint", record)
    arguments = [str(tmp_path / "run"), "--to", "transformers"]
    assert CliRunner().invoke(convert, arguments, catch_exceptions=False).exit_code == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run.transformers")
    ids = torch.tensor([[1, 2, 256]])
    assert torch.equal(loaded(ids).logits, model(ids))
    with pytest.raises(ParameterError, match="end token 257 is not among the model's 257"):
        export(model, CharacterTokenizer(map(chr, range(257))), tmp_path / "none")


def test_padding_on_either_side_never_matters(pair: tuple[Walsh, WalshForCausalLM]) -> None:
    model, hf = pair
    left, right = torch.tensor([[9, 9, 1, 2, 3]]), torch.tensor([[1, 2, 3, 9, 9]])
    expected = model(torch.tensor([[1, 2, 3]]))
    for ids, mask, part in ((left, [0, 0, 1, 1, 1], slice(2, 5)), (right, [1, 1, 1, 0, 0], slice(0, 3))):
        logits = hf(ids, attention_mask=torch.tensor([mask])).logits
        torch.testing.assert_close(logits[:, part], expected)


def test_labels_are_shifted_and_ignored_at_minus_100(pair: tuple[Walsh, WalshForCausalLM]) -> None:
    model, hf = pair
    ids = torch.tensor([[1, 2, 3, 4]])
    loss = hf(ids, labels=torch.tensor([[1, 2, -100, 4]])).loss
    logp = model(ids).log_softmax(-1)
    torch.testing.assert_close(loss, -(logp[0, 0, 2] + logp[0, 2, 4]) / 2)
    loss, logits = hf(ids, labels=ids, return_dict=False)
    assert logits.shape == (1, 4, 31)


def test_generate_is_ours(pair: tuple[Walsh, WalshForCausalLM]) -> None:
    model, hf = pair
    ids = torch.tensor([[0, 0, 5], [1, 2, 3]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    made = hf.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = generate(model, [[5], [1, 2, 3]], 8, SamplingConfig(temperature=0.0))
    assert made[:, 3:].tolist() == expected


def test_what_its_files_cannot_say_is_refused() -> None:
    model = Walsh(CONFIG)
    codes = {
        name: w.sign().to(torch.int8) if name.endswith("wq.weight") else w for name, w in model.state_dict().items()
    }
    with pytest.raises(ParameterError, match="codes"):
        WalshForCausalLM.from_walsh(Walsh(CONFIG, weights=codes))
    with pytest.raises(ParameterError, match="algebra"):
        WalshForCausalLM(WalshHFConfig(algebra="octonions"))
