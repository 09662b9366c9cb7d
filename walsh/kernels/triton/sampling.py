"""Sampling (SPEC.md, *sampling*): ``sample`` and ``uniform`` are defined in strict arithmetic only, and live there."""

from walsh.kernels.triton.strict.sampling import sample, uniform

__all__ = ["sample", "uniform"]
