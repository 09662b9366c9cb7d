"""The random schedules of the day; ``schedules.py`` plays them longer, and whole."""

import os

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")
import schedules

SCHEDULES = int(os.environ.get("WALSH_SCHEDULES", "1000"))


def test_interleaved_transcripts_are_the_sequential_ones(capsys):
    seed = schedules.seed_of_the_day()
    played, world = schedules.play(SCHEDULES, float("inf"), seed)
    with capsys.disabled():
        print(f" [{played} schedules, {world.messages} messages, {world.upgrades} upgrades, seed {seed}]", end="")
    assert played == SCHEDULES


def test_sessions_from_beginning_to_end():
    played, world = schedules.play(5, float("inf"), schedules.seed_of_the_day(), whole=True)
    assert played == 5
    assert world.messages > 5 * 3 * schedules.SESSIONS
