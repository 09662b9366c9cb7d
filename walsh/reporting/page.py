"""A report as one self-contained HTML page: no network, light and dark, tables that sort and filter.

Style and script stand in ``page.css`` and ``page.js`` beside this file and are put into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from walsh.reporting.content import Block, Cell, Code, Figure, Paragraph, Section, Table

_HERE = Path(__file__).parent


def _cell(cell: Cell, right: bool) -> str:
    kind = "number" if right else "long" if len(cell.text) > 60 else ""
    classes = " ".join(filter(None, (kind, cell.tone)))
    attributes = f' class="{classes}"' if classes else ""
    if cell.value is not None:
        attributes += f' data-value="{cell.value!r}"'
    return f"<td{attributes}>{_text(cell.text)}</td>"


def _table(table: Table) -> str:
    numeric = [any(row[i].value is not None for row in table.rows) for i in range(len(table.columns))]
    heads = "".join(
        f'<th scope="col"{" class=number" if right else ""}><button type="button">{escape(name)}</button></th>'
        for name, right in zip(table.columns, numeric, strict=True)
    )
    columns = "".join(f"<col{' class=number' if right else ''}>" for right in numeric)
    body = "\n".join("<tr>" + "".join(map(_cell, row, numeric)) + "</tr>" for row in table.rows)
    filtering = (
        f'<input type="search" placeholder="filter {len(table.rows)} rows" aria-label="filter {escape(table.caption)}">'
        if len(table.rows) > 12
        else ""
    )
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption and not table.fold else ""
    label = escape(table.caption) or "table"
    inner = (
        f'{caption}{filtering}<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><colgroup>{columns}</colgroup><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
    if table.fold:
        return f"<details><summary>{escape(table.caption)}, {len(table.rows)} rows</summary>{inner}</details>"
    return f'<div class="table">{inner}</div>'


def _text(text: str) -> str:
    """Escaped, with `code` between backticks."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        tone = f' class="{block.tone}"' if block.tone else ""
        return f"<p{tone}>{_text(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Figure):
        return f'<figure><div class="scroll">{block.svg}</div><figcaption>{escape(block.caption)}</figcaption></figure>'
    return _table(block)


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    style, script = (_HERE / name for name in ("page.css", "page.js"))
    links = "\n".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    body = "\n".join(
        f'<section id="{s.name}">\n<h2>{escape(s.title)}</h2>\n' + "\n".join(map(_block, s.blocks)) + "\n</section>"
        for s in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style.read_text("utf-8")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
<button type="button" id="theme" aria-label="switch between light and dark">light / dark</button></header>
<nav aria-label="sections">
{links}
</nav>
<main>
{body}
</main>
<script>
{script.read_text("utf-8")}</script>
</body>
</html>
"""
