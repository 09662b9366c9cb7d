"""compress, verify, inspect, convert and generate on files, as a person calls them."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from walsh.cli import main
from walsh.codec import measure as measuring
from walsh.codec.sources import read_source
from walsh.data.tokenizers import ByteTokenizer
from walsh.errors import BackendError, WalshError
from walsh.model.checkpoint import Checkpoint, save_checkpoint
from walsh.model.config import WalshConfig
from walsh.model.transformer import Walsh

pytest.importorskip("wasmtime")


def save(folder: Path, **changes: Any) -> Path:
    given = {"algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 64, "block_size": 16, "vocab_size": 257}
    config = WalshConfig.from_dict(given | changes)
    model = Walsh(config, seed=3)
    save_checkpoint(folder, Checkpoint(model.state_dict(), config.to_dict(), ByteTokenizer().to_dict()))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and the file that compress makes of it."""
    folder = tmp_path_factory.mktemp("commands")
    save(folder / "checkpoint")
    call("compress", folder / "checkpoint", "-o", folder / "model.walsh", "--no-measure")
    return folder


def call(*arguments: object, code: int = 0) -> Result:
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    except SystemExit as exit_:
        raise AssertionError(f"exit {exit_.code}") from None
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_compress_prints_what_it_chose_and_why(work: Path, tmp_path: Path) -> None:
    made = tmp_path / "model.walsh"
    text = call("compress", work / "checkpoint", "-o", made, "--no-measure", "--rows", "int4").output
    assert "rows of 4-bit codes" in text
    assert "smallest; bits of others" in text
    assert "model.walsh:" in text
    assert stat.S_IMODE(made.stat().st_mode) & 0o044 == stat.S_IMODE((work / "model.walsh").stat().st_mode) & 0o044
    assert [path.name for path in tmp_path.iterdir()] == ["model.walsh"]
    before = made.read_bytes()
    refused = call("compress", work / "checkpoint", "-o", made, "--no-measure", code=64)
    assert "--force" in refused.stderr
    assert made.read_bytes() == before
    call("compress", work / "checkpoint", "-o", made, "--no-measure", "--prefer", "speed", "--force")
    record = json.loads(call("inspect", made, "--json").output)
    assert {row["packing"] for row in record["file"]["packings"]} == {"raw", "two_bits"}
    assert "decoded" not in call("inspect", made).output


