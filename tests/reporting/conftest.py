"""Stored results that are made up: every kind of row, absence, count and problem that a report can hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from walsh.measure.rows import Run, write_run

PROVENANCE: dict[str, Any] = {
    "walsh": "0.1.0", "commit": "c" * 40, "dirty": False, "python": "3.11.7", "packages": {"torch": "2.15.0"},
    "system": "Linux", "release": "6", "architecture": "x86_64", "cpu": "Imaginary <CPU> & Co", "gpu": None,
    "device": "cpu", "cores": 2, "affinity": [0, 1], "torch_threads": 2, "thread_settings": {}, "seed": 0,
}  # fmt: skip  # a record

LIMITS = {
    "bandwidth": {"1048576": 4e10, "67108864": 2e10},
    "peak": {"float32": 1e11, "int8": 8e11, "wasm": 4e10},
    "launch": 1e-6,
    "missing": {"float64": "not tried"},
}


def make_row(case: str, provider: str, ratio: float, spread: float = 0.02, **changes: Any) -> dict[str, Any]:
    role = changes.pop("role", "candidate")
    row: dict[str, Any] = {
        "type": "row", "case": case, "op": case.partition("/")[0], "provider": provider,
        "backend": "torch" if role == "candidate" else None, "role": role, "baseline": "plain", "shape": {"M": 4},
        "dtype": "float32", "cache": "flushed", "timer": "monotonic clock", "rounds": 5, "seconds": [1e-3] * 5,
        "p20": 9e-4 / ratio, "p50": 1e-3 / ratio, "p80": 1.2e-3 / ratio, "ratio": ratio,
        "ratio_low": ratio * (1 - spread), "ratio_high": ratio * (1 + spread),
        "verdict": "faster" if ratio > 1.05 else "slower" if ratio < 0.95 else "equal",
        "least_ratio": None, "aa_ratio": 1.0, "aa_low": 0.98, "aa_high": 1.02, "flops": 1e6, "dense_flops": 4e6,
        "bytes": 1e5, "flops_per_second": 1e9 * ratio, "dense_flops_per_second": 4e9 * ratio,
        "bytes_per_second": 1e8 * ratio, "limit_seconds": 1e-4, "binds": "memory", "fraction": 0.1 * ratio,
        "tokens_per_second": None, "model_bytes": None, "result_bytes": None, "error": 0.01, "manifest": "a" * 64,
        "conformance": "d" * 64 if role == "candidate" else None, "load_before": 0.1, "load_after": 0.2,
        "utc": "2026-01-02T03:04:05+00:00", "provenance": PROVENANCE,
    }  # fmt: skip  # a record
    return row | changes


def make_run(rows: list[dict[str, Any]], started: str = "2026-01-02T03:04:05+00:00", counts: Any = ()) -> Run:
    verdict = {"backend": "torch", "manifest": "a" * 64, "digest": "d" * 64, "passed": 10, "skipped": 1}
    header = {
        "type": "header", "schema": 1, "argv": ["bench"], "quick": True, "seed": 0, "provenance": PROVENANCE,
        "limits": LIMITS, "conformance": {"torch": verdict}, "manifest": "a" * 64, "started": started,
    }  # fmt: skip  # a record
    absent = ({"type": "absent", "case": "rope/*", "provider": "walsh triton", "reason": "needs a GPU"},)
    lines = tuple({"type": "count", "section": "any", "name": n, "value": v, "committed": None} for n, v in counts)
    footer = {
        "type": "footer", "rows": len(rows), "absent": 1, "counts": len(lines), "problems": [], "seconds": 1.0,
        "finished": started,
    }  # fmt: skip  # a record
    return Run(header, tuple(copy.deepcopy(rows)), absent, lines, footer)


def usual_rows(speed: float = 2.0) -> list[dict[str, Any]]:
    weights = {"P": 800, "zeros %": 90, "entropy mbit": 569}
    return [
        make_row("cayley_dickson/forward/M4/float32", "plain", 1.0, 0, role="baseline", verdict="baseline"),
        make_row("cayley_dickson/forward/M4/float32", "64 matmuls", 0.5, role="peer"),
        make_row("cayley_dickson/forward/M4/float32", "walsh torch", speed),
        make_row("rope/forward/M4", "plain", 1.0, 0, role="baseline", verdict="baseline"),
        make_row("rope/forward/M4", "walsh torch", 0.25),
        make_row("decode/P4", "plain", 1.0, 0, role="baseline", tokens_per_second=100.0, model_bytes=10**7),
        make_row("decode/P4", "walsh torch", 3.0, tokens_per_second=300.0, model_bytes=10**6),
        make_row("compress/P800-zeros90", "plain", 1.0, 0, role="baseline", result_bytes=200, shape=weights),
    ]


COUNTS = [
    ("canister/token | engine | instructions: blocks", 1000),
    ("canister/token | engine | instructions: head", 500),
    ("canister/token | engine | instructions total", 1500),
    ("cross_entropy/x | walsh torch | peak_bytes", 40),
    ("cross_entropy/x | PyTorch | peak_bytes", 100),
]

CLAIMS = """
[[claim]]
id = "six"
claim = "6 times faster"
against = "64 products"
case = "cayley_dickson/*"
provider = "*"
figure = "ratio"
command = "walsh bench"

[[claim]]
id = "memory"
claim = "60 % less"
against = "the plain loss"
count = "cross_entropy/* | walsh torch | peak_bytes"
relative_to = "PyTorch | peak_bytes"
command = "walsh bench counts"

[[claim]]
id = "loss"
claim = "8 % lower loss"
against = "none"
reason = "needs training"
command = "walsh train"

[[published]]
label = "published"
bytes = 26000000
tokens_per_second = 36
"""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder of results with everything in it."""
    root = tmp_path / "reports"
    (root / "cpu").mkdir(parents=True)
    (root / "training" / "tiny").mkdir(parents=True)
    write_run(root / "cpu" / "rows.jsonl", make_run(usual_rows(), counts=COUNTS))
    write_run(root / "cpu" / "previous.jsonl", make_run(usual_rows(2.8), "2026-01-01T03:04:05+00:00", COUNTS[:1]))
    (root / "deep").mkdir()
    for name, backend, statuses in (("", "torch", ["killed"]), ("-rust", "rust", ["killed", "survived"])):
        found = [{"op": "rope", "backend": backend, "status": status} for status in statuses]
        (root / "deep" / f"kill-matrix{name}.json").write_text(json.dumps({"mutants": found}), encoding="utf-8")
    (root / "training" / "tiny" / "metrics.jsonl").write_text(
        '{"kind": "evaluation", "step": 10, "loss": 2.5, "bits_per_byte": 1.9}\n', encoding="utf-8"
    )
    (tmp_path / "claims.toml").write_text(CLAIMS, encoding="utf-8")
    return root
