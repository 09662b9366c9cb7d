"""Sections on speed: ratios, limits, instructions, tokens per second over size, and where the baseline wins."""

from __future__ import annotations

from walsh.measure.machine import Limits
from walsh.measure.provenance import machine_name
from walsh.reporting import plots
from walsh.reporting.claims import ClaimFile
from walsh.reporting.content import (
    Block,
    Cell,
    Paragraph,
    Section,
    duration,
    make_table,
    number,
    quantity,
    ratio,
)
from walsh.reporting.inputs import Material
from walsh.reporting.rows import Row, all_rows, challengers, missing


def speedups(material: Material) -> Section:
    """Every ratio with its interval, sorted, best first."""
    blocks: list[Block] = []
    for i, stored in enumerate(material.stored):
        rows = sorted(challengers(stored), key=lambda row: (-row["ratio"], row["case"], row["provider"]))
        name = machine_name(stored.run.header["provenance"])
        if rows:
            caption = (
                f"Times faster than the named baseline, 95 % intervals, log scale; grey: the baseline itself. {name}."
            )
            blocks.append(plots.speedup_dots(rows, f"dots{i}", caption))
    blocks.append(
        Paragraph(
            "A ratio is the median over interleaved pairs; faster and slower mean that its interval excludes 1 and "
            "that it lies outside what the baseline does against itself in the same case.",
            "quiet",
        )
    )
    return Section("speedups", "Speed-ups", tuple(blocks))


def step_over_width(material: Material) -> Section:
    """From which width on a hyper-complex training step is faster than a dense one."""
    blocks: list[Block] = []
    for i, stored in enumerate(material.stored):
        rows = [
            {**row, "width": row["shape"]["C"]} for row in challengers(stored) if "train_step/width/" in row["case"]
        ]
        if len(rows) < 2:
            continue
        rows.sort(key=lambda row: row["width"])
        name = machine_name(stored.run.header["provenance"])
        faster = [row["width"] for row in rows if row["ratio_low"] > 1]
        always = next((w for w in faster if all(row["ratio_low"] > 1 for row in rows if row["width"] >= w)), None)
        found = "at none of these widths" if always is None else f"from width {always} on"
        blocks.append(
            Paragraph(
                f"An octonion training step (loss, gradients, clipping, AdamW; two layers, 8 x 128 tokens) is faster "
                f"than the dense one of equal width {found}. {name}."
            )
        )
        caption = f"Dense step time over octonion step time, band: 95 % interval. {name}."
        blocks.append(plots.ratio_over_width(rows, f"width{i}", caption))
    if not blocks:
        blocks.append(missing("training steps over width", "walsh bench --op train_step --store NAME"))
    return Section("width", "Training step over width", tuple(blocks))


def rooflines(material: Material) -> Section:
    """Limits of each machine, and how close everything comes."""
    blocks: list[Block] = []
    for i, stored in enumerate(material.stored):
        limits = Limits.from_dict(stored.run.header["limits"])
        name = machine_name(stored.run.header["provenance"])
        bandwidth = max(limits.bandwidth.values())
        peaks = {dtype: rate for dtype, rate in limits.peak.items() if dtype != "wasm"}
        caption = f"Roofline, {name}: measured bandwidth and GEMM peaks of the same run."
        blocks.append(plots.roofline(stored.run.rows, bandwidth, peaks, f"roof{i}", caption))
        rows = [[f"copy or sum, {size >> 10:,} KiB", quantity(r, "B/s")] for size, r in limits.bandwidth.items()]
        rows += [[f"GEMM, {dtype}", quantity(rate, "FLOP/s")] for dtype, rate in sorted(peaks.items())]
        if "wasm" in limits.peak:
            rows.append(["Wasm i32x4.dot_i16x8_s", quantity(limits.peak["wasm"] / 2, "MAC/s")])
        rows.append(["shortest call", duration(limits.launch)])
        rows += [[what, Cell(f"not measured: {why}")] for what, why in sorted(limits.missing.items())]
        blocks.append(make_table(f"Limits, {name}", ("limit", "best seen"), rows))
    return Section("rooflines", "Limits of the machine", tuple(blocks))


def instructions(material: Material) -> Section:
    """Internet Computer instructions per token by scope."""
    blocks: list[Block] = []
    marker = "instructions: "
    for i, stored in enumerate(material.stored):
        parts: dict[str, dict[str, float]] = {}
        for count in stored.run.counts:
            case, _, what = count["name"].rpartition(" | ")
            if what.startswith(marker):
                parts.setdefault(case, {})[what.removeprefix(marker)] = count["value"]
        if parts:
            caption = "Internet Computer instructions per token, exact, by scope."
            blocks.append(plots.stacked_bars(parts, "instructions per token", f"ic{i}", caption))
            rows = [
                [case, scope, Cell(f"{int(value):,}", value)]
                for case, scopes in parts.items()
                for scope, value in scopes.items()
            ]
            blocks.append(make_table("Instructions per token", ("case", "scope", "instructions"), rows))
            break
    if not blocks:
        blocks.append(missing("instructions of the canister", "walsh bench --op canister --store NAME"))
    return Section("instructions", "Instructions per token", tuple(blocks))


def speed_and_size(material: Material, claims: ClaimFile) -> Section:
    """Tokens per second over bytes of the model."""
    points = []
    for stored in material.stored:
        for row in stored.run.rows:
            if row["op"] == "decode" and row["model_bytes"] and row["tokens_per_second"]:
                model = row["case"].split("/")[1:-1]
                label = ", ".join([row["provider"], *model, *([stored.name] if len(material.stored) > 1 else [])])
                points.append(
                    {
                        "label": label,
                        "bytes": row["model_bytes"],
                        "tokens_per_second": row["tokens_per_second"],
                        "measured": True,
                    }
                )
    if not points:
        return Section("size", "Tokens per second and size", (missing("decoding", "walsh bench --op decode"),))
    points += [{**entry, "measured": False} for entry in claims.published]
    caption = "Decoding one stream: tokens per second over bytes of the model."
    rows = [
        [
            p["label"],
            "measured here" if p["measured"] else "as published",
            Cell(f"{p['bytes'] / 1e6:,.1f} MB", p["bytes"]),
            number(p["tokens_per_second"], 4),
        ]
        for p in points
    ]
    columns = ("what", "source", "model", "tokens/s")
    blocks = (plots.speed_over_size(points, "size0", caption), make_table("Points of the plot", columns, rows))
    return Section("size", "Tokens per second and size", blocks)


def losses(material: Material) -> Section:
    """Where the baseline wins."""
    rows = [_summary(row) for row in all_rows(material) if row["verdict"] == "slower" and row["role"] == "candidate"]
    rows.sort(key=lambda cells: cells[3].value or 0.0)
    text = "Where walsh's kernels are slower than the named baseline, worst first."
    blocks: tuple[Block, ...] = (Paragraph(text), make_table("Losses", _SUMMARY, rows))
    return Section("losses", "Where the baseline wins", blocks if rows else (Paragraph("Nowhere in these runs."),))


_SUMMARY = ("case", "provider", "baseline", "ratio", "p50", "binds", "of limit", "machine")


def _summary(row: Row) -> list[Cell]:
    return [
        Cell(row["case"]),
        Cell(row["provider"]),
        Cell(row["baseline"]),
        ratio(row["ratio"], row["ratio_low"], row["ratio_high"], row["verdict"]),
        duration(row["p50"]),
        Cell(row["binds"]),
        Cell(f"{100 * row['fraction']:.0f} %", row["fraction"]),
        Cell(machine_name(row["provenance"])),
    ]
