"""``walsh verify``: is a file what its format says, and do all readers agree on it?"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from walsh.errors import WalshError
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
    source = read_source(path)
    if source.file is not None:
        return f".walsh, {len(source.file.stored)} tensors, all digests right, {source.config.algebra}"
    return f"{kind}, {len(source.trained)} tensors, {source.config.algebra}"


def _engine(path: Path) -> str:
    from walsh.engine.model import Engine

    engine = Engine(path)
    memory = engine.memory
    return f"loads, layout {engine.layout}, {memory.weights:,} bytes of weights in memory"


def _logits(path: Path) -> str:
    """Logits of a few tokens in both engines, to the bit."""
    import numpy as np

    from walsh.codec.sources import read_source, strict_form_of
    from walsh.engine.model import Engine
    from walsh.errors import FormatError
    from walsh.model.packed import PackedModel

    source = read_source(path)
    session = Engine(path).new_session()
    ids = [i % source.config.vocab_size for i in (1, 0, 3, 2)][: source.config.block_size]
    session.prefill(ids)
    mine = PackedModel(strict_form_of(source), source.config.to_dict()).logits(ids).numpy()
    if not (mine.view(np.uint32) == session.logits.view(np.uint32)).all():
        worst = int(np.abs(mine - session.logits).argmax())
        raise FormatError(f"logit {worst} is {session.logits[worst]!r} in the engine, {mine[worst]!r} in PyTorch")
    return f"{mine.size:,} logits equal to the bit"


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
    read = _try("python", lambda: _read(path, kind, characters))
    yield read
    missing = [package for package in ("wasmtime", "torch") if importlib.util.find_spec(package) is None]
    if kind == "walsh":
        if "wasmtime" in missing:
            yield Finding("engine", "skip", "wasmtime is not installed: pip install 'walsh[wasm]'")
        else:
            yield _try("engine", lambda: _engine(path))
    if read.outcome != "ok" or kind != "walsh":
        return
    if missing:
        yield Finding("logits", "skip", f"not installed: {', '.join(missing)}")
        return
    from walsh.codec.reader import outline

    if outline(path.read_bytes(), verify=False).config.get("activation_bits", 8) is None:
        yield Finding("logits", "skip", "float activations are not equal to the bit by their definition")
        return
    yield _try("logits", lambda: _logits(path))
    if tokens:
        yield _try("tokens", lambda: _tokens(path, tokens, show))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", type=click.IntRange(min=0), default=0, help="Compare so many tokens of 20 prompts [none].")
@click.option("--characters", help="Of a SPIN file whose vocabulary is characters.")
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
