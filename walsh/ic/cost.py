"""What a model costs on the Internet Computer: its file is uploaded to the canister in miniature and measured there.

    instructions per token = embedding + sum over layers(linears + mixer + attention + rest) + head + sampling
                             + its share of a message

Two canisters are measured. One is as a replica runs it: whole messages, pages and system calls included. The other
records call stacks, with pages for free, so that every instruction of a step belongs to a part of the model by the
functions that were on the stack. A line through the shortest and the longest context predicts those in between:
attention reads its cache in tiles of 32 positions.

    fit(context) = a + b * tiles(context),    tiles(context) = ceil((context + 1) / 32)
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from walsh.engine.model import Engine
from walsh.errors import FormatError, ParameterError
from walsh.ic.canister.client import Client, deploy
from walsh.ic.costs import Costs, default_costs
from walsh.ic.replica import Receipt, Replica
from walsh.ic.scenarios import MOST, send

MARGIN = 0.05
"""Part of an update's limit that is kept free when tokens per update are told."""
CONTEXTS = (8, 32, 64, 128, 256)
"""Contexts that are measured by default, as far as the model has them."""
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "seed": 1, "stop_at_end": False}
"""How tokens are drawn here: the defaults of ``walsh generate``."""
TILE = 32

Notify = Callable[[str], None]

_SCOPES = (
    ("embedding", ("12begin_tokens",)),
    ("mixer", ("10head_mixer",)),
    ("attention", ("9attention", "8kv_cache")),
    ("linears", ("6Linear",)),
    ("head", ("10begin_head", "10head_range", "16head_range_batch")),
    ("sampling", ("8sampling",)),
)
"""Parts by identifiers in Rust's names of functions, each with its length before it; the outermost that fits counts."""
_LAYER = "13advance_batch"
_ENGINE = "12walsh_engine"


@dataclass(frozen=True)
class Layer:
    """Instructions of one token in one layer; ``rest`` is norms, gate, rotations and residuals."""

    linears: int
    mixer: int
    attention: int
    rest: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.linears + self.mixer + self.attention + self.rest


@dataclass(frozen=True)
class Token:
    """Exact instructions of one token by part, and what the engine predicts; pages and messages apart.

    Attributes:
        context: tokens before it.
        embedding, layers, head, sampling: its parts.
        predicted: the engine's own estimates by part, which the canister plans its messages with.
    """

    context: int
    embedding: int
    layers: list[Layer]
    head: int
    sampling: int
    predicted: dict[str, int]

    @property
    def total(self) -> int:
        """All parts."""
        return self.embedding + sum(layer.total for layer in self.layers) + self.head + self.sampling


@dataclass(frozen=True)
class Point:
    """Instructions of a token at a context: as measured, and on the line through the ends."""

    context: int
    measured: int
    fit: int


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


@dataclass(frozen=True)
class Report:
    """Everything that ``walsh ic cost`` tells.

    Attributes:
        version, policy: of the cost table and of its pages.
        bytes, sha256: of the file.
        model: what the canister says of it.
        heap_bytes, stable_bytes: of the canister once it is loaded and has one session.
        installing: messages until the model is ready.
        tokens, points: by context; empty where stacks were not recorded.
        context, drawn: of the message that stands for generation: middle context, and new tokens.
        generation: that message; ``one`` is a message of a single token there.
        marginal, fixed: instructions per further token, and of the message itself.
        tokens_per_update: that fit one update with ``MARGIN`` kept free.
        cycles_per_million, usd_per_million: tokens, in messages like ``generation``.
        seconds_per_token: on a subnet that runs a slice a second.
    """

    version: str
    policy: str
    bytes: int
    sha256: str
    model: dict[str, Any]
    heap_bytes: int
    stable_bytes: int
    installing: list[Messages]
    tokens: list[Token]
    points: list[Point]
    context: int
    drawn: int
    generation: Messages
    one: Messages
    marginal: int
    fixed: int
    tokens_per_update: int
    cycles_per_million: int
    usd_per_million: float
    seconds_per_token: float

    def plain(self) -> dict[str, Any]:
        """As JSON writes it."""
        prices = default_costs().prices
        return asdict(self) | {
            "margin": MARGIN,
            "sampling": SAMPLING,
            "prices": {"version": self.version, "nodes": prices.nodes, "usd_per_xdr": prices.usd_per_xdr},
        }


