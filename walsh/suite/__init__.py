"""The conformance suite: catalogue of calls, vectors, comparer, runner and backends."""

from walsh.suite.backends import load_backend

__all__ = ["load_backend"]
