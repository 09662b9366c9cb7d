"""The conformance suite: catalogue of calls, vectors, comparer, runner and backends."""
