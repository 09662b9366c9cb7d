"""A machine in numbers, and the least time that any work takes on it; ``limits.py`` measures the numbers.

limit(work) = max(bytes / bandwidth,  flops / peak,  launches * launch floor)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from walsh.errors import WalshError
from walsh.measure.case import Work


class OverLimit(WalshError, ArithmeticError):  # noqa: N818  # names the finding, as the other verdicts do
    """A measurement faster than the machine: the work, the limit or the clock is wrong."""


@dataclass
class Limits:
    """The machine, in numbers.

    Attributes:
        bandwidth: bytes per second by working set in bytes.
        peak: operations per second by dtype; a multiply-add counts 2.
        launch: seconds of the shortest call.
        missing: what could not be measured, and why.
    """

    bandwidth: dict[int, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    launch: float = float("inf")
    missing: dict[str, str] = field(default_factory=dict)

    def bind(self, work: Work) -> tuple[float, str]:
        """The least seconds that ``work`` takes here, and which limit says so: memory, compute or launch."""
        candidates = {"launch": work.launches * self.launch}
        if work.bytes:
            candidates["memory"] = work.bytes / self.rate(work.bytes)
        if work.flops and self.peak.get(work.peak):
            candidates["compute"] = work.flops / self.peak[work.peak]
        which = max(candidates, key=lambda name: candidates[name])
        return candidates[which], which

    def rate(self, size: float) -> float:
        """Bytes per second for a working set: that of the two measured ones around it, whichever is faster."""
        sizes = sorted(self.bandwidth)
        above = next((i for i, s in enumerate(sizes) if s >= size), len(sizes) - 1)
        return max(self.bandwidth[s] for s in sizes[max(above - 1, 0) : above + 1])

    def merge(self, other: Limits) -> None:
        """Keep the better of two measurements of one machine."""
        for size, rate in other.bandwidth.items():
            self.bandwidth[size] = max(rate, self.bandwidth.get(size, 0.0))
        for name, rate in other.peak.items():
            self.peak[name] = max(rate, self.peak.get(name, 0.0))
        self.launch = min(self.launch, other.launch)
        self.missing |= other.missing

    def to_dict(self) -> dict[str, Any]:
        """As reports store it."""
        record = asdict(self)
        record["bandwidth"] = {str(size): rate for size, rate in sorted(self.bandwidth.items())}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Limits:
        """The inverse of :meth:`to_dict`."""
        bandwidth = dict(sorted((int(size), float(rate)) for size, rate in record["bandwidth"].items()))
        return cls(bandwidth, dict(record["peak"]), float(record["launch"]), dict(record["missing"]))


def check_fraction(name: str, fraction: float) -> None:
    """Raise if more than 100 % of a limit was reached.

    Raises:
        OverLimit: naming the case.
    """
    if fraction > 1:
        raise OverLimit(
            f"{name} reached {100 * fraction:.1f} % of a limit measured in the same run; "
            "expected at most 100 %: correct its work formula, or measure on a quieter machine"
        )
