# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Measure tile sizes of the product kernel on this machine's GPU and store the best in ``configs.json``.

    python -m walsh.kernels.triton.tune --rows 2048 --features 4096 --algebra octonion --dtype bfloat16

For the shape (M, N, K, D, dtype) of a square layer's forward, which is also that of its gradient of x, and for that of
its gradient of w, the candidates are pruned to those whose accumulators fit the registers and whose tiles fit the
shape; each is timed, and the fastest is written under the device's name. Nothing is written without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator

import torch

from walsh.algebra import DIMENSIONS
from walsh.errors import BackendError
from walsh.kernels.triton import _config, _gemm, _launch
from walsh.kernels.triton._gemm import Blocks, Operand, choose_blocks, signed_xor_product, weight_operand

_TILES = (16, 32, 64, 128)


def candidates(rows: int, cols: int, reds: int, d: int, dtype: torch.dtype) -> Iterator[Blocks]:
    """Blocks worth timing for a shape: no tile larger than the shape, at most 128 accumulator registers per thread."""
    wide = dtype in (torch.float32, torch.float64)
    for bm in _TILES:
        for bn in _TILES:
            for bk in (16, 32) if wide or d > 2 else (32, 64, 128):
                for warps in (4, 8):
                    room = 128 * 32 * warps // (2 if dtype == torch.float64 else 1)
                    tall = bm > max(16, 2 * rows) or bn > max(16, 2 * cols) or bk > max(16, 2 * reds)
                    if tall or d * bm * bn > room or d * bm * bn < 32 * warps:
                        continue
                    for stages in (1, 2) if wide else (2, 3):
                        yield Blocks(bm, bn, bk, warps, stages, d <= 2 or (d <= 8 and not wide))


def measure(run: Callable[[Blocks], None], options: Iterator[Blocks]) -> tuple[Blocks, float] | None:
    """The fastest of these and its median time in milliseconds; those that do not compile or launch are skipped."""
    from triton.testing import do_bench

    best: tuple[Blocks, float] | None = None
    for blocks in options:
        try:
            run(blocks)
            milliseconds = float(do_bench(lambda b=blocks: run(b), return_mode="median"))
        except Exception as error:
            print(f"  {blocks}: {type(error).__name__}")
            continue
        if best is None or milliseconds < best[1]:
            best = blocks, milliseconds
    return best


def tune_layer(rows: int, features: int, d: int, dtype: torch.dtype, device: torch.device) -> dict[str, dict[str, int]]:
    """Entries of ``configs.json`` for a square layer: forward, dX (the same shape) and dW."""
    from walsh.algebra import fast_backward_w, fast_forward

    size = features // d
    x = torch.randn(rows, features, device=device).to(dtype)
    w = torch.randn(d, size, size, device=device).to(dtype)
    y, part = torch.empty_like(x), torch.empty(d, size, size, device=device, dtype=torch.float32)
    by_token = Operand(x, size, features, 1)

    def forward(blocks: Blocks) -> None:
        out = Operand(y, size, features, 1)
        signed_xor_product(by_token, weight_operand(w), (rows, size, size), fast_forward(d), out, blocks=blocks)

    def gradient(blocks: Blocks) -> None:
        across, out = Operand(x, size, 1, features), Operand(part, size * size, size, 1)
        signed_xor_product(across, across, (size, size, rows), fast_backward_w(d), out, blocks=blocks)

    found: dict[str, dict[str, int]] = {}
    for run, shape in ((forward, (rows, size, size)), (gradient, (size, size, rows))):
        best = measure(run, candidates(*shape, d, dtype))
        if best is None:
            continue
        key = _config.key("signed_xor", *shape, d, dtype)
        chosen = choose_blocks(*shape, d, dtype, torch.device("meta"))
        print(f"{key}: {best[0]} {best[1]:.4f} ms (by rule: {chosen})")
        found[key] = {side: int(getattr(best[0], side)) for side in _gemm.SIDES}
    return found


def main() -> int:
    """Tune one layer on this machine's GPU.

    Raises:
        BackendError: there is no GPU, or kernels are interpreted.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2048, help="tokens M")
    parser.add_argument("--features", type=int, default=4096, help="K = N, all components together")
    parser.add_argument("--algebra", choices=sorted(DIMENSIONS), default="octonion")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or _launch.INTERPRET:
        raise BackendError("there is no GPU here, or TRITON_INTERPRET is set: tiles are measured on real hardware only")
    device, d = torch.device("cuda"), DIMENSIONS[arguments.algebra]
    features = math.ceil(arguments.features / d) * d
    entries = tune_layer(arguments.rows, features, d, getattr(torch, arguments.dtype), device)
    document = json.loads(_config.PATH.read_text())
    document["devices"].setdefault(torch.cuda.get_device_name(device), {}).update(entries)
    document["note"] = "Measured by walsh.kernels.triton.tune, by device name and shape; other shapes go by rule."
    _config.PATH.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
