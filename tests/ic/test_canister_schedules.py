"""Some random schedules of the day; ``schedules.py`` plays thousands."""

import os

import pytest

pytest.importorskip("wasmtime")
pytest.importorskip("icp_candid")
import schedules


def test_interleaved_transcripts_are_the_sequential_ones(capsys):
    seed = schedules.seed_of_the_day()
    seconds = float(os.environ.get("WALSH_SCHEDULE_SECONDS", "10"))
    played, messages = schedules.play(1000, seconds, seed)
    with capsys.disabled():
        print(f" [{played} schedules of {schedules.SESSIONS} sessions, {messages} messages, seed {seed}]", end="")
    assert played > 0
