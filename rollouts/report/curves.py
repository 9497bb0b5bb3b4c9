"""Training logs and code usage as figures: matplotlib drawings, inlined as SVG that follows the page's colors.

Each figure is drawn once in placeholder colors, which become CSS variables in the SVG, so one drawing serves light and
dark pages. Text stays text. matplotlib is imported here and nowhere else.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vw2_robot.errors import require

Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]
MAX_POINTS = 300
# Placeholder color in the drawing -> what stands in the page.
INK, GRID = "#010203", "#040506"
LINES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
PAGE_COLORS = {INK: "var(--muted)", GRID: "var(--line)", **{c: f"var(--series-{i})" for i, c in enumerate(LINES, 1)}}


class Panel(NamedTuple):
    """One small figure. legend: (color 1..6 or 0 for none, text) with final values; caption: how to read it."""

    title: str
    svg: str
    caption: str
    legend: list[tuple[int, str]]


def training_panels(records: Series, *, ids: str) -> list[Panel]:
    """One panel for each quantity; `validation_x` is drawn into the panel of `x`, a change of phase as a line.

    `ids` begins the ids inside the drawings and must be this call's own within a page.
    """
    partners = {key: _partner(key, records) for key in records if "/validation_" in key}
    phase = next((key for key in records if key.endswith("/phase")), None)
    changes = _changes(*records[phase]) if phase else []
    panels: list[Panel] = []
    for key in records:
        if key == phase or partners.get(key):
            continue
        lines = {_quantity(key): records[key]}
        lines |= {_quantity(other): records[other] for other, partner in partners.items() if partner == key}
        panels.append(_training_panel(_quantity(key), lines, changes, ids=f"{ids}-{len(panels)}"))
    return panels


def _partner(key: str, records: Series) -> str | None:
    """The training quantity that a validation quantity belongs to: the same name, or the same last word."""
    stage, _, name = key.partition("/validation_")
    exact = f"{stage}/{name}"
    candidates = [
        k for k in records if k.startswith(f"{stage}/") and k.endswith(f"_{name}") and "/validation_" not in k
    ]
    return exact if exact in records else next(iter(candidates), None)


def _quantity(key: str) -> str:
    return key.split("/", 1)[-1].replace("_", " ")


def _changes(steps: Sequence[int], phases: Sequence[float]) -> list[tuple[int, int]]:
    return [(steps[i - 1], int(phases[i])) for i in range(1, len(phases)) if phases[i] != phases[i - 1]]


def _training_panel(title: str, lines: Series, changes: Sequence[tuple[int, int]], *, ids: str) -> Panel:
    figure, axes = _axes()
    caption = ""
    for (name, (steps, values)), color in zip(lines.items(), LINES, strict=False):
        x, y, width = thin(steps, values)
        axes.plot(x, y, color=color, linewidth=1.8, label=name, marker="o" if len(x) < 8 else "", markersize=4)
        if width > 1:
            caption = f"each point is the mean of up to {width} logged values"
    values = np.concatenate([np.asarray(v) for _, v in lines.values()])
    falls = all(v[0] > v[-1] for _, v in lines.values())
    if falls and values.min() > 0 and values.max() / values.min() > 50:
        axes.set_yscale("log")
    for step, number in changes:
        axes.axvline(step, color=GRID, linewidth=1.5)
        _note(axes, f"phase {number}", at=(step, 1), coords=("data", "axes fraction"), shift=(0, 3))
    words = [name if len(lines) > 1 else "last" for name in lines]
    legend = [(i, f"{word} {v[-1]:.4g}") for i, (word, (_, v)) in enumerate(zip(words, lines.values(), strict=True), 1)]
    return Panel(title, _svg(figure, ids=ids), caption, legend)


def thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float], int]:
    """At most `MAX_POINTS` points: means over equally long stretches of the log, and how long a stretch is."""
    width = -(-len(values) // MAX_POINTS)
    if width <= 1:
        return [float(s) for s in steps], [float(v) for v in values], 1
    stretches = range(0, len(values), width)
    x = [float(np.mean(steps[i : i + width])) for i in stretches]
    return x, [float(np.mean(values[i : i + width])) for i in stretches], width


def code_usage_panel(codes: Mapping[str, Any], *, ids: str) -> Panel:
    """How evenly the codes are used: their shares, most frequent first, for all slots together and for each slot."""
    figure, axes = _axes(width=7.4, height=2.7)
    histogram = np.asarray(codes["histogram"], dtype=np.float64)
    total = histogram.sum()
    for slot, counts in enumerate(codes.get("by_slot") or []):
        share = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
        share = share[share > 0] / max(share.sum(), 1.0)
        axes.plot(range(1, len(share) + 1), share, color=LINES[1], linewidth=1.0, alpha=0.6, label=f"slot {slot}")
    share = np.sort(histogram)[::-1]
    share = share[share > 0] / max(total, 1.0)
    axes.plot(range(1, len(share) + 1), share, color=LINES[0], linewidth=2.2, label="all slots")
    axes.axhline(1 / len(histogram), color=INK, linewidth=1, linestyle=(0, (4, 3)))
    _note(axes, "equal use", at=(0, 1 / len(histogram)), coords=("axes fraction", "data"), shift=(4, 4))
    axes.set_yscale("log")
    axes.set_xlabel("code, most frequent first", color=INK, fontsize=9)
    used = int(codes.get("used", (histogram > 0).sum()))
    perplexity = f", perplexity {codes['perplexity']:.1f}" if "perplexity" in codes else ""
    legend = [(1, "all slots together"), *([(2, "each slot")] if codes.get("by_slot") else [])]
    caption = f"{used} of {len(histogram)} codes used{perplexity}; counted over {total:,.0f} codes"
    return Panel("share of each code", _svg(figure, ids=ids), caption, legend)


def scatter_panel(
    title: str, points: Sequence[Sequence[float]], label: Sequence[int], names: Sequence[str], *, ids: str
) -> Panel:
    """Points [n, 2] colored by label, at most six names; the axes of such maps have no unit and are left out."""
    figure, axes = _axes(width=3.6, height=3.0)
    place, kind = np.asarray(points, dtype=np.float64), np.asarray(label)
    for number, color in zip(range(len(names)), LINES, strict=False):
        x, y = place[kind == number].T
        axes.scatter(x, y, s=5, color=color, alpha=0.55, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    legend = [(i, f"{name} ({int((kind == i - 1).sum())})") for i, name in enumerate(names, 1)]
    return Panel(title, _svg(figure, ids=ids), f"{len(place)} steps that move", legend)


def _axes(*, width: float = 3.6, height: float = 1.9) -> tuple[Any, Any]:
    require("matplotlib", extra="report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=INK, labelsize=9, length=0)
    axes.locator_params(axis="x", nbins=5, integer=True)
    return figure, axes


def _note(axes: Any, text: str, *, at: tuple[float, float], coords: tuple[str, str], shift: tuple[int, int]) -> None:
    axes.annotate(text, at, xycoords=coords, xytext=shift, textcoords="offset points", color=INK, fontsize=9)


def _svg(figure: Any, *, ids: str) -> str:
    """The figure as an inline SVG without fonts or fixed size; colors are CSS variables."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vw2", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'font: ([\d.]+px)[^;"]*', r"font-size: \1", re.sub(r'font-family: [^;"]*;? ?', "", svg))
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img" stroke-linejoin="round">', svg, count=1)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{ids}-", svg)
    for placeholder, color in PAGE_COLORS.items():
        svg = svg.replace(placeholder, color)
    return svg
