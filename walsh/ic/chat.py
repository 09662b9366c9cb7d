"""A conversation with a model in the canister in miniature: every message sent is one of the platform, and is priced.

turn = prefill (the prompt, in as many messages as its budget takes) + generate (new tokens, a few a message)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from walsh.errors import ParameterError
from walsh.ic.canister.client import Client
from walsh.ic.recording import rounds_of

CHUNK = 16
"""New tokens of a message: text appears piece by piece, and pages are shared by this many tokens."""


@dataclass(frozen=True)
class Turn:
    """What an answer took.

    Attributes:
        text, tokens: new ones.
        finish: why the session ended, or None if it can go on.
        messages, instructions, cycles, rounds: of the prompt and the answer together.
        usd: what the cycles cost.
    """

    text: str
    tokens: list[int]
    finish: str | None
    messages: int
    instructions: int
    cycles: int
    rounds: int
    usd: float

    def line(self) -> str:
        """One line about it."""
        each = self.instructions // max(len(self.tokens), 1)
        end = "" if self.finish is None else f", ended: {self.finish}"
        return (
            f"{len(self.tokens)} tokens in {self.messages} messages, {self.instructions:,} instructions ({each:,} per "
            f"new token), {self.cycles:,} cycles = {self.usd:.6f} USD, about {self.rounds} s on chain{end}"
        )


class Chat:
    """A conversation.

    Args:
        client: of a canister with a model.
        sampling: of ``SessionParams``.
    """

    def __init__(self, client: Client, sampling: dict[str, Any] | None = None) -> None:
        self.client, self.sampling = client, sampling or {}
        self.session = client.start(**self.sampling)

    def restart(self) -> None:
        """Forget everything that was said."""
        self.client.call("end", self.session)
        self.session = self.client.start(**self.sampling)

    def opening(self, text: str) -> str | list[int]:
        """What is sent for a text: itself, or for an empty one the end token, with which documents begin.

        Raises:
            ParameterError: for an empty text where the model has no end token.
        """
        if text:
            return text
        [model] = self.client.call("health")["model"]
        if not model["end_token"]:
            raise ParameterError("an empty prompt for a model without an end token: expected at least one character")
        return [int(model["end_token"][0])]

    def say(self, prompt: str | list[int], most: int, show: Callable[[str], None] = lambda _: None) -> Turn:
        """Send a prompt and stream the answer.

        Args:
            prompt: text, or token ids.
            most: new tokens at most.
            show: told every piece of text as it comes.

        Raises:
            RefusedError: if the canister refuses, such as a text for a model without a tokenizer.
        """
        client, costs = self.client, self.client.replica.costs
        before = client.canister.cycles
        client.replica.receipts.clear()
        client.prefill(self.session, self.opening(prompt) if isinstance(prompt, str) else prompt)
        tokens: list[int] = []
        text, finish = "", None
        while len(tokens) < most and finish is None:
            answer = client.generate(self.session, min(CHUNK, most - len(tokens)))
            tokens += answer.tokens
            text += answer.text
            show(answer.text)
            if answer.state == "Finished":
                finish = next(iter(answer.finish)) if isinstance(answer.finish, dict) else str(answer.finish)
        paid = [receipt for receipt in client.replica.receipts if receipt.kind.replicated]
        cycles = before - client.canister.cycles
        return Turn(
            text=text,
            tokens=tokens,
            finish=finish,
            messages=len(paid),
            instructions=sum(receipt.instructions for receipt in paid),
            cycles=cycles,
            rounds=rounds_of(paid, costs),
            usd=costs.prices.usd(cycles),
        )
