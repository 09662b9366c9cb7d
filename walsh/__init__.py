"""Ternary hyper-complex language-model kernels: definitions, implementations, proof and measurement."""

__version__ = "0.1.0"
