"""Reports: what counts, and what does not."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from walsh.errors import VectorError
from walsh.suite.report import footer, header, read_report, replacing, write_junit, write_report
from walsh.suite.runner import Exit, run_backend
from walsh.suite.vectors import load_suite


@pytest.fixture
def suite(small):
    return load_suite(small, min_cases=1)


@pytest.fixture
def run(toys, suite):
    class Wrong(toys.Butterfly):
        name = "wrong"

        def run(self, op, params, inputs, out):
            super().run(op, params, inputs, out)
            if inputs["x"].dtype == np.int32:
                raise RuntimeError("bell \a")
            if inputs["x"].flat[0] == 1:
                out["y"].fill(np.nan)

    return run_backend(Wrong(), suite.cases, toys.policy)


@pytest.fixture
def report(tmp_path, suite, run, toys):
    path = tmp_path / "report.jsonl"
    first = header(suite, toys.policy, ["walsh"], [run.description], len(suite.cases))
    write_report(path, first, [run], footer([run], Exit.FAILURE, 1.0))
    return path


def test_a_report_reads_back(report, suite):
    found = read_report(report, manifest=suite.digest)
    assert [line["outcome"] for line in found.cases] == ["pass", "fail", "error", "pass"]
    assert found.footer["counts"] == {"wrong": {"pass": 2, "fail": 1, "error": 1}}
    assert found.header["manifest"] == suite.digest
    assert found.header["environment"]["numpy"] == np.__version__
    assert not list(report.parent.glob(".*"))


def edit(path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.pop(), "no footer"),
        (lambda lines: lines.pop(0), "no header"),
        (lambda lines: lines.pop(2), "cases"),
        (lambda lines: (lines.pop(2), lines[-1].update(cases=3)), "3 cases"),
        (lambda lines: lines.insert(2, lines[1]), "cases"),
        (lambda lines: (lines.pop(2), lines.insert(2, lines[1])), "twice"),
        (lambda lines: lines.insert(1, lines[0]), "among the cases"),
        (lambda lines: lines[1].update(outcome="fine"), "fine"),
        (lambda lines: lines[1].update(mood="good"), "mood"),
        (lambda lines: lines[0].update(manifest="0" * 64), "about vectors"),
        (lambda lines: lines.clear(), "no header"),
    ],
)
def test_a_report_that_does_not_count(report, suite, change, message):
    edit(report, change)
    with pytest.raises(VectorError, match=message):
        read_report(report, manifest=suite.digest)


def test_a_cut_line_or_no_file(report, tmp_path):
    report.write_text(report.read_text()[:-5])
    for path in (report, tmp_path / "none"):
        with pytest.raises(VectorError, match="cannot be read"):
            read_report(path)


def test_a_part_is_not_the_whole(tmp_path, suite, toys):
    run = run_backend(toys.Butterfly(), suite.cases[:2], toys.policy)
    path = tmp_path / "part.jsonl"
    write_report(path, header(suite, toys.policy, [], [run.description], 2), [run], footer([run], Exit.CONFORMING, 1))
    assert len(read_report(path, partial=True).cases) == 2
    with pytest.raises(VectorError, match="2 cases"):
        read_report(path)


def test_nothing_is_left_of_a_failed_write(tmp_path):
    path = tmp_path / "report"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("report", "old")]


def test_junit(tmp_path, run):
    path = tmp_path / "junit.xml"
    write_junit(path, [run])
    suite = ElementTree.parse(path).getroot()[0]
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")} == {
        "name": "wrong",
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    assert [child.tag for case in suite for child in case] == ["failure", "error"]
    assert "swapped halves" in suite[1][0].text
    assert suite[2][0].get("message") == "RuntimeError: bell \\x07"
