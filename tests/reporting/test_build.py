"""Reports are a function of stored rows, and say what the rows say."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from tests.reporting.conftest import COUNTS, make_run, usual_rows
from walsh.cli import main
from walsh.errors import FormatError
from walsh.measure.rows import read_run, write_run
from walsh.reporting import plots
from walsh.reporting.build import OUTPUTS, build
from walsh.reporting.claims import Claim, counterpart, load_claims
from walsh.reporting.frame import to_frame
from walsh.reporting.inputs import read_material
from walsh.reporting.readme import refresh

ORDER = ["Verdict", "What changed", "Parity matrix", "Speed-ups", "Training step over width",
         "Limits of the machine", "Instructions per token", "Tokens per second and size", "Sizes", "Loss",
         "Kill matrix", "Does the benchmark notice?", "Where the baseline wins", "Published figures", "Rows",
         "Not measured", "Provenance", "How to reproduce"]  # fmt: skip  # one list, not a column


CLAIM = '[[claim]]\nid = "a"\nclaim = "b"\nagainst = "c"\ncommand = "d"\n'


def test_built_again_every_byte_is_the_same(stored, tmp_path):
    for name in ("one", "two"):
        build(stored, tmp_path / "claims.toml", tmp_path / name)
    for name in OUTPUTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_sections_stand_in_their_order_and_hold_what_was_stored(stored, tmp_path):
    build(stored, tmp_path / "claims.toml")
    text = (stored / "report.md").read_text("utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == ORDER
    for expected in ("1 regressions", "needs a GPU", "| 2 | 0.569 | 3.51 |", "2 of 3 seeded bugs", "**0.25 [",
                     "| rope | 1 | **1, 1 survived** |",
                     "| tiny | 10 | 2.5 | 1.9 |", "git checkout " + "c" * 40):  # fmt: skip  # one list, not a column
        assert expected in text, expected


def test_the_page_is_self_contained_and_escapes_what_it_shows(stored, tmp_path):
    build(stored, tmp_path / "claims.toml")
    page = (stored / "report.html").read_text("utf-8")
    assert "Imaginary &lt;CPU&gt; &amp; Co" in page
    assert "<CPU>" not in page
    outside = page.replace("http://www.w3.org/", "")
    assert "http:" not in outside
    assert "https:" not in outside
    assert page.count("<svg ") == 4


def test_the_table_is_tidy_and_comes_back_from_its_file(stored, tmp_path):
    build(stored, tmp_path / "claims.toml")
    frame = pd.read_parquet(stored / "rows.parquet")
    assert len(frame) == len(usual_rows()) == len(pd.read_csv(stored / "rows.csv"))
    assert list(frame.columns[:3]) == ["run", "machine", "op"]
    assert frame.loc[frame.provider == "64 matmuls", "ratio"].tolist() == [0.5]
    assert frame["provenance.commit"].unique().tolist() == ["c" * 40]
    assert json.loads(frame["shape"].iloc[0]) == {"M": 4}
    assert to_frame([("cpu", make_run(usual_rows()))]).shape == frame.shape


def test_claims_stand_beside_their_counterpart_or_a_reason(stored, tmp_path):
    six, memory, loss = load_claims(tmp_path / "claims.toml").claims
    runs = read_material(stored).runs
    assert "walsh torch: 2.00 times as fast as plain [1.96, 2.04]" in counterpart(six, runs)
    assert "64 matmuls: 0.50 times" in counterpart(six, runs)
    assert "40 against 100: -60 %" in counterpart(memory, runs)
    assert counterpart(loss, runs) == "not measured here: needs training"
    paired = [
        {"variant": name, "seed": seed, "bits_per_byte": loss}
        for name, losses in (("with", (1.9, 1.8)), ("without", (2.0, 2.0, 2.0)))
        for seed, loss in enumerate(losses)
    ]
    mixer = Claim("a", "b", "c", "d", ablation="folder", variant="with", variant_without="without")
    found = counterpart(mixer, runs, {"folder": paired})
    assert found.startswith("1.850 against 2.000 bits a byte: -7.5 % (-10.0 to -5.0 % in 2 paired seeds")
    assert counterpart(mixer, runs) == "not measured here: no such ablation is stored"
    assert counterpart(six, [("none", make_run([]))]).startswith("not measured here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLAIM, "no case, no count, no ablation and no reason"),
        ('[[claim]]\nid = "a"\nclam = "b"\n', "unknown keys"),
        (
            '[[claim]]\nid = "a"\nclaim = "b"\nagainst = "c"\ncommand = "d"\ncase = "e"\nfigure = "speed"\n',
            "figure 'speed'",
        ),
        ("[[claim\n", "claims.toml"),
    ],
)
def test_a_wrong_claims_file_is_refused(tmp_path, text, message):
    path = tmp_path / "claims.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        load_claims(path)


def test_the_claims_of_the_project_are_valid_and_complete():
    from walsh.commands.report import ROOT

    claims = {claim.id for claim in load_claims(ROOT / "bench" / "claims.toml").claims}
    assert claims >= {"octonion-linear", "mixer", "kv-cache", "file", "memory", "chunked-loss", "mixer-loss",
                      "tokens-26m", "chain-tokens", "cycles-per-mac"}  # fmt: skip  # one list, not a column


def test_tables_between_markers_are_made_anew(stored):
    text = "before\n<!-- walsh report: linear -->\nold\n<!-- end of walsh report -->\nafter\n"
    after = refresh(text, read_material(stored))
    assert "walsh torch" in after
    assert "old" not in after
    assert after.startswith("before\n<!-- walsh report: linear -->\n| case |")
    assert after.endswith("<!-- end of walsh report -->\nafter\n")
    assert refresh(after, read_material(stored)) == after
    with pytest.raises(FormatError, match="marker 'other'"):
        refresh(text.replace("linear", "other"), read_material(stored))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_commands_build_check_compare_and_refresh(stored, tmp_path):
    claims = ("--claims", tmp_path / "claims.toml")
    assert run("report", "build", stored, *claims, "--check").exit_code == 1
    assert run("report", "build", stored, *claims).exit_code == 0
    assert run("report", "build", stored, *claims, "--check").exit_code == 0
    old, new = stored / "cpu" / "previous.jsonl", stored / "cpu" / "rows.jsonl"
    slower = run("report", "compare", old, new)
    assert slower.exit_code == 1
    assert "regression" in slower.output
    assert run("report", "compare", new, new).exit_code == 0
    document = tmp_path / "README.md"
    document.write_text("<!-- walsh report: jobs -->\n<!-- end of walsh report -->\n", encoding="utf-8")
    assert run("report", "readme", document, "--root", stored, "--check").exit_code == 1
    assert run("report", "readme", document, "--root", stored).exit_code == 0
    assert run("report", "readme", document, "--root", stored, "--check").exit_code == 0


def test_history_shows_a_column_per_run(stored):
    paths = [stored / "cpu" / "previous.jsonl", stored / "cpu" / "rows.jsonl"]
    shown = run("bench", "history", *paths, "--case", "cayley*")
    assert shown.exit_code == 0, shown.output
    assert "2.80" in shown.output
    assert "2.00" in shown.output
    assert "rope" not in shown.output


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(FormatError, match="walsh bench --store"):
        read_material(tmp_path)


def test_a_run_with_problems_shows_them(stored, tmp_path):
    found = read_run(stored / "cpu" / "rows.jsonl")
    found.footer["problems"].append("rope/x: y reached 120 % of a limit")
    write_run(stored / "cpu" / "rows.jsonl", found)
    build(stored, tmp_path / "claims.toml")
    assert "1 problems" in (stored / "report.md").read_text("utf-8")
    assert COUNTS


def test_reports_are_built_without_pytorch(stored, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from walsh.reporting.build import build\n"
        "build(*map(Path, sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", code, str(stored), str(tmp_path / "claims.toml")], check=True)
    assert (stored / "report.html").exists()


def test_ratio_over_width_names_every_width_and_is_the_same_bytes_twice():
    rows = [{"width": 64 << i, "ratio": 0.5 + i, "ratio_low": 0.4 + i, "ratio_high": 0.6 + i} for i in range(3)]
    picture = plots.ratio_over_width(rows, "width0", "times faster")
    assert all(f">{width}<" in picture.svg for width in (64, 128, 256))
    assert picture == plots.ratio_over_width(rows, "width0", "times faster")
