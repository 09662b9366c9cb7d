"""What a model costs on the Internet Computer: its file is uploaded to the canister in miniature and measured there.

    instructions per token = embedding + sum over layers(linears + mixer + attention + rest) + head + sampling
                             + its share of a message

Two canisters are measured. One is as a replica runs it: whole messages, pages and system calls included. The other
records call stacks, see :mod:`walsh.ic.parts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from walsh.engine.model import Engine
from walsh.errors import ParameterError
from walsh.ic.canister.client import Client, module
from walsh.ic.costs import default_costs
from walsh.ic.parts import Notify, Point, Token, choose_contexts, fit_points, profile
from walsh.ic.recording import SAMPLING, Messages, install_model, open_canister, prompt_ids, record
from walsh.ic.scenarios import MOST, send

MARGIN = 0.05
"""Part of an update's limit that is kept free when tokens per update are told."""
MONTH = 30 * 86_400
"""Seconds for which storage is told."""


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
        module_bytes: of the canister's code.
        storage_cycles_per_month, storage_usd_per_month: heap, stable memory and code for 30 days.
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
    module_bytes: int
    storage_cycles_per_month: int
    storage_usd_per_month: float

    def plain(self) -> dict[str, Any]:
        """As JSON writes it."""
        prices = default_costs().prices
        return asdict(self) | {
            "margin": MARGIN,
            "sampling": SAMPLING,
            "prices": {"version": self.version, "nodes": prices.nodes, "usd_per_xdr": prices.usd_per_xdr},
        }


def _generate(client: Client, context: int, drawn: int, vocabulary: int) -> Messages:
    """One message of new tokens, the middle one at ``context``."""
    session = client.start(**SAMPLING)
    client.prefill(session, prompt_ids(0, max(1, context - drawn // 2), vocabulary))
    send(client, "generate", session, 1, [])
    found = 0

    def run() -> None:
        nonlocal found
        found = len(send(client, "generate", session, drawn, [MOST])["tokens"])

    messages = record(client, f"of {drawn} tokens", run)
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
    sizes = int(health["heap_bytes"]), int(health["stable_bytes"]), len(module())
    storage = costs.prices.storage(sum(sizes), MONTH)
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
        heap_bytes=sizes[0],
        stable_bytes=sizes[1],
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
        module_bytes=sizes[2],
        storage_cycles_per_month=storage,
        storage_usd_per_month=costs.prices.usd(storage),
    )
