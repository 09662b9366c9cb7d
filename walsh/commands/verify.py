"""``walsh verify``: is a file what its format says, and do all readers agree on it?"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from walsh.errors import ParameterError, WalshError
from walsh.suite.display import make_console


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        outcome: ``ok``, ``fail`` or ``skip``.
        detail: one line.
    """

    check: str
    outcome: str
    detail: str


def _try(check: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(check, "ok", work())
    except WalshError as error:
        return Finding(check, "fail", f"{type(error).__name__}: {error}")


def _read(path: Path, kind: str, characters: str | None) -> str:
    """Read everything in Python: bounds, packings, digests, finite numbers, weights of the configuration."""
    from walsh.codec import spin
    from walsh.codec.sources import read_source

    if kind == "spin":
        records, _, version = spin.read_records(path.read_bytes())
        source = read_source(path, characters=characters)
        return f"SPIN version {version}, {len(records)} records, all of one {source.config.algebra} model"
    source = read_source(path, characters=characters)
    if source.file is not None:
        return f".walsh, {len(source.file.stored)} tensors, all digests right, {source.config.algebra}"
    return f"{kind}, {len(source.trained)} tensors, {source.config.algebra}"


def _content(path: Path, kind: str, characters: str | None) -> bytes:
    """The bytes of a .walsh file: those of the file, or those that a SPIN file becomes."""
    from walsh.codec.sources import read_source, strict_form_of
    from walsh.codec.writer import dump

    if kind == "walsh":
        return path.read_bytes()
    source = read_source(path, characters=characters)
    return dump(strict_form_of(source), source.config.to_dict(), source.tokenizer, prefer="speed")


def _engine(content: bytes) -> str:
    from walsh.engine.model import Engine

    engine = Engine(content)
    memory = engine.memory
    return f"loads, layout {engine.layout}, {memory.weights:,} bytes of weights in memory"


CLOSE = 1e-3
"""Of the largest logit: float32 sums in another order, through all layers of a model with float activations."""


def _logits(content: bytes) -> str:
    """Logits of a few tokens in both engines: to the bit, or within ``CLOSE`` with float activations."""
    import numpy as np

    from walsh.codec.sources import from_walsh, strict_form_of
    from walsh.engine.model import Engine
    from walsh.errors import FormatError
    from walsh.model.packed import PackedModel

    source = from_walsh(content)
    session = Engine(content).new_session()
    ids = [i % source.config.vocab_size for i in (1, 0, 3, 2)][: source.config.block_size]
    session.prefill(ids)
    model = PackedModel(strict_form_of(source), source.config.to_dict())
    mine, theirs = model.logits(ids).numpy(), session.logits
    worst = int(np.abs(mine - theirs).argmax())
    share = float(np.abs(mine - theirs).max() / max(float(np.abs(mine).max()), 1e-30))
    if not (share <= CLOSE if not model.strict else (mine.view(np.uint32) == theirs.view(np.uint32)).all()):
        raise FormatError(f"logit {worst} is {theirs[worst]!r} in the engine, {mine[worst]!r} in PyTorch")
    how = "equal to the bit" if model.strict else f"within {share:.1e} of the largest (float activations)"
    return f"{mine.size:,} logits {how}"


def _tokens(path: Path, count: int, show: Callable[[str], None]) -> str:
    from walsh.codec.same_tokens import compare_file, describe
    from walsh.errors import FormatError

    found = compare_file(path, count, notify=lambda one: show(describe(one)))
    if different := [one for one in found if one.difference]:
        raise FormatError(f"{len(different)} of {len(found)} texts differ; the first: {describe(different[0])}")
    return f"{len(found)} texts, {sum(one.tokens for one in found):,} tokens, all the same"


def _checks(path: Path, tokens: int, characters: str | None, show: Callable[[str], None]) -> Iterator[Finding]:
    from walsh.codec.sources import detect

    kind = detect(path)
    if characters is not None and kind not in ("spin", "published"):
        raise ParameterError(f"--characters with {path}: a {kind} has its own tokenizer; leave it out")
    read = _try("python", lambda: _read(path, kind, characters))
    yield read
    missing = [package for package in ("wasmtime", "torch") if importlib.util.find_spec(package) is None]
    if kind not in ("walsh", "spin"):
        return
    if "wasmtime" in missing:
        yield Finding("engine", "skip", "wasmtime is not installed: pip install 'walsh[wasm]'")
        return
    # Both readers look at the bytes of a .walsh file, whatever the other thinks of them.
    if kind == "spin" and read.outcome != "ok":
        return
    content = _content(path, kind, characters)
    loads = _try("engine", lambda: _engine(content))
    yield loads
    if "fail" in (read.outcome, loads.outcome):
        return
    if missing:
        yield Finding("logits", "skip", f"not installed: {', '.join(missing)}")
        return
    yield _try("logits", lambda: _logits(content))
    if tokens:
        yield _try("tokens", lambda: _tokens(path, tokens, show))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", type=click.IntRange(min=0), default=0, help="Compare so many tokens of 20 prompts [none].")
@click.option("--characters", help="Of a published file whose vocabulary is characters.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_context
def verify(ctx: click.Context, /, file: Path, tokens: int, characters: str | None, as_json: bool) -> None:
    """Check FILE: a .walsh or SPIN file, a published .pt file or a checkpoint.

    Every bound, code and digest is checked by the Python reader and, where wasmtime is installed, by the engine; both
    must compute the same logits. --tokens 200 also generates in both and compares every token.

    Exit codes: 0 sound, 1 not, 64 no such file.
    """
    console = make_console()

    def show(line: str) -> None:
        if not as_json:
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    findings = []
    for finding in _checks(file, tokens, characters, show):
        findings.append(finding)
        show(f"{finding.outcome:<5}{finding.check:<8}{finding.detail}")
    sound = all(finding.outcome != "fail" for finding in findings)
    if as_json:
        record = {"file": str(file), "sound": sound, "checks": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(record, indent=1))
    ctx.exit(0 if sound else 1)
