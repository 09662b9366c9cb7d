"""The engine, Rust compiled to WebAssembly, and its host under wasmtime."""

from walsh.engine.host import Instance
from walsh.engine.model import Engine, Memory, Sampling, Session

__all__ = ["Engine", "Instance", "Memory", "Sampling", "Session"]
