# mypy: disable-error-code="import-untyped"
# Triton ships no type information.
"""Why a kernel may use stack where :mod:`walsh.kernels.triton.compile` would refuse it: each reason in writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import triton


@dataclass(frozen=True)
class Excuse:
    """Why a kernel may use stack: at most so many bytes, only with these constants and, if named, this Triton.

    The kernel ``*`` is any.
    """

    kernel: str
    most: int
    reason: str
    constants: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    def covers(self, kernel: str, constants: dict[str, Any], spills: int) -> bool:
        """Whether this excuses that much of this kernel."""
        same = all(str(constants.get(name)) == str(value) for name, value in self.constants.items())
        named = self.kernel in ("*", kernel) and triton.__version__.startswith(self.version)
        return named and spills <= self.most and same


EXCUSED_SPILLS: tuple[Excuse, ...] = (
    Excuse(
        "*",
        16,
        "at most four words of a thread: ptxas puts that few on the stack with most registers free (56 of 255 taken)",
    ),
    Excuse(
        "rope_table_kernel",
        64,
        "no spill: the float64 cosine of huge angles keeps the digits of 2 / pi in a local array",
    ),
    Excuse(
        "hadamard_weight_kernel",
        64,
        "double precision is for checking gradients: no smaller tile than 8 x 16 of all 32 blocks exists",
        {"DOT": "fp64", "N": 32},
    ),
    *(
        Excuse(
            kernel,
            most,
            "64 blocks: no tile smaller than 16 x 8 of each exists, and it is more than a program's registers hold; "
            "right but slow, the models have 32",
            {"N": 64},
        )
        for kernel, most in (("hadamard_linear_kernel", 1200), ("hadamard_weight_kernel", 768))
    ),
    Excuse("signed_xor_kernel", 160, "double precision is for checking gradients", {"DOT": "fp64"}),
    Excuse("reduce_kernel", 32, "double precision is for checking gradients; a few words, as above"),
    Excuse(
        "signed_xor_kernel",
        256,
        "sixteen accumulators fill the registers; sedenions are there to test the algebra, not for models",
        {"D": 16},
    ),
    Excuse(
        "hadamard_linear_kernel",
        32,
        "six registers in each of 512 threads, for sm_100 only; half the threads spill with Triton 3.9 instead",
        {"DOT": "fp32", "N": 32},
        "3.6",
    ),
    Excuse(
        "signed_xor_kernel",
        160,
        "eight accumulators fill the registers; the tiles are those that fit with Triton 3.9",
        {"D": 8},
        "3.6",
    ),
)
"""Every kernel that may use stack, and why."""


def is_excused(kernel: str, constants: dict[str, Any], spills: int) -> bool:
    """Whether :data:`EXCUSED_SPILLS` has a reason for this much stack."""
    return any(excuse.covers(kernel, constants, spills) for excuse in EXCUSED_SPILLS)
