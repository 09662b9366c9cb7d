"""Straight-line segments of a function and what a replica charges for them.

    cost(segment) = sum of the weights of its instructions (+ 1 in the first segment of a function)

A segment ends after ``loop if else br br_if br_table end return unreachable`` and after tail calls; ``block`` and
``call`` do not split it. The cost is charged when the segment is entered, whole, even if an instruction in it traps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from walsh.ic.costs import Costs
from walsh.ic.module import Body
from walsh.ic.wasm import Instruction, instructions

ENTRY = "function entry"
"""The name under which a breakdown lists the charge of entering a function."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A straight line of instructions.

    Attributes:
        start: byte offset of its first instruction in the code.
        loops: whether it is the head of a loop, where a message that never ends must pass.
        cost: instructions charged on entering it.
        counts: how often each instruction occurs in it, ``function entry`` included.
    """

    start: int
    loops: bool
    cost: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """The instructions of a function and its segments."""

    instructions: list[Instruction]
    segments: list[Segment]


def analyse(body: Body, costs: Costs) -> Line:
    """Cut a function into segments; those of cost 0 are listed too."""
    weights, found, listing = costs.opcodes, [], []
    counts, cost, start, loops = Counter({ENTRY: 1}), costs.function_entry, 0, False
    for instruction in instructions(body.code):
        listing.append(instruction)
        name = instruction.opcode.name
        counts[name] += 1
        cost += weights[name]
        if instruction.opcode.ends_segment:
            found.append(Segment(start, loops, cost, counts))
            counts, cost, start, loops = Counter(), 0, instruction.end, name == "loop"
    return Line(listing, found)
