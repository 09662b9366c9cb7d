"""What a replica of the Internet Computer charges: the versioned table ``costs.toml``, typed.

An instruction here is the unit of the platform's ``performance_counter``: a weight per opcode, a price per system
call, a price per page of memory touched. One file holds all of it with its source; every count names its version.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from walsh.ic.errors import CostTableError
from walsh.ic.opcodes import BY_NAME

TABLE = Path(__file__).with_name("costs.toml")


@dataclass(frozen=True)
class SystemCost:
    """Instructions of a system call: ``fixed + byte * bytes copied``."""

    fixed: int
    byte: int


@dataclass(frozen=True)
class PagePolicy:
    """What touching memory costs within a message.

    Attributes:
        name: the replica version that charges so.
        page_bytes: size of the unit that is charged.
        access: instructions of the first access, a write included.
        write: instructions of the first write, on top of ``access``.
        at_end: charged when the message ends, hence not seen by ``performance_counter``; else when it happens.
    """

    name: str
    page_bytes: int
    access: int
    write: int
    at_end: bool


@dataclass(frozen=True)
class Limits:
    """Instructions per message, and bytes."""

    update_instructions: int
    query_instructions: int
    install_instructions: int
    inspect_instructions: int
    slice_instructions: int
    heap_bytes: int
    stable_bytes: int
    payload_bytes: int
    module_bytes: int
    code_bytes: int
    functions: int


@dataclass(frozen=True)
class Prices:
    """Cycles on a subnet of ``nodes`` nodes; 1e12 cycles are one XDR."""

    nodes: int
    instruction: int
    update_message: int
    ingress_message: int
    ingress_byte: int
    call_message: int
    call_byte: int
    gib_second: int
    canister_second: int
    cycles_per_xdr: int
    usd_per_xdr: float

    def storage(self, size: int, seconds: float) -> int:
        """Cycles that a canister of ``size`` bytes (heap, stable memory and module) pays to exist for so long."""
        return round(seconds * (size / (1 << 30) * self.gib_second + self.canister_second))

    def usd(self, cycles: float) -> float:
        """US dollars for this many cycles."""
        return cycles / self.cycles_per_xdr * self.usd_per_xdr


@dataclass(frozen=True)
class Costs:
    """The whole table.

    Attributes:
        version: what to print beside a count.
        source: where the weights come from.
        opcodes: instruction name to weight, complete.
        function_entry: added to the first segment of every function.
        bulk_byte: added per byte of ``memory.fill``, ``copy`` and ``init``.
        system_default: the price of a system call that ``system`` does not name.
        system: name without ``ic0.`` to price.
        pages: policy by name.
        current_pages: the name of the policy in force.
        limits, prices: see their classes.
    """

    version: str
    source: str
    opcodes: Mapping[str, int]
    function_entry: int
    bulk_byte: int
    system_default: SystemCost
    system: Mapping[str, SystemCost]
    pages: Mapping[str, PagePolicy]
    current_pages: str
    limits: Limits
    prices: Prices

    def system_cost(self, name: str, size: int = 0) -> int:
        """Instructions of ``ic0.NAME`` that copies ``size`` bytes."""
        price = self.system.get(name, self.system_default)
        return price.fixed + price.byte * size

    def page_policy(self, name: str | None = None) -> PagePolicy:
        """The named policy, or the one in force.

        Raises:
            CostTableError: for a name the table lacks.
        """
        policy = self.pages.get(self.current_pages if name is None else name)
        if policy is None:
            raise CostTableError(f"page policy {name!r}: expected one of {', '.join(self.pages)}")
        return policy

    def with_opcode(self, name: str, cost: int) -> Costs:
        """The same table with another weight for one instruction."""
        if name not in self.opcodes:
            raise CostTableError(f"instruction {name!r} is not in the cost table")
        return replace(self, version=f"{self.version}, {name}={cost}", opcodes={**self.opcodes, name: cost})


def _natural(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CostTableError(f"{where} = {value!r}: expected a natural number")
    return value


def _opcodes(table: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    costs: dict[str, int] = {}
    for group, entries in table.items():
        for name, cost in entries.items():
            if name in costs:
                raise CostTableError(f"instruction {name!r} is priced twice, the second time in [opcodes.{group}]")
            costs[name] = _natural(cost, name)
    missing, unknown = BY_NAME.keys() - costs.keys(), costs.keys() - BY_NAME.keys()
    if missing or unknown:
        raise CostTableError(
            f"cost table: missing {sorted(missing)}, unknown {sorted(unknown)}; expected every opcode once"
        )
    return costs


def load_costs(path: Path = TABLE) -> Costs:
    """Read a cost table.

    Raises:
        CostTableError: if an entry is missing, unknown or no natural number.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        system = {name: SystemCost(**entry) for name, entry in raw["system"].items()}
        return Costs(
            version=raw["version"],
            source=raw["source"],
            opcodes=_opcodes(raw["opcodes"]),
            function_entry=_natural(raw["function_entry"], "function_entry"),
            bulk_byte=_natural(raw["bulk_byte"], "bulk_byte"),
            system_default=system.pop("default"),
            system=system,
            pages={name: PagePolicy(name=name, **entry) for name, entry in raw["pages"].items()},
            current_pages=raw["current_pages"],
            limits=Limits(**raw["limits"]),
            prices=Prices(**raw["prices"]),
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise CostTableError(f"{path}: {error}; expected the layout of walsh/ic/costs.toml") from error


@cache
def default_costs() -> Costs:
    """The table that comes with walsh."""
    return load_costs()
