"""What options of several commands accept: seconds that end, and files that can be written."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import click


class Seconds(click.FloatRange):
    """More than 0 seconds and finite: NaN passes comparisons, and no clock waits for infinity."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or click's usage error."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return seconds


def check_output(path: Path) -> None:
    """See that a file can be written, before hours are spent on what shall stand in it.

    Raises:
        click.UsageError: if its folder is missing or takes no file.
    """
    if not path.parent.is_dir():
        raise click.UsageError(f"{path}: the folder {path.parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}; give another path") from None
