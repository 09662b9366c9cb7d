"""Generation: batches, endings, long prompts, and every edge that crashed elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from walsh.errors import ParameterError, RangeError
from walsh.kernels import torch as kernels
from walsh.model.config import WalshConfig
from walsh.model.generation import SamplingConfig, generate, stream
from walsh.model.transformer import Walsh

CONFIG = WalshConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=31, activation_bits=None)
PROMPTS = [[3], [1, 2, 3, 4, 5], [30, 0], list(range(11)), [7] * 16]


def make_model(**changes: Any) -> Walsh:
    model = Walsh(WalshConfig.from_dict(CONFIG.to_dict() | changes), seed=1).double()
    with torch.no_grad():
        # Rows of the embedding as large as the features make confident, varied choices.
        model.get_parameter("embedding.weight").mul_(20)
    return model


def by_definition(model: Walsh, prompt: list[int], count: int, sampling: SamplingConfig, row: int) -> list[int]:
    """Token by token without a cache: a full pass over the window that the rule of the module leaves visible."""
    window = model.config.block_size
    tokens, first, answer = list(prompt), max(len(prompt) - window, 0), []
    for _ in range(count):
        if len(tokens) - first > window:
            first = len(tokens) - window // 2
        logits = model(torch.tensor([tokens[first:]]))[:, -1].float().detach()
        token = int(
            kernels.sample(
                logits,
                torch.tensor([tokens]),
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                sampling.repetition_penalty,
                sampling.seed + row,
                len(tokens),
            )[0]
        )
        if token in sampling.stop:
            break
        answer.append(token)
        tokens.append(token)
    return answer


SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0.0),
    "everything": SamplingConfig(temperature=1.3, top_k=7, top_p=0.9, repetition_penalty=1.2, seed=2**63 - 5),
    "stop": SamplingConfig(temperature=2.0, seed=5, stop=(4, 11, 12, 25)),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("bits", [None, 8])
def test_a_batch_of_unequal_prompts_equals_one_by_one_and_the_definition(sampling: SamplingConfig, bits: Any) -> None:
    model = make_model(activation_bits=bits)
    answers = generate(model, PROMPTS, 26, sampling)  # far past the context, so that every sequence starts anew
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        assert answer == by_definition(model, prompt, 26, sampling, row)
        alone = SamplingConfig(**vars(sampling) | {"seed": sampling.seed + row})
        assert generate(model, [prompt], 26, alone) == [answer]
    lengths = {len(answer) for answer in answers}
    assert lengths == {26} if not sampling.stop else len(lengths) > 1


def test_streaming_yields_each_token_as_it_comes() -> None:
    model = make_model()
    seen: list[list[int]] = [[] for _ in PROMPTS]
    for number, steps in enumerate(stream(model, PROMPTS, 5, SAMPLINGS["greedy"])):
        assert [step.sequence for step in steps] == list(range(len(PROMPTS)))
        for step in steps:
            seen[step.sequence].append(step.token)
        assert all(len(tokens) == number + 1 for tokens in seen)
    assert seen == generate(model, PROMPTS, 5, SAMPLINGS["greedy"])


def test_edges_that_crash_elsewhere() -> None:
    # Item 8: top_k = 0, temperature = 0, prompt longer than the context, max_new_tokens = 0.
    model = make_model()
    assert generate(model, [[1, 2]], 0) == [[]]
    assert generate(model, [], 5) == []
    assert [len(a) for a in generate(model, [[1]], 3, SamplingConfig(top_k=0, temperature=1.0))] == [3]
    assert generate(model, [[1]], 3, SamplingConfig(top_k=31)) == generate(model, [[1]], 3, SamplingConfig(top_k=0))
    assert generate(model, [[1]], 3, SamplingConfig(top_k=1)) == generate(model, [[1]], 3, SAMPLINGS["greedy"])
    said: list[str] = []
    long = [(5 * i) % 31 for i in range(40)]
    answer = generate(model, [[1], long], 2, SAMPLINGS["greedy"], said.append)
    assert said == ["prompt 1 has 40 tokens, the context 16: only the last 16 are seen"]
    assert answer[1] == by_definition(model, long, 2, SAMPLINGS["greedy"], 1)
    everything = SamplingConfig(temperature=1e-30)
    assert generate(model, [[1]], 3, everything) == generate(model, [[1]], 3, SAMPLINGS["greedy"])


def test_the_first_token_may_stop() -> None:
    model = make_model()
    (first,) = generate(model, [[1]], 1, SAMPLINGS["greedy"])
    assert generate(model, [[1]], 9, SamplingConfig(temperature=0.0, stop=(first[0],))) == [[]]


@pytest.mark.parametrize(
    ("prompts", "count", "sampling", "error"),
    [
        ([[]], 1, {}, ParameterError),
        ([[1]], -1, {}, ParameterError),
        ([[31]], 1, {}, RangeError),
        ([[1]], 1, {"temperature": -0.1}, ParameterError),
        ([[1]], 1, {"temperature": float("nan")}, ParameterError),
        ([[1]], 1, {"top_k": -1}, ParameterError),
        ([[1]], 1, {"top_p": 0.0}, ParameterError),
        ([[1]], 1, {"repetition_penalty": 0.0}, ParameterError),
    ],
)
def test_bad_arguments_are_refused(prompts: Any, count: int, sampling: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        generate(make_model(), prompts, count, SamplingConfig(**sampling))
