"""From stored rows to pages: one tidy table, a Markdown report, one self-contained HTML page, tables of the README.

    rows.jsonl, conformance.jsonl, ...  ->  DataFrame (Parquet, CSV)  ->  sections  ->  report.md, report.html

Everything is a function of the stored files: built again, every byte is the same. No clock and no machine is asked.
"""