def test_compress_measures_both(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, asked = measuring.measure, []

    def measure(path: Path, engine: str, tokens: int, threads: int) -> measuring.Cost:
        asked.append((path.name, engine))
        if engine == "wasm":
            return honest(path, engine, tokens, threads)  # a fresh process that imports no PyTorch
        return measuring.cost(path, engine, tokens)

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(measuring, "_forget_peak", lambda: None)
    arguments = ("compress", work / "checkpoint", "-o", tmp_path / "m.walsh", "--tokens", 3)
    record = json.loads(call(*arguments, "--json").output)
    assert asked == [("checkpoint", "torch"), ("m.walsh", "torch"), ("m.walsh", "wasm")]
    first, *others = record["costs"]
    assert (first["model"], first["engine"]) == ("checkpoint", "torch")
    assert first["file"] == record["before"] > record["bytes"]
    assert [row["engine"] for row in others] == ["torch", "wasm"]
    for row in record["costs"]:
        assert row["tokens"] == 3
        assert row["tokens_per_second"] > 0
        assert row["resident"] > 0
        assert row["peak"] is None or row["peak"] >= 0
    table = call(*arguments, "--force").output
    assert "tokens/s" in table
    assert "%" in table


def test_a_failed_measurement_is_told(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_arguments: object) -> measuring.Cost:
        raise BackendError("no engine here")

    monkeypatch.setattr(measuring, "measure", measure)
    text = call("compress", work / "checkpoint", "-o", tmp_path / "m.walsh").output
    assert "no engine here" in text
    assert (tmp_path / "m.walsh").is_file()
    monkeypatch.undo()
    with pytest.raises(BackendError, match="could not be measured"):
        measuring.measure(tmp_path / "none", "wasm", 3, 1)


def test_compress_refuses_what_a_file_cannot_hold(work: Path, tmp_path: Path) -> None:
    floats = save(tmp_path / "floats", ternary=False)
    assert "ternary" in call("compress", floats, "-o", tmp_path / "x.walsh", "--no-measure", code=64).stderr
    spin = ("compress", work / "checkpoint", "-o", tmp_path / "x", "--no-measure", "--format", "spin")
    assert "int8 rows" in call(*spin, "--rows", "int4", code=64).stderr
    assert "no such folder" in call("compress", work / "checkpoint", "-o", tmp_path / "a" / "b", code=64).stderr
    assert not list(tmp_path.glob("x*"))
    call(*spin)
    assert read_source(tmp_path / "x").kind == "spin"


def test_verify_tells_a_sound_file_from_a_damaged_one(work: Path, tmp_path: Path) -> None:
    sound = call("verify", work / "model.walsh", "--tokens", 2)
    assert "equal to the bit" in sound.output
    assert "all the same" in sound.output
    assert "fail" not in sound.output
    content = bytearray((work / "model.walsh").read_bytes())
    content[-7] ^= 4
    damaged = tmp_path / "damaged.walsh"
    damaged.write_bytes(content)
    record = json.loads(call("verify", damaged, "--json", code=1).output)
    assert not record["sound"]
    assert [(row["check"], row["outcome"]) for row in record["checks"]] == [("python", "fail"), ("engine", "fail")]
    assert "sha256" in record["checks"][0]["detail"]
    call("verify", tmp_path / "nothing", code=64)
    call("compress", tmp_path / "nothing", code=64)
    assert "checkpoint" in call("verify", work / "checkpoint").output
    (tmp_path / "empty").mkdir()
    call("verify", tmp_path / "empty", code=1)


def test_convert_goes_round(work: Path, tmp_path: Path) -> None:
    """Checkpoint, .walsh, SPIN, published checkpoint, .walsh: the same strict file at the end."""
    start = work / "model.walsh"
    call("convert", start, "-o", tmp_path / "one")
    call("convert", tmp_path / "one", "-o", tmp_path / "two.spin")
    call("convert", tmp_path / "two.spin", "-o", tmp_path / "three.pt")
    call("convert", tmp_path / "three.pt", "-o", tmp_path / "four.walsh", "--set", "activation_bits=8")
    call("convert", tmp_path / "two.spin", "-o", tmp_path / "five.walsh")
    assert "SPIN version 4" in call("verify", tmp_path / "two.spin", code=_float_engine()).output
    four = read_source(tmp_path / "four.walsh")
    first = read_source(start)
    assert four.config == first.config
    assert four.strict is not None
    assert first.strict is not None
    for name, codes in first.strict.items():
        if name.startswith("blocks.") and name.endswith(".codes"):
            assert (four.strict[name] == codes).all()
    assert read_source(tmp_path / "five.walsh").config.activation_bits is None
    refused = _float_engine()
    said = call("verify", tmp_path / "five.walsh", code=refused).output
    assert ("StrictError" if refused else "float activations") in said
    if not refused:
        told = call("verify", tmp_path / "five.walsh", "--tokens", 1, code=1).output
        assert "only strict arithmetic" in told
    for arguments in ((start, "-o", tmp_path / "one"), (start, "-o", start, "--force")):
        call("convert", *arguments, code=64)
    call("convert", start, "-o", tmp_path / "one", "--force")
    call("convert", tmp_path / "one", "--to", "walsh", "-o", tmp_path / "three.pt", "--force")
    assert (tmp_path / "three.pt").read_bytes() == start.read_bytes()


def _float_engine() -> int:
    """1 while the engine refuses float activations, 0 once it takes them."""
    from walsh.codec.fuzz import BASE, painted
    from walsh.codec.writer import dump
    from walsh.engine.model import Engine

    config = BASE | {"algebra": "octonion"}
    try:
        Engine(dump(painted(config), config | {"activation_bits": None}))
    except WalshError:
        return 1
    return 0


def test_inspect_files(work: Path, tmp_path: Path) -> None:
    text = call("inspect", work / "model.walsh").output
    assert "stored as walsh" in text
    assert "tokenizer bytes" in text
    assert "blocks.0.ffn.up.codes" in call("inspect", work / "model.walsh", "--tensors").output
    call("convert", work / "checkpoint", "-o", tmp_path / "x.spin")
    record = json.loads(call("inspect", tmp_path / "x.spin", "--json").output)
    assert record["file"]["version"] == 4
    assert {row["packing"] for row in record["file"]["tensors"]} == set("EBSN")
    assert record["parameters"] == json.loads(call("inspect", work / "checkpoint", "--json").output)["parameters"]


def test_generate_from_a_file_in_both_engines(work: Path) -> None:
    common = ("--prompt", "ab", "--max-tokens", 20, "--seed", 3, "--quiet")
    file = call("generate", work / "model.walsh", *common, "--engine", "wasm").stdout
    assert call("generate", work / "model.walsh", *common, "--engine", "torch", "--device", "cpu").stdout == file
    assert call("generate", work / "checkpoint", *common, "--strict").stdout == file
    shown = call("generate", work / "model.walsh", *common[:-1])
    assert shown.stdout == "ab" + file
    assert "on wasm, cpu, strict" in shown.stderr
    two = call("generate", work / "model.walsh", *common, "--prompt", "x", "--json")
    assert [row["prompt"] for row in json.loads(two.stdout)] == ["ab", "x"]
    assert json.loads(two.stdout)[0]["text"] == file[:-1]
    long = call("generate", work / "model.walsh", "--prompt", "ab" * 20, "--max-tokens", 1)
    assert "prompt 0 has 40 tokens, the context 16" in long.stderr
    call("generate", work / "none.walsh", "--engine", "wasm", code=64)
    for engine in ("wasm", "torch"):
        same = [
            call("generate", path, *common, "--seed", seed, "--device", "cpu", "--engine", engine).stdout
            for path in (work / "model.walsh", work / "checkpoint")
            for seed in (2**64 + 3, 3 - 2**64, 3)
        ]
        assert len(set(same[:3])) == len(set(same[3:])) == 1  # seeds count modulo 2^64


def test_a_foreign_file_is_named_with_what_was_expected(work: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.walsh").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for command in ("generate", "inspect"):
        told = call(command, tmp_path / "picture.walsh", code=64).stderr
        assert told.startswith(f"error: {tmp_path / 'picture.walsh'}: a header of ")
        assert "is it a .walsh file, whole?" in told
    told = call("inspect", work / "checkpoint" / "model.safetensors", code=64).stderr
    assert "of a checkpoint give the folder" in told


def test_options_that_would_not_be_heeded_are_refused(work: Path, tmp_path: Path) -> None:
    file, folder, made = work / "model.walsh", work / "checkpoint", tmp_path / "made.pt"
    for arguments in (
        ("inspect", folder, "--vocabulary", 5),
        ("inspect", folder, "--characters", "ab"),
        ("inspect", file, "--characters", "ab"),
        ("verify", file, "--characters", "ab"),
        ("convert", file, "-o", made, "--characters", "ab"),
        ("convert", file, "-o", made, "--set", "n_head=8"),
    ):
        assert "leave" in call(*arguments, code=64).stderr
    assert not made.exists()
    call("convert", file, "-o", made)
    told = call("convert", made, "-o", tmp_path / "two.walsh", "--set", "nonsense=1", code=64).stderr
    assert "setting 'nonsense': expected one of" in told
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in call("analyze", folder, "--text", tmp_path / "binary", code=64).stderr


def test_convert_keeps_the_run_that_it_reads(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(work / "checkpoint", run / "checkpoint")
    assert "is the source" in call("convert", run, "-o", run / "checkpoint", "--force", code=64).stderr
