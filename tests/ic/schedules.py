"""Random schedules: 50 sessions by 10 callers, interleaved; every transcript must equal the sequential one.

    python tests/ic/schedules.py --schedules 10000            deep
    python tests/ic/schedules.py --seconds 60 --seed 20261121  as many as fit

Each session starts, reads its prompt in pieces, draws its tokens in pieces or in the background, is polled on the
way, and ends. In between come rounds of the timer, calls by others, messages that run out of instructions, and
upgrades. One
schedule is decided by its number: a failure names it.
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

from walsh.ic.canister import Client, deploy
from walsh.ic.canister.client import PARAMETERS, interface, module
from walsh.ic.errors import RejectError
from walsh.ic.replica import Ingress, user_id

SESSIONS, CALLERS = 50, 10
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
        return models.expected(list(self.prompt), self.tokens, seed=self.seed, temperature=self.temperature)


SCRIPTS = [
    Script(tuple((7 * i + 3 * j) % 70 for j in range(1 + i % 5)), i, (0.0, 0.7, 1.3)[i % 3], 1 + i % 4)
    for i in range(24)
]


@functools.cache
def encoded(method: str, *values) -> bytes:
    return interface().encode_arguments(method, *(_thawed(value) for value in values))


def _thawed(value):
    """Tuples stand for lists and variants, so that arguments can be remembered."""
    if isinstance(value, tuple) and value and value[0] == "variant":
        return {value[1]: _thawed(value[2])}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


@functools.lru_cache(maxsize=4096)
def decoded(method: str, payload: bytes):
    return interface().decode_results(method, payload)[0]


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
        self.client, self.replica, self.messages = client, client.replica, 0
        self.usual = self.replica.costs

    def send(self, caller: bytes, method: str, *values):
        """The answer."""
        self.messages += 1
        ingress = self.replica.submit(self.client.canister, method, encoded(method, *values), caller, inspect=False)
        self.replica.step()
        return decoded(method, answer_of(ingress))

    def look(self, caller: bytes, method: str, *values):
        self.messages += 1
        return decoded(method, self.client.canister.query(method, encoded(method, *values), caller))

    def starve(self, instructions: int | None) -> None:
        limits = self.usual.limits
        wanted = limits.update_instructions if instructions is None else instructions
        limits = dataclasses.replace(limits, update_instructions=wanted)
        self.replica.costs = dataclasses.replace(self.usual, limits=limits)

    def upgrade(self) -> None:
        self.client.canister.upgrade(module())
        self.client.load()


class Talk:
    """One session, action by action."""

    def __init__(self, world: World, script: Script, caller: bytes, rng: random.Random) -> None:
        self.world, self.script, self.caller, self.rng = world, script, caller, rng
        self.session: int | None = None
        self.read = self.submitted = self.done = False

    def act(self) -> None:
        """One message, or two."""
        send, script = functools.partial(self.world.send, self.caller), self.script
        budget = self.rng.choice([(), (1,), (3_000_000,)])
        if self.session is None:
            given = {"seed": [script.seed], "temperature": [script.temperature]}
            argument = interface().encode_arguments("start_session", {name: [] for name in PARAMETERS} | given)
            ingress = self.world.replica.submit(
                self.world.client.canister, "start_session", argument, self.caller, inspect=False
            )
            self.world.messages += 1
            self.world.replica.step()
            self.session = decoded("start_session", answer_of(ingress))["Ok"]["session"]
        elif not self.read:
            answer = send("prefill", self.session, ("variant", "Tokens", script.prompt), budget)
            assert answer["Ok"]["length"] == len(script.prompt)
            self.read = True
        else:
            self.draw(send, budget)

    def draw(self, send, budget: tuple[int, ...]) -> None:
        heard = self.world.look(self.caller, "poll", self.session, 0)["Ok"]
        tokens = list(heard["tokens"])
        assert tokens == self.script.expected[: len(tokens)], (tokens, self.script)
        left = self.script.tokens - len(tokens)
        if left == 0:
            assert send("end", self.session) == {"Ok": None}
            self.done = True
        elif heard["wanted"]:
            if self.rng.random() < 0.1:
                send("cancel", self.session)
            else:
                self.world.replica.tick()
        elif self.rng.random() < 0.5:
            send("submit", self.session, left)
        else:
            send("generate", self.session, self.rng.randint(1, left), budget)


def run(world: World, number: int) -> None:
    """One schedule."""
    rng = random.Random(number)
    talks = [Talk(world, rng.choice(SCRIPTS), CALLER_IDS[i % CALLERS], rng) for i in range(SESSIONS)]
    upgrade_at = rng.randrange(2000)  # most schedules end before
    steps = 0
    while talks:
        steps += 1
        talk = rng.choice(talks)
        chance = rng.random()
        if steps == upgrade_at:
            world.upgrade()
        if chance < 0.02 and talk.session is not None:
            other = rng.choice([caller for caller in CALLER_IDS if caller != talk.caller])
            assert "NotFound" in world.look(other, "poll", talk.session, 0)["Err"]
            assert "NotFound" in world.send(other, "generate", talk.session, 1, ())["Err"]
        elif chance < 0.05:
            world.starve(rng.choice([700_000, 1_200_000, 2_500_000]))
            with contextlib.suppress(OutOfInstructions):
                talk.act()
            world.starve(None)
        else:
            talk.act()
        if talk.done:
            talks.remove(talk)
    health = world.client.call("health")
    assert health["sessions"] == 0, health


def make_world() -> World:
    client = deploy(models.file())
    limits = client.call("limits") | {"sessions_per_caller": 50, "tokens_per_day": 10**9, "batch": 8}
    client.call("set_limits", limits)
    client.replica.cycles = 1 << 100
    client.canister.cycles = 1 << 100
    return World(client)


def play(schedules: int, seconds: float, seed: int) -> tuple[int, int]:
    """(schedules played, messages): as many as asked for, or as fit."""
    world, started, played = make_world(), time.monotonic(), 0
    for number in range(schedules):
        if time.monotonic() - started > seconds:
            break
        try:
            run(world, seed * 1_000_000 + number)
        except Exception as error:
            raise AssertionError(f"schedule {number} of seed {seed}: {type(error).__name__}: {error}") from error
        played += 1
        if not sys.stdout.isatty():
            continue
        print(f"\r{played} schedules, {world.messages} messages", end="", flush=True)
    return played, world.messages


def seed_of_the_day() -> int:
    return int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=seed_of_the_day())
    given = parser.parse_args()
    started = time.monotonic()
    played, messages = play(given.schedules, given.seconds, given.seed)
    seconds = time.monotonic() - started
    print(
        f"\n{played} schedules of {SESSIONS} sessions: all transcripts equal"
        f" ({messages} messages, seed {given.seed}, {seconds:.0f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
