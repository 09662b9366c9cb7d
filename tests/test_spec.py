"""The worked examples of SPEC.md, executed as one session."""

import doctest
import re
from pathlib import Path

import pytest

SPEC = Path(__file__).resolve().parent.parent / "conformance" / "SPEC.md"
BLOCKS = re.findall(r"^```pycon\n(.*?)^```", SPEC.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 14


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_example_gives_what_the_page_says(index: int) -> None:
    # The page is read from the top, so an example may use the names of those before it.
    report: list[str] = []
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS[: index + 1]):
        test = parser.get_doctest(block, names, f"SPEC.md example {number}", str(SPEC), 0)
        runner.run(test, out=report.append, clear_globs=False)
        names = test.globs
    assert not report, "".join(report)
