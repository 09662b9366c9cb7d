"""Random schedules: 50 sessions by 10 callers, interleaved; every transcript must equal the sequential one.

    python tests/ic/schedules.py --schedules 10000                the deep run
    python tests/ic/schedules.py --seconds 60 --seed 20261121     as many as fit
    python tests/ic/schedules.py --whole --schedules 20           every session from its beginning to its end

A schedule is 50 messages, each about a session drawn at random among the 50 that stand open in one canister, in any
phase that earlier schedules left them in: start, read a prompt, draw tokens in pieces, in the background or step by
step, look, cancel, end. A session that ended is followed by another one. In between come rounds of the timer, calls
by others, messages that run out of instructions, and upgrades. Tokens are compared at every answer that has some; at
last all sessions are played to their ends and nothing may be left. With ``--whole`` a schedule is all of that for 50
sessions, some 400 messages. Everything follows from seed and number: a failure says how to play it again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import models
from answers import Answers

from walsh.ic.canister import Client, deploy
from walsh.ic.canister.client import PARAMETERS, interface, module
from walsh.ic.canister.module import INTERFACE
from walsh.ic.errors import RejectError
from walsh.ic.replica import Ingress, user_id

SESSIONS, CALLERS, MESSAGES = 50, 10, 50
CALLER_IDS = [user_id(f"caller {i}") for i in range(CALLERS)]


@dataclasses.dataclass(frozen=True)
class Script:
    """What one session says, and what it must hear."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float
    tokens: int

    @functools.cached_property
    def expected(self) -> list[int]:
        # More than are asked for: the background may have drawn what its owner asks for a second time.
        return models.expected(list(self.prompt), 4 * self.tokens, seed=self.seed, temperature=self.temperature)


SCRIPTS = [
    Script(tuple((7 * i + 3 * j) % 70 for j in range(1 + i % 5)), i, (0.0, 0.7, 1.3)[i % 3], 1 + i % 4)
    for i in range(24)
]


@functools.cache
def encoded(method: str, *values) -> bytes:
    return interface().encode_arguments(method, *(_thawed(value) for value in values))


def _thawed(value):
    """Tuples stand for lists, variants and parameters, so that arguments can be remembered."""
    if isinstance(value, Script):
        return {name: [] for name in PARAMETERS} | {"seed": [value.seed], "temperature": [value.temperature]}
    if isinstance(value, tuple) and value and value[0] == "variant":
        return {value[1]: _thawed(value[2])}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


class OutOfInstructions(Exception):  # noqa: N818  what happens in a schedule is no error of it
    """A message was taken back, as it should be."""


def answer_of(ingress: Ingress) -> bytes:
    """The payload of a reply.

    Raises:
        OutOfInstructions: if the message ran out of them; any other rejection is a failure of the schedule.
    """
    try:
        return ingress.result()
    except RejectError as error:
        if "instructions" in error.message:
            raise OutOfInstructions from error
        raise


class World:
    """A canister, and messages to it one by one."""

    def __init__(self, client: Client) -> None:
        self.client, self.replica, self.messages, self.upgrades = client, client.replica, 0, 0
        self.usual = self.replica.costs
        self.answers = Answers(INTERFACE.read_text(encoding="utf-8"))

    def send(self, caller: bytes, method: str, *values):
        """The answer."""
        self.messages += 1
        ingress = self.replica.submit(self.client.canister, method, encoded(method, *values), caller, inspect=False)
        self.replica.step()
        return self.answers(answer_of(ingress))

    def look(self, caller: bytes, method: str, *values):
        self.messages += 1
        return self.answers(self.client.canister.query(method, encoded(method, *values), caller))

    def starve(self, instructions: int | None) -> None:
        limits = self.usual.limits
        wanted = limits.update_instructions if instructions is None else instructions
        limits = dataclasses.replace(limits, update_instructions=wanted)
        self.replica.costs = dataclasses.replace(self.usual, limits=limits)

    def upgrade(self) -> None:
        self.upgrades += 1
        self.client.canister.upgrade(module())
        self.client.load()


