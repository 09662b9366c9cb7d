"""What stands in ``reports/`` and in the README is what the stored rows give, byte for byte."""

from pathlib import Path

from click.testing import CliRunner

from walsh.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_stored_pages_are_rebuilt_byte_for_byte():
    result = CliRunner().invoke(main, ["report", "build", "--check"])
    assert result.exit_code == 0, result.output


def test_the_tables_of_the_readme_are_those_of_the_stored_run():
    result = CliRunner().invoke(main, ["report", "readme", str(ROOT / "README.md"), "--check"])
    assert result.exit_code == 0, result.output
