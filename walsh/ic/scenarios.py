"""What generating costs, measured: a canister is talked to in the replica in miniature, and its receipts are added up.

    instructions per token = receipts of the messages / tokens drawn

Nothing is estimated: every figure is that of whole messages, decoding, pages, system calls and answers included.
Models are *painted*, weights by integer formulas: costs depend on shapes, and hardly on values.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from walsh.codec import dump
from walsh.ic.canister.client import Client, deploy, interface, unwrap
from walsh.ic.profile import Row
from walsh.ic.replica import Receipt, Replica
from walsh.reference.strict.export import inverse_frequencies
from walsh.reference.strict.weights import strict_weight_dtype, strict_weight_shapes

GPT2_VOCABULARY = 50257
SHAPES: dict[str, dict[str, Any]] = {
    "hadamard 26.7M": {"algebra": "hadamard", "hadamard_size": 32, "n_head": 32, "head_mixing": True},
    "octonion 29M": {"algebra": "octonion", "n_head": 8},
}
"""The published shapes: 8 layers, 512 wide, GPT-2's vocabulary."""


def config_of(name: str, block_size: int = 1024) -> dict[str, Any]:
    """The configuration of a published shape."""
    common = {"n_layer": 8, "n_embd": 512, "vocab_size": GPT2_VOCABULARY, "block_size": block_size}
    return common | SHAPES[name]


