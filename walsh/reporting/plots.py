"""Plots as inline SVG that follow the page's colours, light or dark, and are the same bytes every time.

Matplotlib draws with placeholder colours; afterwards each becomes a CSS variable, black becomes ``currentColor``. Text
stays text, ids are salted with a constant, and no date is written.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from walsh.reporting.content import Figure as Picture

COLOURS = ("#010203", "#020304", "#030405", "#040506", "#050607", "#060708")
"""Placeholders of the page's series colours ``--s0`` to ``--s5``."""
MUTED = "#0a0b0c"
WIDTH = 9.4
"""Inches of every figure, so that text has one size on the page."""
MARKERS = ("o", "s", "D", "^", "v", "P")

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "walsh",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def _render(figure: Figure, name: str, caption: str) -> Picture:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--s{i})")
    svg = svg.replace(MUTED, "var(--muted)").replace("#000000", "currentColor")
    # Ids are unique within a picture only; a page has several.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" ', r"<svg \1", svg, count=1)
    svg = re.sub(r"[ \t]+\n", "\n", svg)
    # A text without its own fill is black on any page.
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_escape(caption)}" fill="currentColor" ', 1)
    return Picture(svg, caption, name)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def speedup_dots(rows: Sequence[Mapping[str, Any]], name: str, caption: str) -> Picture:
    """Ratios with their intervals on a logarithmic axis; the A/A spread of each case as a band around 1."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(WIDTH, 0.8 + 0.21 * len(rows))
        groups = sorted({_group(row) for row in rows}, key=lambda group: (not group.startswith("walsh"), group))
        for y, row in enumerate(rows):
            colour = COLOURS[groups.index(_group(row)) % len(COLOURS)]
            marker = MARKERS[groups.index(_group(row)) % len(MARKERS)]
            axes.fill_betweenx([y - 0.4, y + 0.4], row["aa_low"], row["aa_high"], color=MUTED, alpha=0.18, lw=0)
            axes.plot([row["ratio_low"], row["ratio_high"]], [y, y], color=colour, lw=1.6, solid_capstyle="round")
            axes.plot([row["ratio"]], [y], marker=marker, color=colour, ms=4.5, ls="none")
        axes.axvline(1.0, color=MUTED, lw=0.8)
        axes.set_xscale("log")
        low = min([0.5, *(row["ratio_low"] for row in rows)])
        high = max([2.0, *(row["ratio_high"] for row in rows)])
        axes.set_xlim(low / 1.15, high * 1.15)
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low / 1.2 < t < high * 1.2]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks(range(len(rows)), [f"{row['case']} · {row['provider']}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("times faster than the named baseline")
        for i, group in enumerate(groups):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.plot([], [], marker=marker, color=colour, ls="none", ms=4.5, label=group)
        figure.legend(loc="outside upper right", ncols=min(len(groups), 4), handletextpad=0.2)
        return _render(figure, name, caption)


def ratio_over_width(rows: Sequence[Mapping[str, Any]], name: str, caption: str) -> Picture:
    """Ratios to the dense step over the width of the model; rows of one provider in order of width."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(WIDTH, 3.2)
        widths, ratios = [row["width"] for row in rows], [row["ratio"] for row in rows]
        low, high = [row["ratio_low"] for row in rows], [row["ratio_high"] for row in rows]
        axes.fill_between(widths, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(widths, ratios, color=COLOURS[0], marker=MARKERS[0], ms=4.5)
        axes.axhline(1.0, color=MUTED, lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        axes.set_ylim(0, max(1.2, *high) * 1.05)
        axes.set_xlabel("width of the model")
        axes.set_ylabel("times faster than dense")
        return _render(figure, name, caption)


def _group(row: Mapping[str, Any]) -> str:
    return f"walsh, {row['backend']}" if row["backend"] else "other packages"


def roofline(
    rows: Sequence[Mapping[str, Any]], bandwidth: float, peaks: Mapping[str, float], name: str, caption: str
) -> Picture:
    """FLOP/s over FLOP per byte, under the measured bandwidth and GEMM peaks."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(WIDTH, 4.2)
        points = [row for row in rows if row["flops"] and row["bytes"]]
        intensity = [row["flops"] / row["bytes"] for row in points] or [1.0]
        left, right = min(0.05, *intensity) / 2, max(1000.0, *intensity) * 2
        for i, (dtype, peak) in enumerate(sorted(peaks.items())):
            corner = peak / bandwidth
            colour = COLOURS[i % len(COLOURS)]
            axes.plot([left, corner, right], [left * bandwidth, peak, peak], color=colour, lw=1.2)
            axes.annotate(dtype, (right, peak), color=colour, ha="right", va="bottom", xytext=(0, 2),
                          textcoords="offset points")  # fmt: skip  # one call
        kinds = (("baseline", "o", "none"), ("candidate", "o", "full"), ("peer", "^", "none"))
        for role, marker, fill in kinds:
            mine = [row for row in points if row["role"] == role]
            if mine:
                axes.plot(
                    [row["flops"] / row["bytes"] for row in mine],
                    [row["flops_per_second"] for row in mine],
                    ls="none", marker=marker, ms=4.5, color="black", label=role,
                    fillstyle="none" if fill == "none" else "full",
                )  # fmt: skip  # options read best as a list
        axes.set(xscale="log", yscale="log", xlim=(left, right))
        axes.set_xlabel("executed FLOP per compulsory byte")
        axes.set_ylabel("executed FLOP/s")
        axes.legend(loc="lower right")
        return _render(figure, name, caption)


def stacked_bars(values: Mapping[str, Mapping[str, float]], unit: str, name: str, caption: str) -> Picture:
    """One bar per row, split by scope."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(WIDTH, 0.9 + 0.4 * len(values))
        scopes = sorted({scope for parts in values.values() for scope in parts})
        left = dict.fromkeys(values, 0.0)
        for i, scope in enumerate(scopes):
            widths = [parts.get(scope, 0.0) for parts in values.values()]
            axes.barh(list(values), widths, left=list(left.values()), height=0.62,
                      color=COLOURS[i % len(COLOURS)], label=scope)  # fmt: skip  # one call
            left = {key: left[key] + width for key, width in zip(values, widths, strict=True)}
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper right", ncols=min(len(scopes), 5), handletextpad=0.4)
        return _render(figure, name, caption)


def speed_over_size(points: Sequence[Mapping[str, Any]], name: str, caption: str) -> Picture:
    """Tokens per second over bytes of the model; hollow: published by others, not measured here."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(WIDTH, 4.0)
        for measured, fill in ((True, "full"), (False, "none")):
            mine = [point for point in points if point["measured"] is measured]
            axes.plot([p["bytes"] for p in mine], [p["tokens_per_second"] for p in mine], ls="none", marker="o", ms=5,
                      color=COLOURS[0] if measured else MUTED, fillstyle=fill,
                      label="measured in this report" if measured else "as published, not measured here",
                      )  # fmt: skip  # options read best as a list
        axes.set(xscale="log", yscale="log")
        axes.margins(x=0.25, y=0.2)
        for axis, unit in ((axes.xaxis, "B"), (axes.yaxis, "")):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(EngFormatter(unit))
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("size of the model")
        axes.set_ylabel("tokens per second")
        _label_apart(axes, points)
        axes.legend(loc="best")
        return _render(figure, name, caption)


def _label_apart(axes: Any, points: Sequence[Mapping[str, Any]], height: float = 11.0) -> None:
    """Name every point to its right; of neighbours the upper ones move up until no two names overlap."""
    placed: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p["tokens_per_second"], p["bytes"])):
        x, y = axes.transData.transform((point["bytes"], point["tokens_per_second"])) * 72 / axes.figure.dpi
        near = [above for left, above in placed if abs(left - x) < 150]
        level = max([y - 4, *(above + height for above in near if above + height > y - 4)])
        placed.append((x, level))
        axes.annotate(point["label"], (point["bytes"], point["tokens_per_second"]), fontsize=7.5,
                      xytext=(6, level - y), textcoords="offset points")  # fmt: skip  # one call
