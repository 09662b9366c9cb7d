"""Text in, text out: a checkpoint with its tokenizer, and generation that streams characters.

text of a sequence = decoded tokens up to, and without, the first stop text
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from walsh.data.tokenizers import Tokenizer, from_dict
from walsh.errors import DataError, ParameterError
from walsh.kernels import torch as kernels
from walsh.model.checkpoint import Checkpoint, load_checkpoint, present
from walsh.model.config import WalshConfig
from walsh.model.generation import SamplingConfig, stream
from walsh.model.stop import StopFilter
from walsh.model.transformer import Walsh


def find_checkpoint(path: Path) -> Path:
    """The folder of a checkpoint, given that folder or the one of its run.

    Raises:
        DataError: if there is none.
    """
    for folder in map(present, (path, path / "checkpoint", path / "best")):
        if (folder / "checkpoint.json").is_file():
            return folder
    raise DataError(f"{path}: no checkpoint there; train one with: walsh train, or convert one with: walsh convert")


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[Walsh, Tokenizer]:
    """The model and tokenizer of a checkpoint, for inference.

    Args:
        path: of its folder or its run's.
        device: to put the weights on.

    Raises:
        DataError, FormatError: no checkpoint, or a damaged one. ParameterError, ShapeError: weights that do not fit the
        configuration beside them.
    """
    return open_model(load_checkpoint(find_checkpoint(path), optimizer=False), device)


def open_model(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> tuple[Walsh, Tokenizer]:
    """The same from a checkpoint in memory."""
    tokenizer = from_dict(checkpoint.tokenizer)
    config = WalshConfig.from_dict(checkpoint.model)
    # A published vocabulary of characters has no end token; it would be the id after the last.
    if tokenizer.end_token > config.vocab_size:
        raise ParameterError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}: expected no more"
        )
    weights = round_weights(checkpoint.weights, config)
    return Walsh(config, weights=weights).to(device).eval(), tokenizer


def round_weights(weights: Mapping[str, Tensor], config: WalshConfig) -> dict[str, Tensor]:
    """Weights in which the ternary ones are int8 codes: the same model, rounded once and not at every token."""
    ternary = {n for n, shape in config.weight_shapes().items() if len(shape) == 3 and ".mixer." not in n}
    return {
        name: kernels.ternary(w, config.rule)[0] if name in ternary and config.ternary and w.is_floating_point() else w
        for name, w in weights.items()
    }


def stream_text(
    model: Walsh,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    stop: Sequence[str] = (),
    notify: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, str]]:
    """Continue texts, piece by piece.

    Args:
        model, tokenizer: of a checkpoint.
        prompts: texts; an empty one begins after an end token, as a document does.
        max_new_tokens: per prompt.
        sampling: how tokens are chosen; the end token ends a sequence too.
        stop: texts that end a sequence and are not shown.
        notify: told in one sentence when a prompt does not fit the context.

    Yields:
        the number of a prompt and the next piece of its continuation.

    Raises:
        RangeError: a character that the tokenizer lacks. ParameterError: as ``generation.stream``.
    """
    sampling = sampling or SamplingConfig()
    sampling = replace(sampling, stop=(*sampling.stop, tokenizer.end_token), vocabulary=tokenizer.vocab_size)
    ids = [tokenizer.encode(prompt).tolist() or [tokenizer.end_token] for prompt in prompts]
    decoders = [tokenizer.stream() for _ in prompts]
    filters = [StopFilter(stop) for _ in prompts]
    for steps in stream(model, ids, max_new_tokens, sampling, notify):
        for step in steps:
            piece = filters[step.sequence].push(decoders[step.sequence].push(step.token))
            if piece:
                yield step.sequence, piece
        if all(one.ended for one in filters):
            return
    for number, (decoder, one) in enumerate(zip(decoders, filters, strict=True)):
        if rest := one.push(decoder.finish()) + one.finish():
            yield number, rest


def generate_text(
    model: Walsh,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    stop: Sequence[str] = (),
    notify: Callable[[str], None] | None = None,
) -> list[str]:
    """The continuation of each prompt; arguments as for :func:`stream_text`."""
    result = [""] * len(prompts)
    for number, piece in stream_text(model, tokenizer, prompts, max_new_tokens, sampling, stop, notify):
        result[number] += piece
    return result
