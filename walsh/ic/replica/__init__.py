"""A replica of the Internet Computer in miniature, under wasmtime; see :mod:`walsh.ic.replica.replica`.

It runs canisters as they are built for the platform: the system API of wasm32, exact instruction counts and limits,
traps that take everything back, upgrades, calls between canisters, timers, cycles, deterministic time and randomness.
"""

from walsh.ic.replica.canister import EMPTY, Canister
from walsh.ic.replica.messages import Kind, Receipt
from walsh.ic.replica.principal import ANONYMOUS, MANAGEMENT, to_text, user_id
from walsh.ic.replica.replica import Ingress, Replica

__all__ = [
    "ANONYMOUS",
    "EMPTY",
    "MANAGEMENT",
    "Canister",
    "Ingress",
    "Kind",
    "Receipt",
    "Replica",
    "to_text",
    "user_id",
]
