"""A run in a log, without a terminal, tells how far it is."""

import io

from rich.console import Console

from walsh.suite.progress import track


def test_without_a_terminal_a_line_every_half_minute(capsys):
    now = [100.0]
    console = Console(file=io.StringIO())
    with track(console, "triton", 8, clock=lambda: now[0]) as steps:
        for seconds in (1, 20, 10, 5, 40):
            now[0] += seconds
            steps.advance()
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["triton: 3 of 8 after 31 s", "triton: 5 of 8 after 76 s"]
    assert captured.out == ""
    assert console.file.getvalue() == ""


def test_nobody_knows_how_many(capsys):
    now = [0.0]
    with track(Console(file=io.StringIO()), "rounds", None, clock=lambda: now[0]) as steps:
        now[0] = 30.0
        steps.reach(70)
    assert capsys.readouterr().err == "rounds: 70 after 30 s\n"


def test_on_a_terminal_a_bar(capsys):
    screen = io.StringIO()
    with track(Console(file=screen, force_terminal=True, width=80), "[odd] name", 2) as steps:
        steps.advance()
        steps.advance()
    assert "[odd] name" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert capsys.readouterr().err == ""
