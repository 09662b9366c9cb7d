"""Launch the Triton kernels of one op at small shapes and name them: what a sanitizer watches.

    python -m bench.gpu_walk rms_norm [--device cuda]

The calls are golden vectors, a few for each call and dtypes, and below them what SPEC.md does not name. Values are
judged by the conformance run; here only the accesses to memory matter.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import torch

from walsh.suite.backends import load_backend
from walsh.suite.catalog import OPS
from walsh.suite.schema import locate_data
from walsh.suite.tensors import DTYPES
from walsh.suite.vectors import Case, ExpectedError, decode_params, load_suite

EACH = 3
"""Vectors for each call and dtypes: the first, the last and one between, so that shapes differ."""


def choose(op: str) -> Iterator[Case]:
    """A few valid cases for each call of an op and each combination of dtypes."""
    groups: dict[str, list[Case]] = {}
    for case in load_suite(locate_data()).cases:
        if case.op == op and not isinstance(case.expected, ExpectedError):
            kinds = sorted({str(spec["dtype"]) for spec in case.inputs.values()})
            groups.setdefault(f"{case.call.name} {kinds}", []).append(case)
    for group in groups.values():
        yield from {case.name: case for case in (group[0], group[len(group) // 2], group[-1])[:EACH]}.values()


def beyond_spec(op: str, device: str) -> list[Callable[[], object]]:
    """Calls of the functions that the package has beyond SPEC.md."""
    from walsh.kernels import triton as kernels

    x = torch.randn(3, 37, device=device)
    codes = torch.randint(-127, 128, (2, 70, 3, 5), dtype=torch.int8, device=device)
    worth, query = torch.rand(2, 70, 3, 1, device=device), torch.randn(2, 1, 3, 5, device=device)
    places = torch.tensor([[69], [0]], device=device)
    found: dict[str, list[Callable[[], object]]] = {
        "rms_norm": [lambda: kernels.rms_norm_quantize(x, x[0])],
        "ternary": [lambda: kernels.ternary_packed(x)],
        "hadamard": [lambda: kernels.hadamard_transform_(torch.randn(2, 8192, device=device))],
        "attention": [lambda: kernels.decode_attention(query, codes, worth, codes, worth, places)],
        "kv_cache": [lambda: kernels.KVCache(2, 8, 3, 5, torch.int8, device).append(query, query)],
    }
    return found.get(op, [])


def walk(op: str, device: str | None) -> Counter[str]:
    """Run the calls; launches by name of kernel."""
    from walsh.kernels.triton._launch import count_launches

    backend = load_backend("triton", device)
    with count_launches() as names:
        for case in choose(op):
            out = {key: np.zeros(output.shape, dtype=DTYPES[output.dtype]) for key, output in case.outputs.items()}
            backend.run(case.op, decode_params(case.params), case.load_inputs(), out)
        for call in beyond_spec(op, device or "cpu"):
            call()
    if device == "cuda":
        torch.cuda.synchronize()
    return Counter(names)


def main() -> int:
    """Walk one op."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--device", default="cuda", help="cuda (the default), or cpu in the interpreter")
    given = parser.parse_args()
    counts = walk(given.op, given.device)
    print("kernels:", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