def painted(config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Strict weights by integer formulas: codes in their range, scales near those of trained models."""
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for place, (key, shape) in enumerate(strict_weight_shapes(config).items()):
        index = np.arange(int(np.prod(shape)), dtype=np.int64)
        noise = (index * 2654435761 + 97 * place) >> 7
        if key == "rope.inv_freq":
            weights[key] = inverse_frequencies(2 * shape[0])
        elif strict_weight_dtype(key) == "int8":
            wide = ".mixer." in key or key.startswith(("embedding", "head"))
            most = 127 if wide else 1
            weights[key] = (noise % (2 * most + 1) - most).astype(np.int8).reshape(shape)
        else:
            centre = {"beta": 0.05, "scale": 0.01}.get(key.rpartition(".")[2], 1.0)
            weights[key] = (centre * (0.5 + noise % 1024 / 1024)).astype(np.float32).reshape(shape)
    return weights


def painted_file(config: dict[str, Any]) -> bytes:
    """A ``.walsh`` file of painted weights, the tables as int8 rows."""
    return dump(painted(config), config)


@dataclass(frozen=True)
class Cost:
    """Of some messages.

    Attributes:
        scenario: what was done.
        tokens: that were drawn.
        messages: how many, inspections aside.
        instructions: in all; code + system + pages.
        code, system, pages: its parts.
    """

    scenario: str
    tokens: int
    messages: int
    instructions: int
    code: int
    system: int
    pages: int

    @property
    def per_token(self) -> float:
        """Instructions per drawn token."""
        return self.instructions / max(self.tokens, 1)


def total(scenario: str, tokens: int, receipts: Sequence[Receipt]) -> Cost:
    """Add up receipts of messages that are paid for."""
    paid = [receipt for receipt in receipts if receipt.kind.replicated]
    parts = (sum(getattr(r, part) for r in paid) for part in ("instructions", "code", "system", "pages"))
    return Cost(scenario, tokens, len(paid), *parts)


def measure(client: Client, scenario: str, run: Callable[[], int]) -> Cost:
    """Cost of what ``run`` does; it returns the number of tokens that it drew."""
    client.replica.receipts.clear()
    tokens = run()
    return total(scenario, tokens, list(client.replica.receipts))


def send(client: Client, method: str, *values: Any) -> Any:
    """Run one update without a round, so that no timer rings in between, and return its answer."""
    argument = interface().encode_arguments(method, *values)
    ingress = client.replica.submit(client.canister, method, argument, client.sender, inspect=False)
    client.replica.step()
    return unwrap(interface().decode_results(method, ingress.result())[0])


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Ids of a prompt."""
    return [(97 * i + 31 * seed) % 997 for i in range(length)]


def warmed(client: Client, length: int, seed: int = 0, capacity: int | None = None) -> int:
    """A session that has read a prompt; its cache has room for ``capacity`` tokens, by default as many as the model."""
    session = client.start(seed=seed, **({} if capacity is None else {"capacity": capacity}))
    client.prefill(session, prompt_of(max(length, 1), seed))
    return session


MOST = 39_500_000_000
"""Budget of a message that may use all that the platform gives, less a margin."""


def upload_and_load(client: Client, file: bytes) -> list[Cost]:
    """The way of a file: chunks, its digest, the heap."""
    import hashlib

    costs = []
    status = send(client, "begin_upload", len(file), hashlib.sha256(file).digest())
    size = status["chunk_bytes"]

    def put() -> int:
        for index in range(status["chunks"]):
            send(client, "put_chunk", index, file[index * size : (index + 1) * size])
        return 0

    costs.append(measure(client, "upload", put))
    costs.append(measure(client, "commit", lambda: len(send(client, "commit_upload", [MOST])["missing"])))
    costs.append(measure(client, "load", lambda: 0 * len(send(client, "load", [MOST]))))
    return costs


def single(client: Client, context: int, tokens: int) -> Cost:
    """One message that draws so many tokens, the middle one at this context."""
    session = warmed(client, context - tokens // 2)
    name = f"single, context {context}, {tokens} in one message"
    cost = measure(client, name, lambda: len(send(client, "generate", session, tokens, [MOST])["tokens"]))
    client.call("end", session)
    return cost


def batched(client: Client, sessions: int, context: int, tokens: int) -> Cost:
    """One message that draws so many tokens for each of some sessions."""
    opened = [warmed(client, context - tokens // 2, seed) for seed in range(sessions)]
    for session in opened:
        send(client, "submit", session, tokens)
    name = f"batch of {sessions}, context {context}, {tokens} each in one message"
    cost = measure(client, name, lambda: int(send(client, "work", [MOST])["tokens"]))
    for session in opened:
        client.call("end", session)
    return cost


def one_by_one(client: Client, sessions: int, context: int, messages: int = 4) -> list[Cost]:
    """Messages of one token: alone, and for a batch; caches have room for twice the context, and every page counts."""
    opened = [warmed(client, context, seed, 2 * context) for seed in range(sessions)]

    def alone() -> int:
        return sum(len(send(client, "generate", opened[0], 1, [])["tokens"]) for _ in range(messages))

    def together() -> int:
        drawn = 0
        for _ in range(messages):
            for session in opened:
                send(client, "submit", session, 1)
            client.replica.receipts.clear()
            answer = send(client, "work", [])
            drawn += int(answer["tokens"])
            kept.extend(client.replica.receipts)
        return drawn

    send(client, "generate", opened[0], 1, [])
    first = measure(client, f"single, context {context}, one token a message", alone)
    for session in opened[1:]:
        send(client, "generate", session, messages + 1, [])
    kept: list[Receipt] = []
    drawn = together()
    for session in opened:
        client.call("end", session)
    return [first, total(f"batch of {sessions}, context {context}, one token each a message", drawn, kept)]


def fill_one_update(client: Client, sessions: int, context: int) -> Cost:
    """How many tokens some sessions draw together in one update of the platform's limit."""
    opened = [warmed(client, context, seed) for seed in range(sessions)]
    for session in opened:
        send(client, "submit", session, 1000)
    name = f"one update, {sessions} sessions from context {context}"
    cost = measure(client, name, lambda: int(send(client, "work", [MOST])["tokens"]))
    for session in opened:
        client.call("end", session)
    return cost


def by_function(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Instructions by function, the dearest first."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row.function] += row.instructions
    return sums.most_common()


def prepare(file: bytes) -> tuple[Client, list[Cost]]:
    """A canister with a model, ready to be measured, and what that cost."""
    client = deploy(replica=Replica())
    limits = client.call("limits")
    client.call("set_limits", limits | {"sessions_per_caller": 256, "tokens_per_day": 10**9, "cache_bytes": 3 << 30})
    return client, upload_and_load(client, file)


def layers(client: Client, context: int) -> list[tuple[str, int]]:
    """Cost of one token, block by block: (step, instructions of its message beyond an empty one)."""
    session = warmed(client, context)
    send(client, "generate", session, 1, [])
    steps = []
    empty = measure(client, "empty", lambda: len(send(client, "cancel", session)["tokens"])).instructions

    def step(name: str, method: str, *values: Any) -> None:
        cost = measure(client, name, lambda: len(send(client, method, session, *values)["tokens"]))
        steps.append((name, cost.instructions - empty))

    step("embedding", "start_forward")
    [model] = client.call("health")["model"]
    for layer in range(model["n_layer"]):
        step(f"block {layer}", "process_layers", 1)
    step("head", "score", [])
    step("draw", "finish_forward")
    client.call("end", session)
    return steps


def as_rows(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """Costs as plain dictionaries, with the cost per token."""
    return [dataclasses.asdict(cost) | {"per_token": cost.per_token} for cost in costs]
