"""One token in the canister by part of the model: exact, from call stacks.

    token = embedding + sum over layers (linears + mixer + attention + rest) + head + sampling

Pages cost nothing here, so that every instruction belongs to a part by the functions that were on the stack. A line
through the shortest and the longest context predicts those in between: attention reads its cache in tiles of 32.

    fit(context) = a + b * tiles(context),    tiles(context) = ceil((context + 1) / 32)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from walsh.engine.model import Engine
from walsh.errors import ParameterError
from walsh.ic.canister.client import Client, parameters
from walsh.ic.costs import Costs, default_costs
from walsh.ic.recording import SAMPLING, open_canister, prompt_ids
from walsh.ic.replica import Replica
from walsh.ic.scenarios import send

CONTEXTS = (8, 32, 64, 128, 256)
"""Contexts that are measured by default, as far as the model has them."""
TILE = 32
LAYER_PARTS = ("linears", "mixer", "attention", "rest")

Notify = Callable[[str], None]

_SCOPES = (
    ("embedding", ("12begin_tokens",)),
    ("mixer", ("10head_mixer",)),
    ("attention", ("9attention", "8kv_cache", "5cache")),
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
        predicted: estimates by part, which the canister plans its messages with: ``embedding``, ``head``, ``sampling``,
            and of one layer ``linears``, ``mixer``, ``attention``, ``rest``.
        greedy: instructions of a draw at temperature 0, which ``sampling`` would be then.
    """

    context: int
    embedding: int
    layers: list[Layer]
    head: int
    sampling: int
    predicted: dict[str, int]
    greedy: int = 0

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


def predict(client: Client, context: int) -> dict[str, int]:
    """What the canister expects of a token after ``context`` others; ``layer`` is one layer's four parts together."""
    found = client.call("predict", context, parameters(**SAMPLING))
    parts = {part: int(found[part]) for part in ("embedding", *LAYER_PARTS, "head", "sampling")}
    return parts | {"layer": sum(parts[part] for part in LAYER_PARTS)}


def profile_token(client: Client, session: int, engine: Engine, context: int, greedy: int) -> Token:
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
        layers.append(Layer(*(found[part] for part in LAYER_PARTS)))
    while not send(client, "finish_forward", session)["tokens"]:
        pass
    ended = _parts(client)
    expected = predict(client, context)
    return Token(context, begun["embedding"], layers, ended["head"], ended["sampling"], expected, greedy)


def profile_greedy(client: Client) -> int:
    """Instructions of a draw at temperature 0."""
    session = client.start(temperature=0.0, stop_at_end=False)
    client.prefill(session, [0])
    client.canister.instance.recorder.reset()
    client.generate(session, 1)
    client.call("end", session)
    return _parts(client)["sampling"]


def profile(content: bytes, engine: Engine, contexts: Sequence[int], notify: Notify) -> list[Token]:
    """Tokens at some contexts, ascending, by part."""
    client = open_canister(Replica(costs=free_of_pages(default_costs()), breakdown="stacks"))
    client.upload(content)
    client.load()
    greedy = profile_greedy(client)
    session, length, tokens = client.start(**SAMPLING), 0, []
    for context in contexts:
        notify(f"one token at context {context}, by function")
        client.prefill(session, prompt_ids(length, context, engine.vocab_size))
        client.generate(session, 1)
        tokens.append(profile_token(client, session, engine, context, greedy))
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
