"""Tables of ``walsh ic``: a cost report and a receipt, for a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from walsh.ic.cost import MARGIN, Report
from walsh.ic.costs import default_costs
from walsh.ic.parts import LAYER_PARTS, Token
from walsh.ic.receipt import Line
from walsh.ic.recording import Messages


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _ratio(predicted: int, measured: int) -> str:
    return f"{predicted / measured:.2f}" if measured else "-"


def parts_of(token: Token) -> list[tuple[str, int, int]]:
    """(part, measured, predicted) of a token, layers in order; parts of all layers together are indented."""
    found: list[tuple[str, int, int]] = [("embedding", token.embedding, token.predicted["embedding"])]
    for number, layer in enumerate(token.layers):
        found.append((f"layer {number}", layer.total, token.predicted["layer"]))
    for part in LAYER_PARTS:
        amount = sum(getattr(layer, part) for layer in token.layers)
        if amount:
            found.append((f"  of all layers: {part}", amount, len(token.layers) * token.predicted[part]))
    found.append(("head", token.head, token.predicted["head"]))
    found.append(("sampling", token.sampling, token.predicted["sampling"]))
    return found


def _token(token: Token) -> Table:
    table = _table(f"one token at context {token.context}", "part", "instructions", "share", "predicted", "ratio")
    for name, measured, predicted in parts_of(token):
        share = f"{measured / max(token.total, 1):.1%}"
        table.add_row(name, f"{measured:,}", share, f"{predicted:,}", _ratio(predicted, measured))
    whole = token.predicted["embedding"] + len(token.layers) * token.predicted["layer"]
    whole += token.predicted["head"] + token.predicted["sampling"]
    table.add_row("all of it", f"{token.total:,}", "", f"{whole:,}", _ratio(whole, token.total), style="bold")
    table.add_row("  drawn greedily", f"{token.total - token.sampling + token.greedy:,}")
    return table


def _messages(title: str, rows: Sequence[Messages]) -> Table:
    table = _table(title, "messages", "instructions", "for pages", "cycles", "USD", "s")
    for row in rows:
        usd = default_costs().prices.usd(row.cycles)
        counts = (f"{count:,}" for count in (row.instructions, row.pages, row.cycles))
        table.add_row(f"{row.messages} {row.name}", *counts, f"{usd:.6f}", f"{row.rounds}")
    return table


def show_report(report: Report, console: Console) -> None:
    """Print a cost report."""
    model = report.model
    shape = f"{model['n_layer']} layers, {model['n_embd']} wide, vocabulary {model['vocab_size']}, {model['layout']}"
    console.print(f"{model['algebra']}, {shape}; {report.bytes:,} bytes, sha256 {report.sha256[:16]}…", markup=False)
    console.print(f"instructions and prices of table {report.version}, pages as of {report.policy}\n")
    if report.tokens:
        middle = min(report.tokens, key=lambda token: abs(token.context - report.context))
        console.print(_token(middle), "")
        table = _table("by context, and a line", "context", "measured", "fit", "off")
        for point in report.points:
            off = f"{point.fit / point.measured - 1:+.2%}"
            table.add_row(str(point.context), f"{point.measured:,}", f"{point.fit:,}", off)
        console.print(table, "")
    generating = (report.one, report.generation)
    console.print(_messages(f"generating at context {report.context}", generating), "")
    console.print(_messages("uploading and loading", report.installing), "")
    each = report.generation.instructions // report.drawn
    table = _table("in short", "", "")
    table.show_header = False
    limit = default_costs().limits.update_instructions
    table.add_row("instructions per token, everything included", f"{each:,}")
    table.add_row("of a further token, and of the message itself", f"{report.marginal:,} + {report.fixed:,}")
    table.add_row(f"tokens per update of {limit:.0e}, {MARGIN:.0%} kept free", f"{report.tokens_per_update:,}")
    table.add_row(f"cycles per million tokens, {report.drawn} a message", f"{report.cycles_per_million:,}")
    table.add_row(f"USD per million tokens (prices of {report.version})", f"{report.usd_per_million:.4f}")
    table.add_row("seconds per token on chain, a slice a second", f"{report.seconds_per_token:.4f}")
    table.add_row("bytes of heap", f"{report.heap_bytes:,}")
    table.add_row("bytes of stable memory, of code", f"{report.stable_bytes:,}, {report.module_bytes:,}")
    table.add_row("cycles for storing them, 30 days", f"{report.storage_cycles_per_month:,}")
    table.add_row("USD for storing them, 30 days", f"{report.storage_usd_per_month:.4f}")
    console.print(table)


def show_receipt(lines: Sequence[Line], console: Console) -> None:
    """Print a receipt."""
    table = _table("receipt", "message", "predicted", "counted", "difference")
    for line in lines:
        style = None if line.equal else "red"
        difference = f"{line.counted - line.predicted:+,}"
        table.add_row(line.message, f"{line.predicted:,}", f"{line.counted:,}", difference, style=style)
    console.print(table)
    equal = sum(line.equal for line in lines)
    console.print(f"{equal} of {len(lines)} messages counted as predicted (tolerance 0)")
