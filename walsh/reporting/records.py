"""Sections of tables: sizes, losses of training, published figures, all rows, provenance, commands."""

from __future__ import annotations

import json

from walsh.measure.provenance import machine_name
from walsh.reporting.claims import ClaimFile, claims_table
from walsh.reporting.content import (
    Block,
    Cell,
    Code,
    Paragraph,
    Section,
    duration,
    make_table,
    number,
    quantity,
    ratio,
)
from walsh.reporting.inputs import Material
from walsh.reporting.rows import Row, all_rows, missing


def sizes(material: Material) -> Section:
    """Bits per ternary weight by format, beside the entropy bound."""
    rows: list[list[Cell | str]] = []
    for row in all_rows(material):
        if row["op"] == "compress" and row["result_bytes"]:
            weights, bound = row["shape"]["P"], row["shape"]["entropy mbit"] / 1000
            bits = 8 * row["result_bytes"] / weights
            zeros = row["shape"]["zeros %"]
            rows.append(
                [
                    row["provider"],
                    Cell(f"{zeros} %", zeros),
                    number(bits, 4),
                    number(bound, 4),
                    Cell(f"{bits / bound:.2f}", bits / bound),
                    duration(row["p50"]),
                ]
            )
    columns = ("format", "zeros", "bits per weight", "entropy", "times the bound", "encoding")
    block = (
        make_table("Size of ternary weights", columns, rows) if rows else missing("sizes", "walsh bench --op compress")
    )
    return Section("sizes", "Sizes", (block,))


def training(material: Material) -> Section:
    """Final losses of the stored training runs."""
    rows: list[list[Cell | str]] = []
    for name, records in material.training.items():
        evaluations = [record for record in records if record["kind"] == "evaluation"]
        if evaluations:
            last = evaluations[-1]
            rows.append([name, number(last["step"], 9), number(last["loss"], 5), number(last["bits_per_byte"], 4)])
    columns = ("run", "step", "loss (nats per token)", "bits per byte")
    block = make_table("Held-out loss", columns, rows) if rows else missing("training runs", "walsh train")
    return Section("loss", "Loss", (block,))


def published(material: Material, claims: ClaimFile) -> Section:
    """Figures of the field beside ours."""
    return Section("claims", "Published figures", (claims_table(claims.claims, material.runs, material.ablations),))


def raw_rows(material: Material) -> Section:
    """Every row with every figure."""
    rows = [_everything(row) for row in all_rows(material)]
    text = "error: largest error of a timed output as a share of what is allowed; A/A: the baseline against itself."
    blocks = (Paragraph(text, "quiet"), make_table("All rows", _EVERYTHING, rows, fold=True))
    return Section("rows", "Rows", blocks)


_EVERYTHING = ("case", "provider", "ratio", "verdict", "p20", "p50", "p80", "rounds", "A/A", "bytes/s", "FLOP/s",
               "dense eq. FLOP/s", "tokens/s", "binds", "of limit", "error", "cache", "timer",
               "machine")  # fmt: skip  # one list, not a column


def _everything(row: Row) -> list[object]:
    """The cells of one row, in the order of ``_EVERYTHING``."""
    return [
        row["case"],
        row["provider"],
        ratio(row["ratio"], row["ratio_low"], row["ratio_high"], row["verdict"]),
        row["verdict"],
        *(duration(row[name]) for name in ("p20", "p50", "p80")),
        number(row["rounds"], 6),
        Cell(f"{row['aa_ratio']:.3f} [{row['aa_low']:.3f}, {row['aa_high']:.3f}]", row["aa_ratio"]),
        quantity(row["bytes_per_second"], "B/s"),
        quantity(row["flops_per_second"], "FLOP/s"),
        quantity(row["dense_flops_per_second"], "FLOP/s"),
        number(row["tokens_per_second"], 4),
        row["binds"],
        Cell(f"{100 * row['fraction']:.1f} %", row["fraction"]),
        number(row["error"], 2),
        row["cache"],
        row["timer"],
        machine_name(row["provenance"]),
    ]


def absent(material: Material) -> Section:
    """What was not measured, by name."""
    rows = [[a["case"], a["provider"], a["reason"], s.name] for s in material.stored for a in s.run.absent]
    blocks: tuple[Block, ...] = (make_table("Not measured", ("case", "provider", "reason", "run"), rows, fold=True),)
    return Section("absent", "Not measured", blocks if rows else (Paragraph("Nothing is missing."),))


def provenance(material: Material) -> Section:
    """What the runs ran on; the same facts stand in every row of the data."""
    names = list(dict.fromkeys(key for s in material.stored for key in s.run.header["provenance"]))
    rows = [[name, *(_fact(s.run.header["provenance"].get(name)) for s in material.stored)] for name in names]
    rows += [[key, *(_fact(s.run.header[key]) for s in material.stored)] for key in ("started", "manifest", "quick")]
    loads = [[row["load_before"] for row in s.run.rows if row["load_before"] is not None] for s in material.stored]
    rows.append(["load average, least and most", *(f"{min(v)} to {max(v)}" if v else "" for v in loads)])
    table = make_table("Provenance", ("fact", *(s.name for s in material.stored)), rows)
    return Section("provenance", "Provenance", (table,))


def _fact(value: object) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)


def reproduce(material: Material) -> Section:
    """Commands."""
    lines = []
    for stored in material.stored:
        commit = stored.run.header["provenance"]["commit"]
        lines.append(f"git checkout {commit}    # {machine_name(stored.run.header['provenance'])}")
        lines.append(f"nox -s bench -- --store {stored.name}")
    lines.append("nox -s report                       # from stored rows, byte for byte")
    return Section("reproduce", "How to reproduce", (Code("\n".join(lines)),))
