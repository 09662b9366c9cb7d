"""Training configurations: one TOML file, every key validated, nothing ignored.

Sections ``[model]`` (the keys of ``WalshConfig`` without ``vocab_size``, which the tokenizer decides), ``[data]``,
``[optimizer]``, ``[schedule]``, ``[training]``, ``[evaluation]``. An unknown key is an error that names the nearest
valid one; a key may be overridden on the command line as ``section.key=value``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from walsh.errors import ParameterError
from walsh.model.config import WalshConfig


class _Section(BaseModel):
    """A section: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(_Section):
    """What to train on.

    Attributes:
        corpus: a name of ``walsh.data.open_corpus``.
        tokenizer: ``characters``, ``bytes`` or ``gpt2``; the corpus's own choice if absent.
        folder: where the token files go; ``data/<corpus>`` under the output folder's parent if absent.
        limit: documents to take at most, for streamed corpora.
    """

    corpus: str = "pydoc"
    tokenizer: Literal["characters", "bytes", "gpt2"] | None = None
    folder: Path | None = None
    limit: int | None = Field(default=None, gt=0)


class OptimizerConfig(_Section):
    """AdamW (Loshchilov and Hutter, 2019); decay on weight matrices only.

    Attributes:
        learning_rate: at the peak of the schedule.
        weight_decay: per step, times the learning rate.
        beta1, beta2, epsilon: of Adam.
        gradient_clip: largest norm of the gradient, 0 for none.
    """

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    gradient_clip: float = Field(default=1.0, ge=0)


class ScheduleConfig(_Section):
    """Learning rate over steps.

    Attributes:
        kind: ``cosine``, or ``two_stage`` (linear in two halves, the second lower and without decay: BitNet b1.58).
        warmup_steps: of linear rise from 0.
        minimum: of the peak, at the end.
        second_stage: two_stage only: where the second stage begins, as a fraction of the steps.
        second_peak: two_stage only: learning rate at the beginning of the second stage, of the peak.
    """

    kind: Literal["cosine", "two_stage"] = "cosine"
    warmup_steps: int = Field(default=100, ge=0)
    minimum: float = Field(default=0.1, ge=0, le=1)
    second_stage: float = Field(default=0.5, gt=0, lt=1)
    second_peak: float = Field(default=0.6, gt=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleConfig:
        idle = sorted(self.model_fields_set & {"second_stage", "second_peak"})
        if self.kind != "two_stage" and idle:
            raise ValueError(
                f"{idle[0]} has no meaning for kind {self.kind!r}: expected kind 'two_stage', or no such key"
            )
        return self


class EvaluationConfig(_Section):
    """What is looked at while it trains; every count is in optimizer steps.

    Attributes:
        interval: between evaluations.
        batches: of the validation data per evaluation; 0 for all of it.
        sample_tokens: length of the sample drawn at each evaluation; 0 for none.
        prompt: of the sample.
        temperature: of the sample.
        stated: bits per byte of all held-out text below which the finished run is known to end.
    """

    interval: int = Field(default=200, gt=0)
    batches: int = Field(default=20, ge=0)
    sample_tokens: int = Field(default=200, ge=0)
    prompt: str = "The "
    temperature: float = Field(default=0.8, ge=0)
    stated: float | None = Field(default=None, gt=0)


class RunConfig(_Section):
    """The loop.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences per micro-batch and process.
        gradient_accumulation: micro-batches per step.
        dtype: of the arithmetic (autocast); parameters stay float32. float16 uses a gradient scaler.
        activation_checkpointing: recompute blocks in the backward instead of keeping their activations.
        compile: torch.compile the blocks.
        chunk_size: tokens per chunk of the loss.
        seed: of initialisation and data order.
        checkpoint_interval: steps between checkpoints; one is always written at the end and on Ctrl-C.
        divergence: stop if the smoothed loss exceeds this many times its best value (0: never).
        tensorboard: also write TensorBoard events.
        shard: with more than one process: ``ddp`` or ``fsdp``.
    """

    steps: int = Field(default=2000, gt=0)
    batch_size: int = Field(default=16, gt=0)
    gradient_accumulation: int = Field(default=1, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    activation_checkpointing: bool = False
    compile: bool = False
    chunk_size: int = Field(default=1024, gt=0)
    seed: int = Field(default=1337, ge=0)
    checkpoint_interval: int = Field(default=500, gt=0)
    divergence: float = Field(default=3.0, ge=0)
    tensorboard: bool = True
    shard: Literal["ddp", "fsdp"] = "ddp"


class TrainingConfig(_Section):
    """A whole configuration; see the sections."""

    model: dict[str, Any] = Field(default_factory=dict)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: RunConfig = RunConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.schedule.warmup_steps >= self.training.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}: expected less than training.steps, "
                f"{self.training.steps}"
            )
        if "vocab_size" in self.model:
            raise ValueError("model.vocab_size: leave it out; the tokenizer decides it")
        self.make_model_config(vocab_size=2)  # what is wrong in it is said now, not after hours of preparing data
        return self

    def make_model_config(self, vocab_size: int) -> WalshConfig:
        """The model's configuration for a tokenizer of this size; ``"none"`` stands for None, which TOML lacks."""
        given = {key: None if value == "none" else value for key, value in self.model.items()}
        return WalshConfig.from_dict({**given, "vocab_size": vocab_size})


def parse_config(document: Mapping[str, Any], where: str) -> TrainingConfig:
    """Validate a configuration.

    Args:
        document: as TOML has it.
        where: it comes from, for messages.

    Raises:
        ParameterError: for an unknown key, a wrong type, a value out of range or a contradiction.
    """
    try:
        return TrainingConfig.model_validate(document)
    except ValidationError as error:
        raise ParameterError(f"{where}: {explain(error)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The document of a TOML file.

    Raises:
        ParameterError: if the file is missing or malformed.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror}; see configs/ for examples") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not TOML: {error}") from None


def load_config(path: Path, overrides: Iterable[str] = ()) -> TrainingConfig:
    """Read a TOML file, with ``section.key=value`` overrides (values in TOML's syntax, or plain text).

    Raises:
        ParameterError: if the file is missing or malformed, or does not validate.
    """
    document = read_toml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise ParameterError(f"override {override!r}: expected section.key=value, such as training.steps=100")
        members = document.setdefault(section, {})
        if not isinstance(members, dict):
            raise ParameterError(f"override {override!r}: {section} is not a section")
        members[name] = _value(text.strip())
    return parse_config(document, str(path))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def explain(error: ValidationError, model: type[BaseModel] = TrainingConfig) -> str:
    """The first complaint, in one line, with the nearest valid key for an unknown one.

    Args:
        error: of pydantic.
        model: that was validated.
    """
    first = error.errors()[0]
    location = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"key {location!r} is missing"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{location} is {first['input']!r}: {message}" if location else message
    keys: list[str] = list(model.model_fields)
    if len(first["loc"]) > 1:
        section = model.model_fields[str(first["loc"][0])].annotation
        keys = list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else keys
    near = difflib.get_close_matches(str(first["loc"][-1]), keys, n=1, cutoff=0.0)
    hint = f"the nearest valid key is {near[0]!r}" if near else f"valid keys: {', '.join(keys)}"
    return f"unknown key {location!r}; {hint}"
