"""Pictures of a model: component energy, zeros, mixers and norms by layer; one PNG and one HTML page.

Colours show the deviation from what is even: 1 for energy, the fraction at initialisation for zeros, 0 for mixers.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from walsh.model.accounting import PARTS, count_parts
from walsh.model.analysis import QUANTILES, Analysis, Table
from walsh.model.config import WalshConfig
from walsh.reference.config import LINEARS
from walsh.reporting import content, page


def write_analysis(found: Analysis, config: WalshConfig, title: str, folder: Path) -> list[Path]:
    """Write ``analysis.png`` and ``analysis.html``.

    Args:
        found: what was measured.
        config: of the model.
        title: of the page.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(found, config, title)
    png, html = folder / "analysis.png", folder / "analysis.html"
    figure.savefig(png, dpi=130)
    html.write_text(page.render(title, _sections(found, config, figure)), encoding="utf-8")
    return [png, html]


def draw(found: Analysis, config: WalshConfig, title: str) -> Figure:
    """The figure: two heat maps above, mixers (if there are any) and norms below."""
    n, layers = config.dimension, config.n_layer
    figure = Figure(figsize=(11, 3.6 + 0.34 * (2 * layers + 1)), layout="constrained")
    figure.suptitle(f"{title}: {config.algebra}, {layers} layers, {config.n_embd} wide, on {found.tokens:,} tokens")
    # One character a place: energy and zeros above, mixers and norms below.
    places = figure.subplot_mosaic("EZ;NN" if found.mixer is None else "EZ;MN")
    energy, zeros, norms = places["E"], places["Z"], places["N"]
    names = ["embedding", *(f"block {layer}" for layer in range(layers))]
    what = "frequency g" if config.algebra == "hadamard" else "component"
    spread = max(float(np.abs(np.log2(found.energy)).max()), 0.1)
    _heat(energy, np.log2(found.energy), names, list(map(str, range(n))), "PuOr_r", (-spread, spread), "log2")
    energy.set(title="energy of components in the stream, of the mean", xlabel=what.replace("frequency g", "block"))
    if np.isfinite(found.zeros).any():
        _heat(zeros, found.zeros, names[1:], [n.split(".")[1] for n in LINEARS], "viridis", None, "fraction")
        zeros.set_title("zeros among the ternary weights")
        if layers <= 12:
            _write_numbers(zeros, found.zeros)
    else:
        _nothing(zeros, "weights are not ternary")
    if found.mixer is not None:
        mixer = places["M"]
        _heat(mixer, found.mixer, names[1:], list(map(str, range(n))), "magma", (0.0, None), "relative norm")
        mixer.set(title="how far each mixer block went from its beginning", xlabel=what)
    low, middle, high = found.norms.T
    depth = np.arange(len(names))
    norms.fill_between(depth, low, high, alpha=0.25, color="#1f5fa8", lw=0, label="5 % to 95 % of tokens")
    norms.plot(depth, middle, "o-", color="#1f5fa8", ms=4, label="median token")
    norms.set(title="root mean square of the stream", yscale="log")
    norms.set_xticks(depth, names, rotation=30, ha="right")
    norms.grid(alpha=0.25)
    norms.legend(frameon=False)
    return figure


def _heat(
    axes: Axes,
    values: Table,
    rows: list[str],
    columns: list[str],
    colours: str,
    limits: tuple[float, float | None] | None,
    label: str,
) -> None:
    low, high = limits or (None, None)
    image = axes.imshow(values, cmap=colours, aspect="auto", vmin=low, vmax=high, interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows)
    # A label per block up to 16 of them, every fourth beyond.
    step = 1 if len(columns) <= 16 else 4
    axes.set_xticks(range(0, len(columns), step), columns[::step])
    axes.figure.colorbar(image, ax=axes, label=label, pad=0.02)


def _write_numbers(axes: Axes, values: Table) -> None:
    """Each value in its cell, dark on light and light on dark: colours show a difference, numbers how small it is."""
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color="#777777")
    axes.set_axis_off()


def _sections(found: Analysis, config: WalshConfig, figure: Figure) -> list[content.Section]:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    picture = content.Figure(
        svg[svg.index("<svg") :], "Component energy, zeros, mixers and norms by layer.", "analysis"
    )
    counts = [
        (part.name, *(content.Cell(f"{number:,}", number) for number in (part.parameters, part.ternary)))
        for part in count_parts(config)
    ]
    assert {name for name, *_ in counts} <= set(PARTS)
    linear = [[layer, *_numbers(row)] for layer, row in enumerate(found.zeros)]
    energy = [[name, *_numbers(row)] for name, row in zip(_stream(config), found.energy, strict=True)]
    norms = [[name, *_numbers(row)] for name, row in zip(_stream(config), found.norms, strict=True)]
    blocks: list[content.Block] = [
        picture,
        content.make_table("Parameters", ("part", "all", "ternary"), counts),
        content.make_table("Fraction of zeros", ("block", *LINEARS), linear),
        content.make_table("Energy of components", ("after", *map(str, range(config.dimension))), energy, fold=True),
        content.make_table("Root mean square", ("after", *(f"{q:.0%}" for q in QUANTILES)), norms, fold=True),
    ]
    if found.mixer is not None:
        mixers = [[layer, *_numbers(row)] for layer, row in enumerate(found.mixer)]
        blocks.append(
            content.make_table("Change of mixers", ("block", *map(str, range(config.dimension))), mixers, fold=True)
        )
    return [content.Section("analysis", "What the algebra does", tuple(blocks))]


def _stream(config: WalshConfig) -> list[str]:
    return ["embedding", *(f"block {layer}" for layer in range(config.n_layer))]


def _numbers(row: Any) -> list[content.Cell]:
    return [content.Cell(f"{value:.3f}", float(value)) if np.isfinite(value) else content.Cell("-") for value in row]
