"""Published figures of the field beside what is measured here, from one data file.

``bench/claims.toml`` holds one table per claim: what was said, what it was measured against as far as that is known,
and either what is its honest counterpart here (a row: case pattern, provider, figure; an exact count; two variants of a
stored ablation) or the reason why there is none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from walsh.errors import FormatError
from walsh.measure.provenance import machine_name
from walsh.measure.rows import Run
from walsh.reporting.content import Table, make_table

FIGURES = {
    "ratio": "{provider}: {ratio:.2f} times as fast as {baseline} [{ratio_low:.2f}, {ratio_high:.2f}]",
    "milliseconds": "{provider}: {ms:.3g} ms",
    "tokens_per_second": "{provider}: {tokens_per_second:.4g} tokens/s",
    "model_bytes": "{provider}: {megabytes:.3g} MB",
}
"""How the figure of a row is written."""

_CLAIM_KEYS = {"id", "claim", "against", "case", "provider", "figure", "count", "relative_to", "ablation", "variant",
               "variant_without", "reason", "command"}  # fmt: skip  # one list, not a column


Ablations = Mapping[str, Sequence[Mapping[str, Any]]]
"""Runs of stored ablations by the name of their folder."""

NONE: Ablations = {}


@dataclass(frozen=True)
class Claim:
    """One published figure; ``case``, ``count``, ``ablation`` or ``reason`` says what stands beside it."""

    id: str
    claim: str
    against: str
    command: str
    case: str = ""
    provider: str = ""
    figure: str = ""
    count: str = ""
    relative_to: str = ""
    ablation: str = ""
    variant: str = ""
    variant_without: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ClaimFile:
    """All claims, and published points of speed over size."""

    claims: tuple[Claim, ...]
    published: tuple[Mapping[str, Any], ...]


def load_claims(path: Path) -> ClaimFile:
    """Read ``claims.toml``.

    Raises:
        FormatError: for an unknown key, a claim without counterpart and reason, or an unknown figure.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise FormatError(f"{path.name}: {error}") from None
    claims = []
    for entry in document.get("claim", []):
        unknown = set(entry) - _CLAIM_KEYS
        if unknown:
            raise FormatError(f"{path.name}: claim {entry.get('id')!r} has unknown keys {sorted(unknown)}")
        claim = Claim(**entry)
        if not (claim.case or claim.count or claim.ablation or claim.reason):
            raise FormatError(f"{path.name}: claim {claim.id!r} has no case, no count, no ablation and no reason")
        if claim.case and claim.figure not in FIGURES:
            raise FormatError(f"{path.name}: claim {claim.id!r}: figure {claim.figure!r}, expected one of {[*FIGURES]}")
        claims.append(claim)
    return ClaimFile(tuple(claims), tuple(document.get("published", [])))


def _of_row(claim: Claim, run: Run) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in run.rows:
        if not (fnmatchcase(row["case"], claim.case) and fnmatchcase(row["provider"], claim.provider)):
            continue
        if row["role"] == "baseline" and claim.figure == "ratio":
            continue
        values = dict(row, ms=1e3 * row["p50"], megabytes=(row["model_bytes"] or 0) / 1e6)
        if values.get(claim.figure, 0) is not None:
            found.setdefault(row["case"], []).append(FIGURES[claim.figure].format(**values))
    return [f"{case}: {'; '.join(figures)}" for case, figures in found.items()]


def _of_count(claim: Claim, run: Run) -> list[str]:
    values = {count["name"]: count["value"] for count in run.counts}
    found = []
    for name, value in values.items():
        if not fnmatchcase(name, claim.count):
            continue
        if not claim.relative_to:
            found.append(f"{value:,} ({name})")
            continue
        other = values.get(name.partition(" | ")[0] + " | " + claim.relative_to)
        if other:
            found.append(
                f"{value:,} against {other:,}: {100 * (value / other - 1):+.0f} % ({name.partition(' | ')[0]})"
            )
    return found


def _of_ablation(claim: Claim, ablations: Ablations) -> str:
    """Held-out losses of two variants, means over the seeds that both have, and the change of each seed."""
    with_, without = (
        {run["seed"]: run["bits_per_byte"] for run in ablations.get(claim.ablation, ()) if run["variant"] == name}
        for name in (claim.variant, claim.variant_without)
    )
    seeds = sorted(set(with_) & set(without))
    if not seeds:
        return "not measured here: no such ablation is stored"
    changes = [100 * (with_[seed] / without[seed] - 1) for seed in seeds]
    means = [sum(side[seed] for seed in seeds) / len(seeds) for side in (with_, without)]
    return (
        f"{means[0]:.3f} against {means[1]:.3f} bits a byte: {100 * (means[0] / means[1] - 1):+.1f} % "
        f"({min(changes):+.1f} to {max(changes):+.1f} % in {len(seeds)} paired seeds; reports/{claim.ablation})"
    )


def counterpart(claim: Claim, runs: Iterable[tuple[str, Run]], ablations: Ablations = NONE) -> str:
    """What was measured here, by machine, or why nothing was."""
    if claim.reason:
        return f"not measured here: {claim.reason}"
    if claim.ablation:
        return _of_ablation(claim, ablations)
    parts = []
    for _, run in runs:
        found = _of_row(claim, run) if claim.case else _of_count(claim, run)
        if found:
            parts.append(f"{machine_name(run.header['provenance'])}: {'. '.join(found)}")
    return ". ".join(parts) if parts else "not measured here: the stored runs hold no such row"


def claims_table(claims: Sequence[Claim], runs: Sequence[tuple[str, Run]], ablations: Ablations = NONE) -> Table:
    """One row for each published figure."""
    rows = [(c.claim, c.against, counterpart(c, runs, ablations), c.command) for c in claims]
    return make_table("", ("published", "measured against", "here", "command"), rows)
