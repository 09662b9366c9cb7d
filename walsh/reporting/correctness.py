"""Sections on what was found: verdict, changes since the run before, parity and kill matrix, the run's own teeth."""

from __future__ import annotations

from collections import Counter

from walsh.measure.provenance import machine_name
from walsh.reporting.compare import Comparison, compare_runs
from walsh.reporting.content import (
    Block,
    Cell,
    Paragraph,
    Section,
    Table,
    make_table,
    number,
)
from walsh.reporting.inputs import Material
from walsh.reporting.rows import missing
from walsh.suite.catalog import LANES, OPS


def verdict(material: Material) -> Section:
    """What the stored runs found, in a few lines each."""
    blocks: list[Block] = []
    for stored in material.stored:
        run, mine = stored.run, [row for row in stored.run.rows if row["role"] == "candidate"]
        counts = Counter(row["verdict"] for row in mine)
        problems = run.footer["problems"]
        spread = sorted(row["aa_high"] - 1 for row in run.rows if row["role"] == "baseline")
        middle = spread[len(spread) // 2] if spread else 0.0
        text = (
            f"{machine_name(run.header['provenance'])}: of {len(mine)} measurements of walsh's kernels "
            f"{counts['faster']} are faster than their baseline, {counts['equal']} equal, {counts['slower']} slower. "
            f"The baseline against itself stays within {100 * middle:.1f} % in the median case, "
            f"{100 * max(spread, default=0):.1f} % at worst."
        )
        blocks.append(Paragraph(text))
        proofs = [
            f"{name}: {v['passed']} vectors passed, {v['skipped']} skipped"
            for name, v in run.header["conformance"].items()
        ]
        blocks.append(
            Paragraph("Conformance before timing: " + ("; ".join(proofs) or "nothing that needs it"), "quiet")
        )
        kind = "bad" if problems else "good"
        blocks.append(Paragraph(f"{len(problems)} problems." if problems else "No problems.", kind))
        blocks += [Paragraph(problem, "bad") for problem in problems]
    return Section("verdict", "Verdict", tuple(blocks))


def _comparison_table(found: Comparison, caption: str) -> Table:
    tones = {"regression": "bad", "improvement": "good", "same": "quiet"}
    rows = [
        [
            c.case,
            c.provider,
            number(c.old),
            number(c.new),
            Cell(f"{c.value:.3f} [{c.low:.3f}, {c.high:.3f}]", c.value, tones[c.kind]),
            Cell(c.kind, tone=tones[c.kind]),
        ]
        for c in found.changes
    ]
    return make_table(caption, ("case", "provider", "ratio before", "ratio now", "change", "kind"), rows, fold=True)


def changes(material: Material) -> Section:
    """Ratios and counts against the run before."""
    blocks: list[Block] = []
    for stored in material.stored:
        name = machine_name(stored.run.header["provenance"])
        if stored.previous is None:
            blocks.append(Paragraph(f"{name}: no earlier run is stored beside this one.", "quiet"))
            continue
        found = compare_runs(stored.previous, stored.run)
        kinds = Counter(change.kind for change in found.changes)
        blocks.append(
            Paragraph(
                f"{name}: against the run of {stored.previous.header['started']}: {kinds['regression']} regressions, "
                f"{kinds['improvement']} improvements, {kinds['same']} the same, {len(found.appeared)} new rows, "
                f"{len(found.vanished)} gone, {len(found.counts)} counts differ.",
                "bad" if found.regressions else "good",
            )
        )
        blocks += [Paragraph(remark, "bad") for remark in found.remarks]
        blocks.append(_comparison_table(found, f"Changes, {name}"))
        if found.counts:
            rows = [[n, s, number(a, 12), number(b, 12)] for s, n, a, b in found.counts]
            blocks.append(make_table("Counts that differ", ("count", "section", "before", "now"), rows))
    return Section("changes", "What changed", tuple(blocks))


def parity(material: Material) -> Section:
    """Op by lane for each backend, from the conformance runs."""
    blocks: list[Block] = []
    for stored in material.stored:
        if stored.conformance is None:
            continue
        cells: dict[tuple[str, str, str], Counter[str]] = {}
        for case in stored.conformance.cases:
            key = (case["op"], case["backend"], case["lane"])
            cells.setdefault(key, Counter())[case["outcome"]] += 1
        lanes = [lane for lane in LANES if any(key[2] == lane for key in cells)]
        backends = sorted({key[1] for key in cells})
        rows = [
            [op, backend, *(_parity_cell(cells.get((op, backend, lane))) for lane in lanes)]
            for op in OPS
            for backend in backends
            if any((op, backend, lane) in cells for lane in lanes)
        ]
        first = stored.conformance.header
        blocks.append(
            Paragraph(f"{stored.name}: commit {str(first['commit'])[:12]}, vectors {first['manifest'][:12]}.", "quiet")
        )
        columns = ("op", "backend", *(lane.replace("_", " ") for lane in lanes))
        blocks.append(make_table(f"Vectors passed, {stored.name}", columns, rows))
    if not blocks:
        blocks.append(missing("a conformance report", "walsh bench --store NAME"))
    return Section("parity", "Parity matrix", tuple(blocks))


def _parity_cell(counts: Counter[str] | None) -> Cell:
    if not counts:
        return Cell("")
    bad = sum(counts[name] for name in ("fail", "error", "xpass"))
    words = [f"{count} {name}" if name != "pass" else str(count) for name, count in sorted(counts.items()) if count]
    return Cell(", ".join(words), float(sum(counts.values())), "bad" if bad else "good" if counts["pass"] else "quiet")


def kill_matrix(material: Material) -> Section:
    """Seeded bugs by op and backend, and how many the vectors kill."""
    if not material.kills:
        return Section("kills", "Kill matrix", (missing("the kill matrix", "nox -s deep -- --part mutants"),))
    groups: dict[tuple[str, str], Counter[str]] = {}
    for campaign in material.kills:
        for mutant in campaign["mutants"]:
            groups.setdefault((mutant["op"], mutant["backend"]), Counter())[mutant["status"]] += 1
    backends = [name for name in _BACKENDS if any(backend == name for _, backend in groups)]
    rows = [
        [op, *(_kill_cell(groups.get((op, backend), Counter())) for backend in backends)]
        for op in sorted({op for op, _ in groups})
    ]
    total = sum(counts.total() for counts in groups.values())
    killed = sum(counts["killed"] for counts in groups.values())
    text = f"{killed} of {total} seeded bugs are killed by the vectors alone."
    table = make_table("Seeded bugs that the vectors kill", ("op", *backends), rows)
    return Section("kills", "Kill matrix", (Paragraph(text, "good" if killed == total else "quiet"), table))


_BACKENDS = ("reference", "torch", "triton", "rust")
"""Where bugs are seeded: NumPy, PyTorch, Triton in its interpreter, and the engine."""


def _kill_cell(counts: Counter[str]) -> Cell:
    """The number of killed ones, and what became of the others."""
    killed, others = counts["killed"], {status: count for status, count in sorted(counts.items()) if status != "killed"}
    words = ", ".join([str(killed), *(f"{count} {status}" for status, count in others.items() if count)])
    tone = "bad" if set(others) - {"excused"} else "quiet" if others else "good"
    return Cell(words, float(killed), tone) if counts else Cell("", 0.0)


def teeth(material: Material) -> Section:
    """Whether the benchmark noticed what it is for."""
    blocks: list[Block] = []
    for stored in material.stored:
        if stored.teeth is None:
            continue
        found = stored.teeth
        blocks.append(
            Paragraph(f"{machine_name(found['provenance'])}, {found['started']}, {found['repeats']} repeats.", "quiet")
        )
        rows = [
            [
                Cell(finding["experiment"]),
                Cell(finding["case"]),
                Cell("yes" if finding["noticed"] else "no", tone="good" if finding["noticed"] else "bad"),
                Cell(finding["what"]),
            ]
            for finding in found["findings"]
        ]
        blocks.append(
            make_table("Experiments on the benchmark itself", ("experiment", "case", "noticed", "what"), rows)
        )
    if not blocks:
        blocks.append(missing("experiments on the benchmark itself", "python -m bench.teeth --store FILE"))
    return Section("teeth", "Does the benchmark notice?", tuple(blocks))
