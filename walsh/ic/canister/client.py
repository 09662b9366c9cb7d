"""A client of the canister in the replica in miniature: typed calls, uploads, sessions.

    client = deploy(Path("model.walsh").read_bytes())
    session = client.start(temperature=0.8, seed=1)
    client.call("prefill", session, {"Text": "Once upon a time"}, [])
    print(client.generate(session, 50).text)

Values are those of :mod:`walsh.ic.candid`: a variant is a dictionary with one entry, an ``opt`` a list of none or one.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import Any

from walsh.errors import WalshError
from walsh.ic.candid import Interface
from walsh.ic.canister.module import INTERFACE, MODULE, named_module, read_record
from walsh.ic.replica import Canister, Receipt, Replica

Value = Any
"""A Candid value."""

PARAMETERS = (
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
"""Of ``start_session``."""


class RefusedError(WalshError):
    """The canister answered ``Err``.

    Attributes:
        kind: which error of ``walsh.did``.
        detail: what it says.
    """

    def __init__(self, kind: str, detail: Value) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Answer:
    """New tokens of a session, their text, and the state: its name, and its detail if it is finished."""

    tokens: list[int]
    text: str
    state: str
    finish: Value


@functools.cache
def interface() -> Interface:
    """The interface of the shipped module."""
    return Interface(INTERFACE.read_text(encoding="utf-8"))


@functools.cache
def module() -> bytes:
    """The shipped module, checked against its record."""
    read_record()
    return MODULE.read_bytes()


def parameters(**given: Value) -> Value:
    """``SessionParams``; what is not given is absent."""
    unknown = given.keys() - set(PARAMETERS)
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: expected {', '.join(PARAMETERS)}")
    return {name: [given[name]] if name in given else [] for name in PARAMETERS}


def encode_init(access: str | None = None, limits: dict[str, int] | None = None) -> bytes:
    """The argument of installation: ``Open`` or ``AllowList``, and limits, complete."""
    from walsh.ic.candid import encode

    given = {"access": [{access: None}] if access else [], "limits": [limits] if limits else []}
    return encode(interface().init, ([given],))


@dataclass(frozen=True)
class Client:
    """One caller's view of a canister.

    Attributes:
        canister: installed in a replica.
        sender: principal that calls; None is the replica's user, who controls the canister.
    """

    canister: Canister
    sender: bytes | None = None

    @property
    def replica(self) -> Replica:
        """Where it runs."""
        return self.canister.replica

    def by(self, sender: bytes) -> Client:
        """The same canister seen by another caller."""
        return replace(self, sender=sender)

    def call(self, method: str, *values: Value) -> Value:
        """Call a method and return what stands in ``Ok``, or the value of a method that cannot be refused.

        Raises:
            RefusedError: for ``Err``.
            RejectError: if the platform rejected the call.
        """
        argument = interface().encode_arguments(method, *values)
        send = self.canister.query if interface().method(method).is_query else self.canister.update
        return unwrap(interface().decode_results(method, send(method, argument, self.sender))[0])

    @property
    def receipt(self) -> Receipt:
        """Of the message executed last."""
        return self.replica.receipts[-1]

    # -- models

    def upload(self, file: bytes, first: int = 0) -> None:
        """Upload a file, or what is missing of it, and begin to load it.

        Args:
            file: its bytes.
            first: how many missing chunks to send; 0 for all, and the commit.

        Raises:
            RefusedError: of ``begin_upload``, ``put_chunk`` and ``commit_upload``.
        """
        digest = hashlib.sha256(file).digest()
        status = self.call("upload_status")
        if status["phase"] == {"Idle": None} or bytes(status["sha256"]) != digest:
            status = self.call("begin_upload", len(file), digest)
        size = status["chunk_bytes"]
        while status["missing"]:
            index = status["missing"][0]
            status = self.call("put_chunk", index, file[index * size : (index + 1) * size])
            first -= 1
            if first == 0:
                return
        while status["phase"] != {"Idle": None}:
            status = self.call("commit_upload", [])

    def load(self) -> Value:
        """Load until the model is ready, and return its health."""
        health = self.call("load", [])
        while "Loading" in health["phase"]:
            health = self.call("load", [])
        return health

    # -- sessions

    def start(self, **given: Value) -> int:
        """A session; see ``SessionParams``."""
        return int(self.call("start_session", parameters(**given))["session"])

    def prefill(self, session: int, prompt: str | list[int], budget: int | None = None) -> Value:
        """Add a prompt and read all of it, in as many messages as it takes."""
        given = {"Text": prompt} if isinstance(prompt, str) else {"Tokens": prompt}
        progress = self.call("prefill", session, given, _option(budget))
        while progress["pending"]:
            progress = self.call("prefill", session, {"Tokens": []}, _option(budget))
        return progress

    def generate(self, session: int, tokens: int, budget: int | None = None) -> Answer:
        """Draw tokens, in as many messages as it takes."""
        drawn: list[int] = []
        text = ""
        while True:
            progress = self.call("generate", session, tokens - len(drawn), _option(budget))
            drawn += progress["tokens"]
            text += progress["text"]
            state, finish = next(iter(progress["state"].items()))
            if len(drawn) >= tokens or state == "Finished":
                return Answer(drawn, text, state, finish)

    def wait(self, session: int, rounds: int = 1000) -> Answer:
        """Let rounds pass until the background has drawn what was submitted."""
        for _ in range(rounds):
            output = self.call("poll", session, 0)
            if not output["wanted"]:
                break
            self.replica.tick()
        state, finish = next(iter(output["state"].items()))
        return Answer(list(output["tokens"]), output["text"], state, finish)


def _option(value: Value) -> list[Value]:
    return [] if value is None else [value]


def unwrap(value: Value) -> Value:
    """What stands in ``Ok``.

    Raises:
        RefusedError: for ``Err``.
    """
    if isinstance(value, dict) and len(value) == 1:
        if "Ok" in value:
            return value["Ok"]
        if "Err" in value:
            kind, detail = next(iter(value["Err"].items()))
            raise RefusedError(kind, detail)
    return value


def deploy(file: bytes | None = None, replica: Replica | None = None, access: str = "Open") -> Client:
    """Install the shipped module and, if there is a file, upload and load it; with names where they are recorded.

    Args:
        file: a ``.walsh`` file.
        replica: where; a new one by default.
        access: who may start sessions: ``Open`` or ``AllowList``.

    Raises:
        RefusedError: if the file is refused.
    """
    replica = replica or Replica()
    code = module() if replica.breakdown is None else named_module()
    client = Client(replica.install(code, encode_init(access)))
    if file is not None:
        client.upload(file)
        client.load()
    return client
