"""Tile sizes of the products: measured ones from ``configs.json``, or these rules.

    numbers in a thread's registers >= D * BM * BN / (32 * warps);   programs = ceil(M / BM) * ceil(N / BN) * splits

A program holds one tile [BM, BN] of all D outputs of :mod:`walsh.kernels.triton._gemm`. Large tiles read each operand
less often, until the accumulators spill; small ones give a small product enough programs to fill the device.
"""

from dataclasses import dataclass, replace

import torch

from walsh.kernels.triton._config import configured, shape_of
from walsh.kernels.triton._launch import cdiv, interpreting, next_power_of_two, processors


@dataclass(frozen=True)
class Blocks:
    """Tile sizes of one launch: rows BM, columns BN, steps BK along the sum, warps and pipeline stages.

    ``unroll``: all D^2 products of a step in one straight line, each tile read once; else D at a time.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    unroll: bool = True


TENSOR_CORE_BLOCKS = {
    1: Blocks(128, 64, 64, 8, 3),
    2: Blocks(64, 64, 32, 8, 2),
    4: Blocks(64, 32, 32, 4, 2),
    8: Blocks(64, 16, 32, 4, 2),
    16: Blocks(64, 16, 32, 4, 2, False),
}
"""Tiles of 16-bit and int8 products by D: 64 rows feed a warp group of Hopper, and nothing spills (``compile.py``)."""


def choose_blocks(
    rows: int, cols: int, reds: int, d: int, dot: torch.dtype, device: torch.device, fast: bool = False
) -> Blocks:
    """Tile sizes for this shape: measured on this device if ``configs.json`` has them, else by the rules below.

    The D accumulators live in registers: 8 warps hold 32,768 numbers in 128 registers per thread. float32 and float64
    are multiplied without tensor cores and need registers for operands too, hence smaller tiles.
    """
    wide = dot in (torch.float32, torch.float64)
    # Without tensor cores 64 products in a straight line spill: every operand is a register.
    unroll = d <= 2 or (d <= 8 and not wide)
    if interpreting():
        # At least two steps of a sum of any length, so that vectors see them added.
        bm, bn, bk = (max(16, min(128, next_power_of_two(size))) for size in (rows, cols, cdiv(reds, 2)))
        return Blocks(bm, bn, bk, 4, 1, unroll)
    rule = _rule(rows, cols, d, dot, device, fast, unroll)
    # The fast form holds transformed tiles beside the accumulators: what is best for it is another question.
    return configured(shape_of("signed_xor_fast" if fast else "signed_xor", (rows, cols, reds), d, dot), device, rule)


def _rule(rows: int, cols: int, d: int, dot: torch.dtype, device: torch.device, fast: bool, unroll: bool) -> Blocks:
    """Tile sizes by rules that were not measured: nothing spills, and small shapes still fill the device."""
    wide = dot in (torch.float32, torch.float64)
    if wide:
        area = max(256, (2048 if dot == torch.float32 else 1024) // d)
        bm = min(32, 1 << ((area.bit_length() - 1) // 2))
        blocks = Blocks(bm, min(64, area // bm), 16, 4, 2 if d == 1 else 1, unroll)
        if d == 8:
            # As many accumulators per thread in twice the threads: with half of both, sm_80 spills.
            blocks = Blocks(32, 16, 16, 8, 1, unroll)
        elif d > 8:
            blocks = replace(blocks, warps=8)
    elif fast:
        # Transformed tiles of p and q live beside the accumulators; of octonions not the unrolled corrections too.
        blocks = Blocks(32, 16, 16, 8, 2, False) if d >= 8 else Blocks(64, 256 // d, 16, 8, 2, unroll)
    else:
        blocks = TENSOR_CORE_BLOCKS[d]
        if d >= 4 and dot != torch.int8:
            # Products of 32 steps with four and more accumulators spill; int8 tensor cores take no fewer.
            blocks = replace(blocks, bk=16)
    bm = max(16, min(blocks.bm, next_power_of_two(rows)))
    bn = max(16, min(blocks.bn if bm == blocks.bm else 32, next_power_of_two(cols)))
    while bn > (32 if d == 8 and not wide else 16) and cdiv(rows, bm) * cdiv(cols, bn) < processors(device):
        bn //= 2
    return Blocks(bm, bn, blocks.bk, blocks.warps, blocks.stages, blocks.unroll)


def choose_splits(rows: int, cols: int, reds: int, blocks: Blocks, device: torch.device) -> int:
    """How many programs share one tile's sum over t, so that two waves of programs fill the device."""
    if interpreting():
        return 2 if reds >= 48 else 1
    tiles = cdiv(rows, blocks.bm) * cdiv(cols, blocks.bn)
    return max(1, min(cdiv(2 * processors(device), tiles), reds // (4 * blocks.bk), 64))
