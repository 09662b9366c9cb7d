"""Damaged files, in bulk; and the fuzzer itself, which must see what it is meant to see."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from walsh.codec import fuzz, reader
from walsh.errors import FormatError

ENGINE = importlib.util.find_spec("wasmtime") is not None


def test_damaged_files_are_refused_or_read_right_by_all_readers() -> None:
    outcome = fuzz.run(5000, seed=20, engine=ENGINE)
    assert outcome.problems == []
    assert 3000 < outcome.refused < 5000


def test_damage_is_reproducible_and_small() -> None:
    content = fuzz.samples()["octonion.walsh"]
    first, again = (fuzz.damage(content, np.random.default_rng([3, 4])) for _ in range(2))
    assert first == again != content


def test_a_reader_that_lets_damage_through_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = reader.load
    monkeypatch.setattr(reader, "load", lambda content, _verify=True: honest(content, False))
    assert any("is not what was written" in line for line in fuzz.run(600, engine=False).problems)


def test_a_reader_that_refuses_too_much_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ENGINE:
        pytest.skip("agreement needs the engine")
    honest = reader.load

    def picky(content: bytes, verify: bool = True) -> Any:
        file = honest(content, verify)
        if not verify:
            raise FormatError("no")
        return replace(file)

    monkeypatch.setattr(reader, "load", picky)
    assert any(line.endswith("the engine: read") for line in fuzz.run(200).problems)


def test_an_untyped_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: bytes, verify: bool = True) -> Any:
        raise KeyError("x")

    sound = reader.load
    calls = iter(range(10_000))
    monkeypatch.setattr(reader, "load", lambda c, v=True: sound(c, v) if next(calls) < 6 else broken(c, v))
    assert any("KeyError" in line for line in fuzz.run(20, engine=False).problems)


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--count", "50", "--seed", "7", "--no-engine"]) == 0
    assert "50 damaged files" in capsys.readouterr().out
