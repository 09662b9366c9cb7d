"""The report in its order: what is the verdict, what changed, is it right, how fast, how large, where it loses."""

from __future__ import annotations

from walsh.reporting import correctness, records, speed
from walsh.reporting.claims import ClaimFile
from walsh.reporting.content import Section
from walsh.reporting.inputs import Material


def all_sections(material: Material, claims: ClaimFile) -> list[Section]:
    """Every section, in order."""
    return [
        correctness.verdict(material),
        correctness.changes(material),
        correctness.parity(material),
        speed.speedups(material),
        speed.step_over_width(material),
        speed.rooflines(material),
        speed.instructions(material),
        speed.speed_and_size(material, claims),
        records.sizes(material),
        records.training(material),
        correctness.kill_matrix(material),
        correctness.teeth(material),
        speed.losses(material),
        records.published(material, claims),
        records.raw_rows(material),
        records.absent(material),
        records.provenance(material),
        records.reproduce(material),
    ]
