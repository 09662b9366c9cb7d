"""Bytes of ternary weights, and the time to make them: two bits, five trits in a byte, bitmask and signs, zstd.

    entropy bound at a share p of zeros: -p log2 p - (1 - p) log2((1 - p) / 2) bits per weight          q int8 [P]

Each result is decoded and compared after its clock has stopped.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from walsh import reference
from walsh.codec import packings
from walsh.kernels.torch import bitmask_encode, pack_ternary
from walsh.measure.case import Absent, Case, Check, Inputs, Provider, Setting, Work
from walsh.measure.checks import generator
from walsh.measure.kernels import peer

Codes = NDArray[np.int8]
POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def draw(seed: int, setting: Setting, total: int, zeros: float) -> torch.Tensor:
    random = generator(seed, setting)
    signs = torch.randint(0, 2, (total,), generator=random, dtype=torch.int8) * 2 - 1
    return signs * (torch.rand(total, generator=random) >= zeros)


def entropy(zeros: float) -> float:
    """Bits per weight that no code beats."""
    return -zeros * math.log2(zeros) - (1 - zeros) * math.log2((1 - zeros) / 2)


def two_bits(q: Codes) -> NDArray[np.uint8]:
    """numpy.packbits of the two bits of q + 1."""
    code = (q + 1).astype(np.uint8)
    return np.packbits(np.stack([code & 1, code >> 1], -1), bitorder="little")


def five_trits(q: Codes) -> NDArray[np.uint8]:
    """Base 3: five weights in a byte."""
    padded = np.concatenate([q + 1, np.zeros(-len(q) % 5, np.int8)]).astype(np.uint8)
    return np.asarray(padded.reshape(-1, 5) @ POWERS, np.uint8)


def from_five_trits(data: NDArray[np.uint8], total: int) -> Codes:
    return (data[:, None] // POWERS % 3).astype(np.int8).ravel()[:total] - np.int8(1)


def decoded(decode: Callable[[Any], Codes]) -> Check:
    return lambda inputs, output, _: 0.0 if np.array_equal(decode(output), inputs["q"].numpy()) else float("inf")


def own_providers(total: int) -> list[Provider]:
    """Walsh's two packings; four codes to a byte is the same as ``two_bits``, of another implementation."""

    def unpack(output: torch.Tensor) -> Codes:
        return reference.unpack_ternary(output.numpy(), total)

    def unmask(output: tuple[torch.Tensor, torch.Tensor]) -> Codes:
        return reference.bitmask_decode(output[0].numpy(), output[1].numpy(), (total,))

    def unpack_chosen(output: tuple[str, NDArray[np.uint8]]) -> Codes:
        return packings.unpack(output[1], output[0], (total,))

    return [
        Provider(
            "walsh file, smallest packing",
            lambda i: packings.choose(i["q"].numpy(), "size"),
            "torch",
            check=decoded(unpack_chosen),
            result_bytes=lambda parts: len(parts[1]),
        ),
        Provider(
            "walsh pack_ternary", lambda i: pack_ternary(i["q"]), "torch", check=decoded(unpack), result_bytes=len
        ),
        Provider(
            "walsh bitmask",
            lambda i: bitmask_encode(i["q"]),
            "torch",
            check=decoded(unmask),
            result_bytes=lambda parts: len(parts[0]) + len(parts[1]),
        ),
    ]


def zstd_providers(setting: Setting, total: int) -> list[Provider]:
    if peer("", "", "zstandard", setting) is not None:
        return []
    zstd = importlib.import_module("zstandard")

    def unzip(output: bytes) -> Codes:
        packed = np.frombuffer(zstd.ZstdDecompressor().decompress(output), np.uint8)
        bits = np.unpackbits(packed, count=2 * total, bitorder="little").reshape(-1, 2)
        return (bits[:, 0] + 2 * bits[:, 1]).astype(np.int8) - np.int8(1)

    def run(inputs: Inputs) -> bytes:
        return bytes(zstd.ZstdCompressor(level=19 if not setting.quick else 3).compress(two_bits(inputs["q"].numpy())))

    return [Provider("zstd of 2 bits", run, check=decoded(unzip), result_bytes=len)]


def one(setting: Setting, total: int, zeros: float) -> Case:
    def unpack_two(output: NDArray[np.uint8]) -> Codes:
        bits = np.unpackbits(output, count=2 * total, bitorder="little").reshape(-1, 2)
        return (bits[:, 0] + 2 * bits[:, 1]).astype(np.int8) - np.int8(1)

    baseline = Provider(
        "numpy.packbits, 2 bits", lambda i: two_bits(i["q"].numpy()), check=decoded(unpack_two), result_bytes=len
    )
    trits = Provider(
        "numpy base 3",
        lambda i: five_trits(i["q"].numpy()),
        check=decoded(lambda output: from_five_trits(output, total)),
        result_bytes=len,
    )
    return Case(
        op="compress",
        name=f"compress/P{total}-zeros{round(100 * zeros)}",
        shape={"P": total, "zeros %": round(100 * zeros), "entropy mbit": round(1000 * entropy(zeros))},
        dtype="int8",
        work=Work(0, total * (1 + entropy(zeros) / 8), None, "int8"),
        fresh=lambda seed: {"q": draw(seed, setting, total, zeros)},
        check=baseline.check or decoded(unpack_two),
        providers=(baseline, trits, *own_providers(total), *zstd_providers(setting, total)),
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    if setting.device != "cpu":
        return
    total = 1 << (18 if setting.quick else 21)
    yield one(setting, total, 0.32)
    yield one(setting, total, 0.9)
    missing = peer("compress/*", "zstd of 2 bits", "zstandard", setting)
    if missing:
        yield missing
