"""The canister: its built module, how it is built, and a client for one in the replica in miniature."""

from walsh.ic.canister.client import Client, RefusedError, deploy

__all__ = ["Client", "RefusedError", "deploy"]
