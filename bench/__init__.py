"""What is measured: one file per op, one per end-to-end job, each with ``cases(setting)``.

    walsh bench --quick                 every file at small sizes
    walsh bench --op cayley_dickson     one file
    pytest bench                        single providers under pytest-benchmark, for its statistics and history

The first provider of a case is its baseline: what a competent person would use instead. How things are timed is in
``walsh/measure``; pairs are interleaved there, which pytest-benchmark, timing one function at a time, cannot do.
"""