def read_model(path: Path) -> bytes:
    """The bytes of a ``.walsh`` file that the engine accepts.

    Raises:
        FormatError: if the file cannot be read or is damaged; EngineError's kinds for what the engine refuses.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; expected a .walsh file, see `walsh compress --help`") from None
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


def _part(stack: str) -> tuple[str, bool]:
    """The part that a folded stack belongs to, and whether it is within a layer."""
    frames = [frame for frame in stack.split(";") if _ENGINE in frame]
    layer = any(_LAYER in frame for frame in frames)
    for frame in frames:
        for part, names in _SCOPES:
            if any(name in frame for name in names):
                return part, layer
    return ("rest" if layer else "message"), layer


def _parts(client: Client) -> Counter[str]:
    """Instructions by part since this was asked last."""
    sums: Counter[str] = Counter()
    for line in client.canister.folded().splitlines():
        stack, _, amount = line.rpartition(" ")
        part, _ = _part(stack)
        sums[part] += int(amount)
    client.canister.instance.recorder.reset()
    return sums


def free_of_pages(costs: Costs) -> Costs:
    """The same table, pages costing nothing: stacks then hold the code's own instructions and system calls only."""
    pages = {name: replace(policy, access=0, write=0) for name, policy in costs.pages.items()}
    return replace(costs, version=f"{costs.version}, pages free", pages=pages)


def profile_token(client: Client, session: int, engine: Engine, context: int) -> Token:
    """One token of a session that holds a drawn, unread token after ``context`` others, step by step.

    The parts exclude what the messages of these steps cost by themselves.
    """
    client.canister.instance.recorder.reset()
    send(client, "start_forward", session)
    begun = _parts(client)
    layers = []
    for _ in range(engine.n_layer):
        send(client, "process_layers", session, 1)
        found = _parts(client)
        layers.append(Layer(found["linears"], found["mixer"], found["attention"], found["rest"]))
    while not send(client, "finish_forward", session)["tokens"]:
        pass
    ended = _parts(client)
    costs = engine.costs(context)
    predicted = {
        "embedding": costs.begin,
        "layer": costs.layer,
        "head": costs.begin_head + costs.head,
        "sampling": costs.sample,
    }
    return Token(context, begun["embedding"], layers, ended["head"], ended["sampling"], predicted)


def _ids(start: int, stop: int, vocabulary: int) -> list[int]:
    return [(97 * i + 31) % vocabulary for i in range(start, stop)]


def profile(content: bytes, engine: Engine, contexts: Sequence[int], notify: Notify) -> list[Token]:
    """Tokens at some contexts, ascending, by part."""
    client = open_canister(Replica(costs=free_of_pages(default_costs()), breakdown="stacks"))
    client.upload(content)
    client.load()
    session, length, tokens = client.start(**SAMPLING), 0, []
    for context in contexts:
        notify(f"one token at context {context}, by function")
        client.prefill(session, _ids(length, context, engine.vocab_size))
        client.generate(session, 1)
        tokens.append(profile_token(client, session, engine, context))
        length = context + 2
    return tokens


