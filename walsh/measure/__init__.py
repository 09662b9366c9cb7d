"""Measuring: interleaved pairs, physical limits, counts, and rows that say where they come from.

    time of one call  ->  pairs against a named baseline  ->  ratio with its interval  ->  row with limit and provenance

What is measured stands in ``bench/`` (one file per op and per end-to-end job); how it is measured stands here; how it
is shown stands in ``walsh/reporting``.
"""
