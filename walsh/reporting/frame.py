"""All rows as one tidy table: a row per run, case and provider, a column per figure and per fact of provenance.

Parquet and CSV are written from it; the same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]  # ships no type information

from walsh.measure.provenance import machine_name
from walsh.measure.rows import ROW_KEYS, Run
from walsh.suite.report import replacing

FIRST = ("run", "machine", "op", "case", "provider", "role", "baseline", "dtype", "ratio", "ratio_low", "ratio_high",
         "verdict", "p20", "p50", "p80", "rounds", "binds", "fraction")  # fmt: skip  # one list, not a column
"""Columns that people look for, in front of the others."""


def flatten(run: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """One row with one level: provenance as ``provenance.commit``, the rest of containers as JSON."""
    flat: dict[str, Any] = {"run": run, "machine": machine_name(row["provenance"])}
    for key in sorted(ROW_KEYS - {"type", "provenance"}):
        value = row[key]
        flat[key] = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
    for key, value in sorted(row["provenance"].items()):
        flat[f"provenance.{key}"] = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
    return flat


def to_frame(runs: Sequence[tuple[str, Run]]) -> pd.DataFrame:
    """The table of several runs, in their order."""
    records = [flatten(name, row) for name, run in runs for row in run.rows]
    frame = pd.DataFrame.from_records(records)
    front = [column for column in FIRST if column in frame.columns]
    return frame[front + [column for column in frame.columns if column not in front]]


def write_frame(frame: pd.DataFrame, folder: Path) -> None:
    """``rows.parquet`` and ``rows.csv``."""
    with replacing(folder / "rows.parquet") as temporary:
        frame.to_parquet(temporary, engine="pyarrow", compression="zstd", index=False)
    with replacing(folder / "rows.csv") as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
