"""Receipts: the same messages to the canister in miniature and to a PocketIC server, and the counters of both compared.

The canister's answers carry what ``performance_counter(0)`` read at the end of each message. In the replica in
miniature that is the prediction, on a PocketIC server it is measured by the platform's own code; tolerance 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from walsh.ic.canister.client import Client, deploy, encode_init, interface, module, unwrap
from walsh.ic.pocketic import PocketIc, Server, find_server

Send = Callable[[str, bytes], bytes]
"""A method and its Candid bytes to those of the reply."""

_SESSION: dict[str, list[Any]] = {
    name: []
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "seed",
        "max_tokens",
        "stop_tokens",
        "stop_texts",
        "stop_at_end",
        "capacity",
    )
}


@dataclass(frozen=True)
class Line:
    """Instructions of one message as predicted, and as the server counted."""

    message: str
    predicted: int
    counted: int

    @property
    def equal(self) -> bool:
        """Whether they are the same."""
        return self.predicted == self.counted


def scenario(send: Send, content: bytes) -> list[tuple[str, int]]:
    """A model uploaded, loaded and talked to: (message, instructions) of those that tell their count."""
    counts: list[tuple[str, int]] = []

    def call(name: str, *values: Any) -> Any:
        found = unwrap(interface().decode_results(name, send(name, interface().encode_arguments(name, *values)))[0])
        if isinstance(found, dict) and "instructions" in found:
            counts.append((name, int(found["instructions"])))
        return found

    status = call("begin_upload", len(content), hashlib.sha256(content).digest())
    size = status["chunk_bytes"]
    for index in range(status["chunks"]):
        status = call("put_chunk", index, content[index * size : (index + 1) * size])
    while status["phase"] != {"Idle": None}:
        status = call("commit_upload", [])
    while "Loading" in (health := call("load", []))["phase"]:
        pass
    [model] = health["model"]
    ids = [(97 * i + 31) % model["vocab_size"] for i in range(min(8, model["block_size"] - 8))]
    session = call("start_session", _SESSION | {"stop_at_end": [False]})["session"]
    call("prefill", session, {"Tokens": ids}, [])
    call("generate", session, 1, [])
    call("generate", session, 4, [])
    call("start_forward", session)
    for _ in range(model["n_layer"]):
        call("process_layers", session, 1)
    call("finish_forward", session)
    call("end", session)
    return counts


def predict(content: bytes) -> tuple[Client, list[tuple[str, int]]]:
    """The scenario in the replica in miniature."""
    client = deploy()
    queries = {name for name, method in interface().methods.items() if method.is_query}

    def send(name: str, argument: bytes) -> bytes:
        return (client.canister.query if name in queries else client.canister.update)(name, argument)

    return client, scenario(send, content)


def compare(predicted: list[tuple[str, int]], counted: list[tuple[str, int]]) -> list[Line]:
    """Both side by side; a message that only one of them has counts 0 in the other."""
    lines = []
    for place in range(max(len(predicted), len(counted))):
        ours = predicted[place] if place < len(predicted) else ("", 0)
        theirs = counted[place] if place < len(counted) else ("", 0)
        same = ours[0] == theirs[0] or not ours[0] or not theirs[0]
        name = (ours[0] or theirs[0]) if same else f"{ours[0]} / {theirs[0]}"
        lines.append(Line(name, ours[1], theirs[1]))
    return lines


def on_server(url: str, content: bytes, sender: bytes) -> list[tuple[str, int]]:
    """The scenario in an instance of a PocketIC server."""
    instance = PocketIc(url)
    try:
        canister = instance.install(module(), encode_init("Open"), sender)
        return scenario(lambda name, argument: instance.update(canister, name, argument, sender), content)
    finally:
        instance.close()


def obtain(content: bytes) -> list[Line]:
    """A receipt from the server that ``POCKET_IC_BIN`` names.

    Raises:
        BackendError: if there is none, before anything else is done, or if it does not do what it is asked.
        RejectError: if it rejects a call.
    """
    server = Server(find_server())
    try:
        client, predicted = predict(content)
        return compare(predicted, on_server(server.url, content, client.replica.user))
    finally:
        server.close()