class Talk:
    """One session, action by action."""

    def __init__(self, world: World, script: Script, caller: bytes) -> None:
        self.world, self.script, self.caller = world, script, caller
        self.session: int | None = None
        self.read = self.done = False
        self.produced = self.wanted = 0

    def act(self, rng: random.Random) -> None:
        """One message, or two."""
        send, script = functools.partial(self.world.send, self.caller), self.script
        budget = rng.choice([(), (1,), (3_000_000,)])
        if self.session is None:
            self.session = send("start_session", script)["Ok"]["session"]
        elif not self.read:
            answer = send("prefill", self.session, ("variant", "Tokens", script.prompt), budget)
            assert answer["Ok"]["length"] == len(script.prompt)
            self.read = True
        elif self.produced >= script.tokens:
            heard = self.world.look(self.caller, "poll", self.session, 0)["Ok"]
            assert heard["tokens"] == script.expected[: heard["produced"]], (heard, script)
            assert send("end", self.session) == {"Ok": None}
            self.done = True
        else:
            self.draw(rng, budget)

    def draw(self, rng: random.Random, budget: tuple[int, ...]) -> None:
        """A step towards the next token."""
        left = self.script.tokens - self.produced
        send = functools.partial(self.world.send, self.caller)
        chance = rng.random()
        if self.wanted and chance < 0.4:
            self.world.replica.tick()
            self.world.messages += 2
            self.hear(self.world.look(self.caller, "poll", self.session, 0))
        elif self.wanted and chance < 0.5:
            self.hear(send("cancel", self.session))
        elif chance < 0.7:
            self.hear(send("generate", self.session, rng.randint(1, left), budget))
        elif chance < 0.8:
            steps = (("start_forward",), ("process_layers", 1), ("process_layers", 9), ("finish_forward",))
            method, *count = rng.choice(steps)
            self.hear(send(method, self.session, *count))
        elif not self.wanted:
            self.hear(send("submit", self.session, left))

    def hear(self, answer) -> None:
        """Compare tokens with those of the sequential transcript; a step may come at a wrong time."""
        if "Err" in answer:
            assert "WrongState" in answer["Err"], answer
            return
        heard = answer["Ok"]
        end = heard["offset"] + len(heard["tokens"]) if "offset" in heard else heard["produced"]
        tokens = heard["tokens"]
        assert end <= 4 * self.script.tokens
        assert tokens == self.script.expected[end - len(tokens) : end], (heard, self.script)
        self.produced, self.wanted = heard["produced"], heard["wanted"]

    def intrude(self, rng: random.Random) -> None:
        """Somebody else tries."""
        other = rng.choice([caller for caller in CALLER_IDS if caller != self.caller])
        assert "NotFound" in self.world.look(other, "poll", self.session, 0)["Err"]
        assert "NotFound" in self.world.send(other, "generate", self.session, 1, ())["Err"]


class Crowd:
    """50 sessions by 10 callers; see the module."""

    def __init__(self, world: World, rng: random.Random, follow: bool) -> None:
        self.world, self.follow = world, follow
        self.talks = [Talk(world, rng.choice(SCRIPTS), CALLER_IDS[i % CALLERS]) for i in range(SESSIONS)]

    def step(self, rng: random.Random) -> None:
        """A message about a session drawn at random, or something that comes in between."""
        talk, chance = rng.choice(self.talks), rng.random()
        if chance < 0.0002:
            self.world.upgrade()
        elif chance < 0.02 and talk.session is not None:
            talk.intrude(rng)
        elif chance < 0.05:
            self.world.starve(rng.choice([400_000, 900_000, 1_800_000]))
            with contextlib.suppress(OutOfInstructions):
                talk.act(rng)
            self.world.starve(None)
        else:
            talk.act(rng)
        if talk.done:
            self.talks.remove(talk)
            if self.follow:
                self.talks.append(Talk(self.world, rng.choice(SCRIPTS), talk.caller))

    def finish(self, rng: random.Random) -> None:
        """Play every session to its end."""
        self.follow = False
        while self.talks:
            self.step(rng)
        health = self.world.client.call("health")
        assert health["sessions"] == 0, health


def make_world() -> World:
    client = deploy(models.file())
    limits = client.call("limits") | {"sessions_per_caller": 50, "tokens_per_day": 10**9, "batch": 8}
    client.call("set_limits", limits)
    client.replica.cycles = 1 << 100
    client.canister.cycles = 1 << 100
    return World(client)


def play(schedules: int, seconds: float, seed: int, whole: bool = False) -> tuple[int, World]:
    """(schedules played, their world): as many as asked for, or as fit."""
    world, started, played = make_world(), time.monotonic(), 0
    crowd = Crowd(world, random.Random(seed), follow=True)
    for number in range(schedules):
        if time.monotonic() - started > seconds:
            break
        rng = random.Random(seed * 1_000_000 + number)
        try:
            if whole:
                Crowd(world, rng, follow=False).finish(rng)
            else:
                for _ in range(MESSAGES):
                    crowd.step(rng)
                if number + 1 == schedules:
                    crowd.finish(rng)
        except Exception as error:
            again = f"--seed {seed} --schedules {number + 1}{' --whole' if whole else ''}"
            raise AssertionError(f"schedule {number} ({again}): {type(error).__name__}: {error}") from error
        played += 1
        if sys.stdout.isatty():
            print(f"\r{played} schedules, {world.messages} messages", end="", flush=True)
    return played, world


def seed_of_the_day() -> int:
    return int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=seed_of_the_day())
    parser.add_argument("--whole", action="store_true", help="50 sessions from beginning to end in every schedule")
    given = parser.parse_args()
    started = time.monotonic()
    played, world = play(given.schedules, given.seconds, given.seed, given.whole)
    seconds = time.monotonic() - started
    print(
        f"\n{played} schedules of {SESSIONS} sessions by {CALLERS} callers: all transcripts equal"
        f" ({world.messages} messages, {world.upgrades} upgrades, seed {given.seed}, {seconds:.0f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
