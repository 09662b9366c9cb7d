"""From the samples of a case to the figures of its rows.

flops per second = work / p50,  fraction = least seconds by the machine's limits / p50
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from walsh.measure.case import Case, Provider
from walsh.measure.machine import Limits
from walsh.measure.pairs import AGAIN, Samples
from walsh.measure.statistics import Ratio, judge, null_ratio, paired_ratio, quantiles
from walsh.measure.timing import CpuClock, CudaClock


def comparison_figures(case: Case, provider: Provider, samples: Mapping[str, Samples]) -> dict[str, Any]:
    """Times of one provider and its ratio to the baseline, with the A/A control beside it."""
    first = samples[case.baseline.name].seconds
    mine = samples[provider.name]
    null = null_ratio(first, samples[AGAIN].seconds)
    itself = provider is case.baseline
    ratio = Ratio(1.0, 1.0, 1.0) if itself else paired_ratio(first, mine.seconds)
    p20, p50, p80 = quantiles(mine.seconds)
    return {
        "rounds": len(mine.seconds),
        "seconds": [round(value, 9) for value in mine.seconds],
        "p20": p20,
        "p50": p50,
        "p80": p80,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "verdict": "baseline" if itself else judge(ratio, null),
        "aa_ratio": null.value,
        "aa_low": null.low,
        "aa_high": null.high,
        "error": mine.error,
    }


def work_figures(case: Case, provider: Provider, p50: float, output_bytes: int | None) -> dict[str, Any]:
    """Work of one call, and rates at its median time."""
    work = provider.work or case.work
    dense = work.dense_flops if work.dense_flops is not None else case.work.dense_flops
    return {
        "flops": work.flops,
        "dense_flops": dense,
        "bytes": work.bytes,
        "flops_per_second": work.flops / p50,
        "dense_flops_per_second": None if dense is None else dense / p50,
        "bytes_per_second": work.bytes / p50,
        "tokens_per_second": None if case.tokens is None else case.tokens / p50,
        "model_bytes": provider.model_bytes,
        "result_bytes": output_bytes,
    }


def limit_figures(case: Case, provider: Provider, p50: float, limits: Limits) -> dict[str, Any]:
    """The limit that binds one call here, and the fraction of it that was reached."""
    least, which = limits.bind(provider.work or case.work)
    return {"limit_seconds": least, "binds": which, "fraction": least / p50}


def make_row(
    case: Case, provider: Provider, samples: Mapping[str, Samples], clock: CpuClock | CudaClock, digest: str | None
) -> dict[str, Any]:
    """Everything of a row that does not need the machine's limits or the run's provenance.

    Args:
        case, provider: what was measured.
        samples: of all providers of the case.
        clock: that measured it.
        digest: of the conformance verdict on the provider's backend; None where there is none.
    """
    figures = comparison_figures(case, provider, samples)
    on_gpu = "cuda graph" if samples[provider.name].graph else "cuda events"
    size = None if provider.result_bytes is None else provider.result_bytes(provider.run(case.fresh(0)))
    role = "baseline" if provider is case.baseline else "candidate" if provider.backend else "peer"
    return {
        "type": "row",
        "case": case.name,
        "op": case.op,
        "provider": provider.name,
        "backend": provider.backend,
        "role": role,
        "baseline": case.baseline.name,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "cache": "warm" if case.warm else "flushed",
        "timer": on_gpu if isinstance(clock, CudaClock) else "monotonic clock",
        "least_ratio": provider.least_ratio,
        "conformance": digest,
        **figures,
        **work_figures(case, provider, figures["p50"], size),
    }
