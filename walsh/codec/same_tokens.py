"""The same tokens everywhere: one file in both engines, greedy and drawn by seed, token by token.

    python -m walsh.codec.same_tokens MODEL.walsh [TOKENS]        20 prompts, 200 tokens each

Strict arithmetic makes them equal by construction; this looks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from walsh.engine.model import Sampling
from walsh.errors import RangeError, StrictError
from walsh.model.language import LanguageModel
from walsh.model.loaded import load

LONGER = "<longer than the context>"
"""Stands for a text of more tokens than the model's context."""

PROMPTS = (
    "",
    "The ",
    "Once upon a time",
    "café",
    "naïve Ωμέγα Straße",
    "🙂👍🏽 and 🇩🇪",
    "你好世界。",
    "नमस्ते दुनिया",
    "def f(x):\n    return x",
    "  leading and  double  spaces",
    "\n\n\t",
    "1234567890 3.14159",
    "I'll we've they're don't",
    "ALL CAPITALS",
    "a",
    "\u0000\u007f\u200d",
    "e\u0301 is not é",
    "She said: \u201cNo\u201d\u2014and left\u2026",
    "http://example.org/?q=1&r=2#top",
    LONGER,
)

SAMPLINGS = {
    "greedy": Sampling(),
    "by seed": Sampling(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=2**63 + 12345),
}


@dataclass(frozen=True)
class Comparison:
    """One prompt in both engines.

    Attributes:
        prompt: as in ``PROMPTS``.
        sampling: a key of ``SAMPLINGS``.
        tokens: how many were compared.
        difference: place and tokens of the first difference, or what one engine refused and the other did not.
        refused: what both refused; "" if neither.
    """

    prompt: str
    sampling: str
    tokens: int
    difference: str = ""
    refused: str = ""


def _text(prompt: str, model: LanguageModel) -> str:
    return ("The longest of all. " * model.config.block_size) if prompt == LONGER else prompt


def _draw(model: LanguageModel, prompt: str, count: int, sampling: Sampling) -> tuple[list[int], str]:
    """(the tokens, what was refused)."""
    try:
        ids = model.encode(_text(prompt, model)) or [model.tokenizer.end_token if model.tokenizer else 0]
        return [*ids, *model.tokens(ids, count, sampling)], ""
    except RangeError as error:  # a character that the vocabulary lacks
        return [], type(error).__name__


def compare(
    first: LanguageModel, second: LanguageModel, prompts: Sequence[str] = PROMPTS, count: int = 200
) -> Iterator[Comparison]:
    """Every prompt under every sampling, prompts' own tokens included.

    Raises:
        StrictError: a model with float activations, whose tokens may differ.
    """
    for model in (first, second):
        if not model.strict:
            raise StrictError("a model with float activations: only strict arithmetic gives the same tokens everywhere")
    for name, sampling in SAMPLINGS.items():
        for prompt in prompts:
            (mine, refused), (theirs, also) = (_draw(model, prompt, count, sampling) for model in (first, second))
            pairs = enumerate(zip(mine, theirs, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), None if len(mine) == len(theirs) else 0)
            difference = "" if at is None else f"token {at}: {mine[at:][:1]} and {theirs[at:][:1]}"
            if refused != also:
                difference = f"{first.engine} {refused or 'went on'}, {second.engine} {also or 'went on'}"
            yield Comparison(prompt, name, len(mine), difference, refused)


def compare_file(
    path: Path, count: int = 200, prompts: Sequence[str] = PROMPTS, notify: Callable[[Comparison], None] | None = None
) -> list[Comparison]:
    """:func:`compare` of one file or checkpoint in the Wasm engine and in PyTorch."""
    found = []
    for one in compare(load(path, "wasm"), load(path, "torch", strict=True), prompts, count):
        found.append(one)
        if notify is not None:
            notify(one)
    return found


def describe(one: Comparison) -> str:
    """One line."""
    result = one.difference or (f"both refuse it: {one.refused}" if one.refused else f"{one.tokens} tokens, the same")
    return f"{'DIFFERENT' if one.difference else 'same':<9} {one.sampling:<8} {one.prompt[:40]!r}: {result}"


if __name__ == "__main__":
    results = compare_file(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 200,
        notify=lambda one: print(describe(one), flush=True),
    )
    sys.exit(any(one.difference for one in results))
