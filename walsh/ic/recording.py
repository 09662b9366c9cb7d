"""A canister with a model in the replica in miniature, and what messages to it take.

cycles = balance before - balance after;    rounds = sum over messages of ceil(instructions / slice)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walsh.codec.sources import naming
from walsh.engine.model import Engine
from walsh.errors import FormatError
from walsh.ic.canister.client import Client, deploy
from walsh.ic.costs import Costs
from walsh.ic.replica import Receipt, Replica
from walsh.ic.scenarios import MOST, send

SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "seed": 1, "stop_at_end": False}
"""How tokens are drawn here: the defaults of ``walsh generate``."""


@dataclass(frozen=True)
class Messages:
    """What some messages took: instructions with their parts, cycles with ingress, and rounds of the subnet."""

    name: str
    messages: int
    instructions: int
    code: int
    system: int
    pages: int
    cycles: int
    rounds: int


def read_model(path: Path) -> bytes:
    """The bytes of a ``.walsh`` file that the engine accepts.

    Raises:
        FormatError: if the file cannot be read or is damaged; EngineError's kinds for what the engine refuses.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; expected a .walsh file, see `walsh compress --help`") from None
    with naming(path):
        Engine(content).close()
    return content


def open_canister(replica: Replica | None = None) -> Client:
    """The shipped canister without a model, with quotas that do not stand in a measurement's way."""
    client = deploy(replica=replica)
    limits = client.call("limits") | {"sessions_per_caller": 256, "tokens_per_day": 1 << 40, "model_bytes": 1 << 30}
    client.call("set_limits", limits)
    return client


def rounds_of(receipts: Iterable[Receipt], costs: Costs) -> int:
    """Rounds that messages take one after the other: a slice each."""
    return sum(max(1, math.ceil(r.instructions / costs.limits.slice_instructions)) for r in receipts)


def record(client: Client, name: str, run: Callable[[], None]) -> Messages:
    """What the messages that ``run`` sends take; cycles are what the balance lost."""
    replica, before = client.replica, client.canister.cycles
    replica.receipts.clear()
    run()
    paid = [receipt for receipt in replica.receipts if receipt.kind.replicated]

    def added(part: str) -> int:
        return sum(getattr(receipt, part) for receipt in paid)

    return Messages(
        name=name,
        messages=len(paid),
        instructions=added("instructions"),
        code=added("code"),
        system=added("system"),
        pages=added("pages"),
        cycles=before - client.canister.cycles,
        rounds=rounds_of(paid, replica.costs),
    )


def install_model(client: Client, content: bytes) -> list[Messages]:
    """Upload and load a file, recorded by step."""
    status = send(client, "begin_upload", len(content), hashlib.sha256(content).digest())
    size = status["chunk_bytes"]

    def put() -> None:
        for index in range(status["chunks"]):
            send(client, "put_chunk", index, content[index * size : (index + 1) * size])

    def commit() -> None:
        while send(client, "commit_upload", [MOST])["phase"] != {"Idle": None}:
            pass

    def load() -> None:
        while "Loading" in send(client, "load", [MOST])["phase"]:
            pass

    return [record(client, name, run) for name, run in (("upload", put), ("commit", commit), ("load", load))]


def prompt_ids(start: int, stop: int, vocabulary: int) -> list[int]:
    """Ids of positions ``start`` to ``stop`` of a prompt."""
    return [(97 * i + 31) % vocabulary for i in range(start, stop)]
