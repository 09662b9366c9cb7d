"""train, generate, inspect, data, analyze, convert and ablate, as a person calls them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from walsh.commands.ablate import ablate
from walsh.commands.analyze import analyze
from walsh.commands.convert import convert, parse_settings
from walsh.commands.data import data
from walsh.commands.generate import generate
from walsh.commands.inspect import inspect
from walsh.commands.train import find_config, train
from walsh.errors import DataError, ParameterError, RangeError
from walsh.model.accounting import count_parameters, packed_bytes
from walsh.model.analysis import analyse
from walsh.model.config import WalshConfig
from walsh.model.text import StopFilter, generate_text, load_model
from walsh.model.transformer import Walsh
from walsh.training.ablation import COSTS, Run, compare, load_ablation, read_runs, size_variants

TOML = """
[model]
algebra = "octonion"
n_layer = 1
n_head = 8
n_embd = 32
block_size = 16
head_mixing = true
[data]
corpus = "file:{text}"
[schedule]
warmup_steps = 1
[training]
steps = 4
batch_size = 2
[evaluation]
interval = 2
batches = 1
sample_tokens = 5
stated = 0.1
"""


def call(command: object, *arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)  # type: ignore[arg-type]  # any command
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    text = folder / "text.txt"
    text.write_text("".join(f"{i} and {i} make {2 * i}.\n" for i in range(200)), encoding="utf-8")
    (folder / "tiny.toml").write_text(TOML.format(text=text), encoding="utf-8")
    result = call(train, folder / "tiny.toml", "--output", folder / "runs" / "tiny", "--device", "cpu")
    for said in ("octonion, 1 layers, 32 wide", "finished after step 4", "bits a byte", "loss.png", "checkpoint"):
        assert said in result.output
    # Four steps from a uniform guess over 257 tokens do not come near it.
    assert "; NOT below the 0.1 bits a byte" in " ".join(result.output.split())
    return folder


def test_train_resumes_and_takes_overrides(work: Path) -> None:
    run = work / "runs" / "tiny"
    with pytest.raises(ParameterError, match="--resume"):
        call(train, work / "tiny.toml", "--output", run)
    result = call(train, work / "tiny.toml", "--output", run, "--resume", "--set", "training.steps=6", "--quiet")
    assert result.output == ""
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(steps) == 6
    with pytest.raises(ParameterError, match=r"known by name: .*laptop"):
        find_config("laptopp")
    assert find_config("laptop").name == "laptop.toml"


def test_generate_streams_batches_and_stops(work: Path) -> None:
    run = work / "runs" / "tiny"
    greedy = ("--temperature", 0, "--device", "cpu")
    text = call(generate, run, "--prompt", "12 and", "--max-tokens", 8, *greedy, "--quiet").stdout
    assert len(text.encode("utf-8", errors="replace")) >= 2
    shown = call(generate, run, "--prompt", "12 and", "--max-tokens", 8, *greedy)
    assert shown.stdout == "12 and" + text
    assert "8 tokens" in shown.stderr or "tokens in" in shown.stderr
    rows = json.loads(call(generate, run, "--prompt", "12 and", "--prompt", "x", *greedy, "--json", "--quiet").stdout)
    assert [row["prompt"] for row in rows] == ["12 and", "x"]
    assert rows[0]["text"].startswith(text.rstrip("\n"))
    assert call(generate, run, "--max-tokens", 0, "--quiet").stdout == "\n"
    long = call(generate, run, "--prompt", "abcdefghij" * 3, "--max-tokens", 2, *greedy)
    assert "prompt 0 has 30 tokens, the context 16" in long.stderr
    with pytest.raises(DataError, match="walsh train"):
        call(generate, work)


def test_stop_texts_are_held_back_until_they_are_decided() -> None:
    one = StopFilter(["###", "END"])
    assert [one.push(piece) for piece in ("ab#", "#c", "E", "N", "X#", "##more")] == ["ab", "##c", "", "", "ENX", ""]
    assert one.ended
    assert one.push("x") + one.finish() == ""
    other = StopFilter(["END"])
    assert other.push("theEN") + other.finish() == "theEN"
    assert StopFilter([]).push("anything") == "anything"
    with pytest.raises(ParameterError):
        StopFilter([""])


def test_text_in_text_out(work: Path) -> None:
    model, tokenizer = load_model(work / "runs" / "tiny")
    assert model.state_dict()["blocks.0.ffn.up.weight"].dtype == torch.int8  # rounded once
    assert generate_text(model, tokenizer, ["é", ""], 0) == ["", ""]
    with pytest.raises(RangeError):
        model(torch.tensor([[tokenizer.vocab_size]]))


def test_inspect(work: Path) -> None:
    record = json.loads(call(inspect, work / "runs" / "tiny", "--json").output)
    config = WalshConfig.from_dict(record["config"])
    assert record["parameters"] == count_parameters(config) == sum(part["parameters"] for part in record["parts"])
    assert record["bytes"]["packed 2 bits, rows int8"] == packed_bytes(config)
    assert "octonion, ternary, 1 layers" in call(inspect, work / "runs" / "tiny").output
    hashed = call(inspect, "tinystories_hadamard_hash").output
    assert "1,021 rows in both hash tables" in hashed
    assert "29,158,064" in call(inspect, "tinystories_octonion").output  # published: 29.16 million


def test_data(work: Path) -> None:
    made = call(data, "prepare", f"file:{work / 'text.txt'}", "--output", work / "tokens", "--tokenizer", "characters")
    assert "held out" in made.output
    record = json.loads(call(data, "show", work / "tokens", "--json").output)
    assert record["tokenizer"] == "characters"
    assert "0 and 0 make 0." in call(data, "show", work / "tokens").output


def test_analyze(work: Path) -> None:
    run = work / "runs" / "tiny"
    result = call(analyze, run, "--text", work / "text.txt", "--tokens", 100, "--output", work / "seen")
    png, html = map(Path, result.output.split())
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in html.read_text(encoding="utf-8")
    record = json.loads(call(analyze, run, "--text", work / "text.txt", "--tokens", 100, "--json").output)
    assert np.array(record["energy"]).shape == (2, 8)
    assert record["tokens"] == 100


def test_what_is_drawn_is_what_is_there() -> None:
    config = WalshConfig(n_layer=2, n_head=8, n_embd=32, block_size=4, vocab_size=9, head_mixing=True, ffn_hidden=16)
    model = Walsh(config)
    with torch.no_grad():
        model.get_parameter("embedding.weight")[:, 4:8] = 0  # component 1 of 8 is silent in the embedding
        model.get_parameter("blocks.1.ffn.up.weight").zero_()
        model.get_parameter("blocks.0.mixer.weight")[3] = torch.eye(4)
    found = analyse(model, [1, 2, 3, 4, 5, 6])
    assert found.energy[0, 1] == 0
    assert found.energy.mean(axis=1).tolist() == pytest.approx([1.0] * 3)
    assert found.zeros[1, 5] == 1.0
    w = model.get_parameter("blocks.0.attention.wk.weight").detach()
    assert found.zeros[0, 1] == pytest.approx(float((w.abs() <= 0.5 * w.abs().mean()).double().mean()))
    assert found.mixer is not None
    assert found.mixer[0, 3] == pytest.approx(1.0)
    rows = model.get_parameter("embedding.weight").detach()[1:7].double()
    assert found.norms[0, 1] == pytest.approx(float(rows.square().mean(dim=1).sqrt().quantile(0.5)))
    with pytest.raises(ParameterError):
        analyse(model, [])


def test_convert_writes_a_checkpoint_that_generates(tmp_path: Path) -> None:
    from tests.model.test_convert import published

    config = WalshConfig(n_layer=1, n_head=2, n_embd=32, block_size=8, vocab_size=257, activation_bits=None)
    torch.save(published(Walsh(config)), tmp_path / "ckpt.pt")
    result = call(convert, tmp_path / "ckpt.pt", "--set", "n_head=2", "--set", "block_size=8")
    assert "octonion, 1 layers, 32 wide" in result.output
    assert call(generate, tmp_path / "ckpt", "--prompt", "a", "--max-tokens", 3, "--quiet").stdout
    with pytest.raises(DataError, match="no such file"):
        call(convert, tmp_path / "nothing")
    assert parse_settings(("a=1", "b=none", "c=word", "d=true")) == {"a": 1, "b": None, "c": "word", "d": True}
    with pytest.raises(ParameterError):
        parse_settings(("a",))


ABLATION = """
base = "tiny.toml"
match = "bytes"
seeds = [1, 2]
baseline = "octonion"
[variants.octonion]
[variants."dense ternary"]
algebra = "dense"
head_mixing = false
[variants.dense]
algebra = "dense"
head_mixing = false
ternary = false
activation_bits = "none"
"""


@pytest.mark.parametrize("match", ["parameters", "bytes", "flops"])
def test_variants_are_brought_to_one_cost(work: Path, match: str) -> None:
    (work / "compare.toml").write_text(ABLATION, encoding="utf-8")
    config, base = load_ablation(work / "compare.toml", ["model.n_embd=256"])
    config = config.model_copy(update={"match": match})
    models = size_variants(config, base, 257)
    budget = COSTS[match](models["octonion"])
    assert models["octonion"].n_embd == 256
    for name, model in models.items():
        assert COSTS[match](model) == pytest.approx(budget, rel=0.05), name
    assert models["dense"].activation_bits is None
    assert models["dense ternary"].ternary


def test_at_equal_width_only_what_a_variant_names_differs(work: Path) -> None:
    (work / "compare.toml").write_text(ABLATION, encoding="utf-8")
    config, base = load_ablation(work / "compare.toml")
    models = size_variants(config.model_copy(update={"match": "width"}), base, 257)
    assert {model.n_embd for model in models.values()} == {32}
    assert len({COSTS["bytes"](model) for model in models.values()}) > 1


def test_ablate_runs_pairs_and_reports(work: Path) -> None:
    (work / "compare.toml").write_text(ABLATION, encoding="utf-8")
    out = work / "runs" / "compare"
    options = ("--output", out, "--device", "cpu", "--set", "model.n_embd=256", "--set", "training.steps=3")
    result = call(ablate, work / "compare.toml", *options)
    runs = read_runs(out / "results.jsonl")
    assert [(run.seed, run.variant) for run in runs] == [
        (seed, name) for seed in (1, 2) for name in ("octonion", "dense ternary", "dense")
    ]
    text = (out / "ablation.md").read_text(encoding="utf-8")
    assert "none: 2 of 5 seeds" in text
    for name in ("ablation.html", "loss_against_bytes.png", "loss_against_flops.png"):
        assert (out / name).stat().st_size > 1000
    # A second call trains nothing.
    before = (out / "results.jsonl").read_text(encoding="utf-8")
    call(ablate, work / "compare.toml", *options, "--quiet")
    assert (out / "results.jsonl").read_text(encoding="utf-8") == before
    assert "seed 1: octonion" in result.output


def test_more_seeds_than_there_are_is_refused(work: Path) -> None:
    (work / "compare.toml").write_text(ABLATION, encoding="utf-8")
    found = CliRunner().invoke(ablate, [str(work / "compare.toml"), "--seeds", "3"])
    assert isinstance(found.exception, ParameterError)
    assert "--seeds 3: compare.toml has 2" in str(found.exception)


def fake(variant: str, seed: int, loss: float) -> Run:
    return Run(variant, seed, loss, 1, 1, 1, 1.0, 1.0, 8, 8, [[1.0, loss]])


def test_intervals_are_students_and_verdicts_need_five_seeds() -> None:
    noise = [0.0, 0.3, -0.2, 0.1, 0.4]
    differences = [0.10, 0.12, 0.08, 0.11, 0.09]
    runs = [fake("base", seed, 2 + noise[seed]) for seed in range(5)]
    runs += [fake("other", seed, 2 + noise[seed] + differences[seed]) for seed in range(5)]
    runs += [fake("same", seed, 2 + noise[seed] + 0.01 * (-1) ** seed) for seed in range(5)]
    found = {one.variant: one for one in compare(runs, "base")}
    assert found["base"].verdict == "baseline"
    other = found["other"]
    # By hand: mean 0.1, s = 0.0158, t of 4 degrees of freedom at 97.5 % (two comparisons): 3.4954.
    half = 3.4954 * np.std(differences, ddof=1) / math.sqrt(5)
    assert (other.difference, other.low, other.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half), abs=1e-5)
    assert other.verdict == "worse"
    assert found["same"].verdict == "no difference shown"
    few = {one.variant: one for one in compare([run for run in runs if run.seed < 4], "base")}
    assert few["other"].verdict == "none: 4 of 5 seeds"
    single = {one.variant: one for one in compare([run for run in runs if run.seed < 1], "base")}
    assert single["other"].verdict == "none: 1 paired seed"
    assert math.isnan(single["other"].low)


def test_a_comparison_that_makes_no_sense_is_refused(work: Path) -> None:
    path = work / "wrong.toml"
    for text, message in (
        (ABLATION.replace('baseline = "octonion"', 'baseline = "quaternion"'), "baseline is 'quaternion'"),
        (ABLATION.replace("seeds = [1, 2]", "seeds = [1, 1]"), "each once"),
        (ABLATION.replace("seeds", "seed"), "seed"),
        (ABLATION.replace('"bytes"', '"time"'), "match is 'time'"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ParameterError, match=message):
            load_ablation(path)
