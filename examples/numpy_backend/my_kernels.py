"""One kernel of one op in NumPy: ``y = x / sqrt(mean(x^2) + eps) * weight``, x [..., C], weight [C].

walsh conformance --backend my_kernels:MyKernels --op rms_norm
"""
# ruff: noqa: D101, D102, ARG002 - an example is shorter than its documentation

import numpy as np


def rms_norm(x, weight, eps=1e-6):
    """Root-mean-square norm of each row, computed in float64 and rounded once to the dtype of x."""
    if x.dtype.kind in "iub" or weight.dtype.kind in "iub":
        raise TypeError(f"x is {x.dtype} and weight {weight.dtype}: expected floats")
    if x.ndim == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x has shape {x.shape} and weight {weight.shape}: expected [..., C] and [C]")
    if not 0 <= eps < np.inf:
        raise ValueError(f"eps is {eps}: expected a finite number of at least 0")
    wide = x.astype(np.float64)
    mean = (wide * wide).sum(axis=-1, keepdims=True) / max(x.shape[-1], 1)
    return (wide / np.sqrt(mean + eps) * weight.astype(np.float64)).astype(x.dtype)


class MyKernels:
    def describe(self):
        return {"name": "my-kernels", "version": "1.0", "calls": ["rms_norm"]}

    def run(self, op, params, inputs, out):
        out["y"][...] = rms_norm(inputs["x"], inputs["weight"], params.get("eps", 1e-6))

    def close(self):
        pass