def fit_points(tokens: Sequence[Token]) -> list[Point]:
    """Totals by context beside the line through the first and the last of them."""
    if not tokens:
        return []

    def tiles(context: int) -> int:
        return -(-(context + 1) // TILE)

    first, last = tokens[0], tokens[-1]
    span = tiles(last.context) - tiles(first.context)
    slope = (last.total - first.total) / span if span else 0.0
    return [
        Point(t.context, t.total, round(first.total + slope * (tiles(t.context) - tiles(first.context))))
        for t in tokens
    ]


def choose_contexts(given: Sequence[int], block_size: int) -> list[int]:
    """Contexts to measure: those given, or the default ones that fit.

    Raises:
        ParameterError: for a context that leaves no room for the tokens that are measured, or too near another.
    """
    room = block_size - 2
    if room < 1:
        raise ParameterError(f"block_size {block_size}: expected at least 3 to measure a token after others")
    chosen = sorted(set(given)) or [c for c in CONTEXTS if c <= room] or [room]
    for context in chosen:
        if not 1 <= context <= room:
            raise ParameterError(f"context {context}: expected 1 to {room}, two tokens less than the block size")
    if any(b - a < 3 for a, b in pairwise(chosen)):
        raise ParameterError(f"contexts {chosen}: expected at least 3 tokens between them")
    return chosen


def _generate(client: Client, context: int, drawn: int, vocabulary: int) -> Messages:
    """One message of new tokens, the middle one at ``context``."""
    session = client.start(**SAMPLING)
    client.prefill(session, _ids(0, max(1, context - drawn // 2), vocabulary))
    send(client, "generate", session, 1, [])
    found = 0

    def run() -> None:
        nonlocal found
        found = len(send(client, "generate", session, drawn, [MOST])["tokens"])

    messages = record(client, f"{drawn} tokens in one message", run)
    if found != drawn:
        raise ParameterError(f"{drawn} tokens at context {context}: {found} fit one message; ask for fewer")
    client.call("end", session)
    return messages


def measure(
    content: bytes,
    contexts: Sequence[int] = (),
    drawn: int | None = None,
    split: bool = True,
    notify: Notify = lambda _: None,
) -> Report:
    """Measure a model; see the module.

    Args:
        content: a ``.walsh`` file.
        contexts: where tokens are split into parts; some by default.
        drawn: new tokens of the message that stands for generation; as many as fit, at most 256, by default.
        split: whether to record call stacks, for which the canister is compiled once more.
        notify: told what is being done.

    Raises:
        FormatError: for a damaged file. ParameterError: for contexts or tokens that do not fit the model.
    """
    costs, engine = default_costs(), Engine(content)
    chosen = choose_contexts(contexts, engine.block_size)
    room = engine.block_size - 2
    drawn = min(256, max(1, room // 2)) if drawn is None else drawn
    context = min(max(128, drawn // 2 + 1), room - drawn // 2) if room > drawn else -1
    if context < 1:
        raise ParameterError(f"{drawn} tokens in a message: expected fewer than {room} for this block size")
    notify("compiling the canister with counters")
    client = open_canister()
    notify("uploading and loading the model")
    installing = install_model(client, content)
    [model] = client.call("health")["model"]
    notify(f"{drawn} tokens in one message")
    many = _generate(client, context, drawn, engine.vocab_size)
    one = _generate(client, context, 1, engine.vocab_size)
    health = client.call("health")
    marginal = (many.instructions - one.instructions) // (drawn - 1) if drawn > 1 else many.instructions
    fixed = max(0, one.instructions - marginal)
    usable = int((1 - MARGIN) * costs.limits.update_instructions)
    per_million = round(many.cycles * 1_000_000 / drawn)
    if split:
        notify("compiling the canister with call stacks")
    tokens = profile(content, engine, chosen, notify) if split else []
    engine.close()
    return Report(
        version=costs.version,
        policy=costs.current_pages,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        model={k: v for k, v in model.items() if k not in {"sha256", "bytes"}},
        heap_bytes=int(health["heap_bytes"]),
        stable_bytes=int(health["stable_bytes"]),
        installing=installing,
        tokens=tokens,
        points=fit_points(tokens),
        context=context,
        drawn=drawn,
        generation=many,
        one=one,
        marginal=marginal,
        fixed=fixed,
        tokens_per_update=max(0, usable - fixed) // max(1, marginal),
        cycles_per_million=per_million,
        usd_per_million=costs.prices.usd(per_million),
        seconds_per_token=many.instructions / drawn / costs.limits.slice_instructions,
    )
