"""``walsh bench``: what cannot be compared or kept is refused before anything is timed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from walsh.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "../elsewhere"], "expected a plain name"),
        (["--store", ".."], "expected a plain name"),
        (["--budget", "nan"], "not a finite number of seconds"),
        (["--budget", "0"], "not in the range"),
        (["--out", "/no/such/folder/rows.jsonl"], "the folder /no/such/folder does not exist"),
        (["--against", "EMPTY"], "expected one header of schema 1"),
    ],
)
def test_it_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    def timed(*_: object) -> None:
        raise AssertionError("something was about to be timed")

    monkeypatch.setattr("walsh.commands.bench._setting", timed)
    (tmp_path / "empty").write_text("")
    given = [str(tmp_path / "empty") if word == "EMPTY" else word for word in arguments]
    found = CliRunner().invoke(main, ["bench", *given])
    assert found.exit_code == 64, found.output
    assert message in found.output
