"""Fair comparisons: variants of one model, brought to one budget, trained on the same batches from several seeds.

A variant changes keys of the base model. Its width and feed-forward are then chosen so that it costs what the baseline
costs: parameters, packed bytes, or multiplications per token. At equal width nothing is brought to anything: the same
model with and without a part. Seeds pair the runs: seed s gives every variant the same
batches in the same order, so differences between variants are taken within seeds.

    difference_s = loss(variant, s) - loss(baseline, s),   interval = mean +- t_{n-1} * std / sqrt(n)

Intervals are widened for the number of comparisons (Bonferroni). Below five seeds there is no verdict: an interval from
three numbers is honest and says little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console

from walsh.data import Dataset
from walsh.errors import FormatError, ParameterError
from walsh.measure.provenance import gather, machine_name, utc_now
from walsh.model.accounting import count_multiplications, count_parameters, packed_bytes
from walsh.model.checkpoint import present
from walsh.model.config import WalshConfig
from walsh.training.config import TrainingConfig, explain, load_config, read_toml
from walsh.training.distributed import World
from walsh.training.loop import Trainer
from walsh.training.metrics import read_metrics
from walsh.training.run import data_folder, prepare_data

ENOUGH_SEEDS = 5
"""From here on an interval that excludes zero is called a difference."""

CONFIDENCE = 0.95

COSTS: dict[str, Callable[[WalshConfig], int]] = {
    "parameters": count_parameters,
    "bytes": packed_bytes,
    "flops": count_multiplications,
}


class AblationConfig(BaseModel):
    """A comparison.

    Attributes:
        base: training configuration, a path beside this file.
        match: what all variants have the same amount of.
        seeds: one run of every variant each.
        baseline: the variant that the others are compared with and brought to.
        variants: keys of the model that each one changes.
        overrides: ``SECTION.KEY=VALUE`` that change the base for every variant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    match: Literal["parameters", "bytes", "flops", "width"]
    seeds: list[int] = Field(min_length=1)
    baseline: str
    variants: dict[str, dict[str, Any]] = Field(min_length=2)
    overrides: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> AblationConfig:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}: expected one of {', '.join(self.variants)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: expected each once")
        return self


@dataclass(frozen=True)
class Run:
    """What one run of one variant gave.

    Attributes:
        variant, seed: which run.
        bits_per_byte: of the whole held-out text at the end.
        parameters, bytes, multiplications: of the model; the last per token.
        flops: of the training: 6 per multiplication and token.
        seconds: it took.
        n_embd, ffn_hidden: widths it was given.
        curve: [flops, bits per byte] of every evaluation.
        conditions: commit, versions, machine and date.
    """

    variant: str
    seed: int
    bits_per_byte: float
    parameters: int
    bytes: int
    multiplications: int
    flops: float
    seconds: float
    n_embd: int
    ffn_hidden: int
    curve: list[list[float]]
    conditions: str = ""


@dataclass(frozen=True)
class Comparison:
    """A variant over all seeds.

    Attributes:
        variant: its name.
        runs: of it, by seed.
        mean, spread: of bits per byte; spread is the standard deviation, NaN for one seed.
        difference: from the baseline, mean over seeds.
        low, high: its interval; NaN for one seed.
        verdict: ``better``, ``worse``, ``no difference shown``, ``baseline``, or why there is none.
    """

    variant: str
    runs: tuple[Run, ...]
    mean: float
    spread: float
    difference: float
    low: float
    high: float
    verdict: str


def load_ablation(path: Path, overrides: Sequence[str] = ()) -> tuple[AblationConfig, TrainingConfig]:
    """Read a comparison and its base; overrides of the base come after the comparison's own.

    Raises:
        ParameterError: a file that is missing, malformed, or does not validate.
    """
    try:
        config = AblationConfig.model_validate(read_toml(path))
    except ValidationError as error:
        raise ParameterError(f"{path}: {explain(error, AblationConfig)}") from None
    return config, load_config(path.parent / config.base, [*config.overrides, *overrides])


def size_variants(config: AblationConfig, base: TrainingConfig, vocab_size: int) -> dict[str, WalshConfig]:
    """The model of every variant, at the cost of the baseline's, or at the widths of the base.

    Raises:
        ParameterError: a variant that is wrong, or cannot come within 5 % of the budget.
    """

    def make(name: str, **widths: int) -> WalshConfig:
        model = {**base.model, **config.variants[name], **widths}
        return base.model_copy(update={"model": model}).make_model_config(vocab_size)

    if config.match == "width":
        return {name: make(name) for name in config.variants}
    cost = COSTS[config.match]
    budget = cost(make(config.baseline))
    return {name: make(name) if name == config.baseline else _fit(name, make, cost, budget) for name in config.variants}


def _fit(name: str, make: Callable[..., WalshConfig], cost: Callable[[WalshConfig], int], budget: int) -> WalshConfig:
    """Width and feed-forward with the cost nearest to a budget; among the near ones the usual proportion."""
    start = make(name)
    grain = math.lcm(start.dimension, 2 * start.n_head)
    choices: list[tuple[float, float, WalshConfig]] = []
    for n_embd in range(grain, 8 * start.n_embd + 1, grain):
        for tenths in range(20, 41):
            hidden = max(round(n_embd * tenths / 10 / start.dimension), 1) * start.dimension
            model = make(name, n_embd=n_embd, ffn_hidden=hidden)
            error = abs(cost(model) / budget - 1)
            # Errors below 1 % count as none, so that there the proportion 8 / 3 decides.
            choices.append((max(error, 0.01), abs(hidden / n_embd - 8 / 3), model))
        if cost(make(name, n_embd=n_embd, ffn_hidden=n_embd * 2 // grain * grain or grain)) > 2 * budget:
            break
    error, _, model = min(choices, key=lambda choice: choice[:2])
    if error > 0.05:
        raise ParameterError(
            f"variant {name!r}: no width comes within 5 % of the budget (nearest {error:.0%} off); change n_layer or "
            "n_head"
        )
    return model


def run_ablation(
    config: AblationConfig, base: TrainingConfig, folder: Path, world: World, console: Console, quiet: bool = False
) -> list[Run]:
    """Train what ``folder/results.jsonl`` lacks and return all runs; seeds outside, so that pairs come early."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = prepare_data(base.data, data_folder(base.data, folder), console)
    models = size_variants(config, base, dataset.tokenizer.vocab_size)
    results = folder / "results.jsonl"
    runs = read_runs(results) if results.exists() else []
    for seed in config.seeds:
        for name, model in models.items():
            if any((run.variant, run.seed) == (name, seed) for run in runs):
                continue
            if not quiet:
                console.print(f"seed {seed}: {name}, {model.n_embd} wide, {count_parameters(model):,} parameters")
            run = _train(name, seed, model, base, dataset, folder, world, console)
            runs.append(run)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(run)) + "\n")
            if not quiet:
                console.print(f"  {run.bits_per_byte:.4f} bits a byte in {run.seconds:.0f} s", highlight=False)
    return [run for run in runs if run.seed in config.seeds and run.variant in models]


def _train(
    name: str,
    seed: int,
    model: WalshConfig,
    base: TrainingConfig,
    dataset: Dataset,
    folder: Path,
    world: World,
    console: Console,
) -> Run:
    given = {key: "none" if value is None else value for key, value in model.to_dict().items() if key != "vocab_size"}
    given = {key: value for key, value in given.items() if not (key == "ste_clip" and value == "none")}
    training = base.training.model_copy(update={"seed": seed, "tensorboard": False})
    evaluation = base.evaluation.model_copy(update={"sample_tokens": 0})
    one = base.model_copy(update={"model": given, "training": training, "evaluation": evaluation})
    place = folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    resume = (present(place / "checkpoint") / "checkpoint.json").exists()
    trainer = Trainer(one, dataset, place, world, console, resume=resume, quiet=True)
    outcome = trainer.train()
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt
    multiplications = count_multiplications(model)
    per_step = 6.0 * multiplications * trainer.global_batch * trainer.length
    records = [r for r in read_metrics(place / "metrics.jsonl") if r["kind"] == "evaluation"]
    assert model.ffn_hidden is not None  # a complete configuration has a width
    return Run(
        name,
        seed,
        outcome.evaluation.bits_per_byte if outcome.evaluation else math.inf,
        count_parameters(model),
        packed_bytes(model),
        multiplications,
        per_step * outcome.step,
        outcome.seconds,
        model.n_embd,
        model.ffn_hidden,
        [[per_step * record["step"], record["bits_per_byte"]] for record in records],
        _conditions(world.device.type, seed),
    )


def _conditions(device: str, seed: int) -> str:
    facts = gather(device, seed)
    commit = f"commit {facts['commit'][:12]}{', changed' * facts['dirty']}" if facts["commit"] else "no commit known"
    return f"walsh {facts['walsh']}, {commit}, torch {torch.__version__}, {machine_name(facts)}, {utc_now()[:10]}"


def read_runs(path: Path) -> list[Run]:
    """The runs that a folder holds.

    Raises:
        FormatError: if a line is not a run.
    """
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            runs.append(Run(**json.loads(line)))
        except (ValueError, TypeError):
            raise FormatError(f"{path}: line {number} is not a run; remove it to train that one again") from None
    return runs


def compare(runs: Sequence[Run], baseline: str) -> list[Comparison]:
    """Every variant against the baseline over the seeds that both have, best mean first."""
    names = list(dict.fromkeys(run.variant for run in runs))
    by_name = {name: {run.seed: run for run in runs if run.variant == name} for name in names}
    made = [_compare(name, by_name[name], by_name[baseline], name == baseline, len(names) - 1) for name in names]
    return sorted(made, key=lambda comparison: comparison.mean)


def _compare(name: str, ours: Mapping[int, Run], theirs: Mapping[int, Run], same: bool, comparisons: int) -> Comparison:
    from scipy import stats

    losses = np.array([run.bits_per_byte for run in ours.values()])
    spread = float(losses.std(ddof=1)) if len(losses) > 1 else math.nan
    shared = sorted(ours.keys() & theirs.keys())
    pairs = np.array([(ours[seed].bits_per_byte, theirs[seed].bits_per_byte) for seed in shared]).reshape(-1, 2)
    difference = float((pairs[:, 0] - pairs[:, 1]).mean()) if shared else math.nan
    low = high = math.nan
    if same:
        verdict, difference = "baseline", 0.0
    elif len(shared) < 2:
        verdict = f"none: {len(shared)} paired seed"
    else:
        level = 1 - (1 - CONFIDENCE) / max(comparisons, 1)
        interval = stats.ttest_rel(pairs[:, 0], pairs[:, 1]).confidence_interval(level)
        low, high = float(interval.low), float(interval.high)
        verdict = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
        if len(shared) < ENOUGH_SEEDS:
            verdict = f"none: {len(shared)} of {ENOUGH_SEEDS} seeds"
    return Comparison(name, tuple(ours.values()), float(losses.mean()), spread, difference, low, high, verdict)
