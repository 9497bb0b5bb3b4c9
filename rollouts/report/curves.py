"""Figures of training logs and code usage: matplotlib plots as inline SVG.

Each figure is plotted once in placeholder colors, which become CSS variables in the SVG, so one plot serves light and
dark pages. Text stays text. matplotlib is imported in this file alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import require
from vw2_robot.storage.normal_ranges import NormalRanges, phases_of, range_at

Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]
MAX_POINTS = 300
LAST_VALUES = 5
"""of a curve that are compared with its normal range; single batches scatter"""
NORMAL = 7
"""number of the page's color of normal ranges, after those of the lines"""
# Explained change with other codes than the right ones.
OTHER_CODES = re.compile(r"explained_change_(?:shuffled|null)(?=_t)")
EXPLAINED = {"": "right codes", "_shuffled": "those of another clip", "_null": "null codes"}
# Placeholder color in the drawing -> what stands in the page.
INK, GRID = "#010203", "#040506"
LINES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
PAGE_COLORS = {INK: "var(--muted)", GRID: "var(--line)", **{c: f"var(--series-{i})" for i, c in enumerate(LINES, 1)}}


class Panel(NamedTuple):
    """One small figure.

    title: what it shows. svg: the plot. caption: how to read it. legend: (color 1..6 or 0 for none, text), with final
    values. state: "normal", "above" or "below" at the end of training; empty without a normal range.
    """

    title: str
    svg: str
    caption: str
    legend: list[tuple[int, str]]
    state: str = ""


def training_panels(records: Series, *, ids: str, ranges: NormalRanges | None = None) -> list[Panel]:
    """Return one panel per quantity.

    `validation_x` is plotted in the panel of `x`, explained change with shuffled and with null codes in that with the
    right ones, `x_low` to `x_high` as a band around `x`, and a change of phase as a vertical line.

    Args:
        records: Metric key -> (train steps, values).
        ids: Prefix of ids in the SVG; must be unique within a page.
        ranges: Of the reference runs, drawn in gray behind the first line of each panel; None: not drawn.
    """
    bands = {key: (f"{key}_low", f"{key}_high") for key in records if {f"{key}_low", f"{key}_high"} <= records.keys()}
    bounds = {bound for pair in bands.values() for bound in pair}
    # Metric -> the one whose panel it joins; None: a panel of its own.
    partners = {key: _partner(key, records) for key in records if "/validation_" in key or OTHER_CODES.search(key)}
    phase = next((key for key in records if key.endswith("/phase")), None)
    phases = phases_of(*(records[phase] if phase is not None else ([], [])))
    panels: list[Panel] = []
    for key in records:
        if key == phase or partners.get(key) or key in bounds:
            continue
        keys = [key, *(other for other, partner in partners.items() if partner == key and other not in bounds)]
        lines = {_quantity(one): records[one] for one in keys}
        around = {
            _quantity(one): (
                dict(zip(*records[bands[one][0]], strict=True)),
                dict(zip(*records[bands[one][1]], strict=True)),
            )
            for one in keys
            if one in bands
        }
        normal = ranges.curve(key, phases) if ranges is not None else []
        panels.append(
            _training_panel(_quantity(key), lines, phases[1:], bands=around, normal=normal, ids=f"{ids}-{len(panels)}")
        )
    return panels


def _partner(key: str, records: Series) -> str | None:
    """Return the metric that another belongs to: the same name, or of a validation metric also the same last word."""
    if OTHER_CODES.search(key):
        right = OTHER_CODES.sub("explained_change", key)
        return right if right in records else None
    stage, _, name = key.partition("/validation_")
    # Trainings log "policy/code_loss" but "policy/validation_loss": the last word is enough to join them.
    exact = f"{stage}/{name}"
    candidates = [
        k for k in records if k.startswith(f"{stage}/") and k.endswith(f"_{name}") and "/validation_" not in k
    ]
    return exact if exact in records else next(iter(candidates), None)


def _quantity(key: str) -> str:
    return key.split("/", 1)[-1].replace("_", " ")


def _training_panel(
    title: str,
    lines: Series,
    changes: Sequence[tuple[int, float]],
    *,
    bands: Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]],
    normal: Sequence[tuple[list[float], ...]],
    ids: str,
) -> Panel:
    """Return the panel of some lines.

    Args:
        title: Of the panel.
        lines: Name -> (train steps, values).
        changes: Last step before a change of phase, and number of the new phase.
        bands: Name of a line -> its lower and upper bound by train step.
        normal: The normal range of the first line: steps, lower and upper bounds of each phase.
        ids: Prefix of ids in the SVG.
    """
    figure, axes = _axes()
    caption = ""
    for (name, (steps, values)), color in zip(lines.items(), LINES, strict=False):
        x, y, width = thin(steps, values)
        # Few points: markers, since a line of one point is invisible.
        axes.plot(x, y, color=color, linewidth=1.8, label=name, marker="o" if len(x) < 8 else "", markersize=4)
        if width > 1:
            caption = f"each point is the mean of up to {width} logged values"
        if name in bands:
            low, high = bands[name]
            # Values that are not finite were left out, so a step may have one bound alone.
            both = sorted(low.keys() & high.keys())
            x, lower, _ = thin(both, [low[step] for step in both])
            axes.fill_between(
                x, lower, thin(both, [high[step] for step in both])[1], color=color, alpha=0.2, linewidth=0
            )
            caption = "; ".join(filter(None, [caption, "band: 95 % interval"]))
    values = np.concatenate([np.asarray(v) for _, v in lines.values()])
    # A logarithmic axis for losses that fall by a large factor: otherwise all that follows the start is a flat line.
    is_falling = all(v[0] > v[-1] for _, v in lines.values())
    if is_falling and values.min() > 0 and values.max() / values.min() > 50:
        axes.set_yscale("log")
    if normal:
        _plot_normal(axes, normal, values)
    for step, number in changes:
        axes.axvline(step, color=GRID, linewidth=1.5)
        _note(axes, f"phase {number:g}", at=(step, 1), coords=("data", "axes fraction"), shift=(0, 3))
    labels = [name if len(lines) > 1 else "last" for name in lines]
    legend = [
        (i, f"{label} {v[-1]:.4g}") for i, (label, (_, v)) in enumerate(zip(labels, lines.values(), strict=True), 1)
    ]
    state = end_state(*next(iter(lines.values())), normal)
    if state:
        legend.append((NORMAL, "normal range"))
    return Panel(title, _svg(figure, ids=ids), caption, legend, state)


def _plot_normal(axes: Any, normal: Sequence[tuple[list[float], ...]], values: NDArray[np.float64]) -> None:
    """Plot a normal range behind the lines that are there; `values`: of these lines.

    A range reaches farther than a short run, and its begin is wide: the axes stay those of the lines, with at most
    the height of the lines above and below them, a factor of ten on a logarithmic axis.
    """
    left, right = axes.get_xlim()
    for steps, lower, upper in normal:
        axes.fill_between(steps, lower, upper, color=INK, alpha=0.22, linewidth=0, zorder=0)
    bottom, top = axes.get_ylim()
    height = float(np.ptp(values)) or abs(float(values[0])) or 1.0
    lowest, highest = values.min() - height, values.max() + height
    if axes.get_yscale() == "log":
        lowest, highest = values.min() / 10, values.max() * 10
    axes.set(xlim=(left, right), ylim=(max(bottom, lowest), min(top, highest)))


def end_state(steps: Sequence[int], values: Sequence[float], normal: Sequence[tuple[list[float], ...]]) -> str:
    """Return "normal", "above" or "below": where most of the last values that have a normal range lie.

    Args:
        steps: Train steps.
        values: Logged values.
        normal: The normal range: steps, lower and upper bounds of each phase.

    Returns:
        The state; empty without a range at any of the steps.
    """
    known = [
        (value, bounds)
        for step, value in zip(steps, values, strict=True)
        if (bounds := range_at(normal, step)) is not None
    ]
    states = [
        "below" if value < low else "above" if value > high else "normal" for value, (low, high) in known[-LAST_VALUES:]
    ]
    return max(("normal", "above", "below"), key=states.count) if states else ""


def thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float], int]:
    """Return at most `MAX_POINTS` points: means over equally long segments of the log.

    Args:
        steps: Train steps.
        values: Logged values.

    Returns:
        Steps, values, and the number of logged values per point.
    """
    # Rounded up, so that there are never more than MAX_POINTS points.
    width = -(-len(values) // MAX_POINTS)
    if width <= 1:
        return [float(s) for s in steps], [float(v) for v in values], 1
    starts = range(0, len(values), width)
    x = [float(np.mean(steps[i : i + width])) for i in starts]
    y = [float(np.mean(values[i : i + width])) for i in starts]
    return x, y, width


def code_usage_panel(codes: Mapping[str, Any], *, ids: str) -> Panel:
    """Return a figure of the shares of the codes, most frequent first, for all slots together and for each slot.

    Args:
        codes: Content of codes.json.
        ids: Prefix of ids in the SVG; must be unique within a page.
    """
    figure, axes = _axes(width=7.4, height=2.7)
    histogram = np.asarray(codes["histogram"], dtype=np.float64)
    total = histogram.sum()
    # Thin lines below the thick one for all slots together.
    for slot, counts in enumerate(codes.get("by_slot") or []):
        # Sorted by frequency: numbers of codes have no order of their own.
        share = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
        share = share[share > 0] / max(share.sum(), 1.0)
        axes.plot(range(1, len(share) + 1), share, color=LINES[1], linewidth=1.0, alpha=0.6, label=f"slot {slot}")
    share = np.sort(histogram)[::-1]
    share = share[share > 0] / max(total, 1.0)
    axes.plot(range(1, len(share) + 1), share, color=LINES[0], linewidth=2.2, label="all slots")
    # The reference: what each code would have if all were used equally.
    axes.axhline(1 / len(histogram), color=INK, linewidth=1, linestyle=(0, (4, 3)))
    _note(axes, "equal use", at=(0, 1 / len(histogram)), coords=("axes fraction", "data"), shift=(4, 4))
    axes.set_yscale("log")
    axes.set_xlabel("code, most frequent first", color=INK, fontsize=9)
    used = int(codes.get("used", (histogram > 0).sum()))
    perplexity = f", perplexity {codes['perplexity']:.1f}" if "perplexity" in codes else ""
    legend = [(1, "all slots together"), *([(2, "each slot")] if codes.get("by_slot") else [])]
    caption = f"{used} of {len(histogram)} codes used{perplexity}; counted over {total:,.0f} codes"
    return Panel("share of each code", _svg(figure, ids=ids), caption, legend)


def explained_panel(title: str, values: Mapping[str, float | None], *, ids: str) -> Panel:
    """Return a figure of explained change over the noise level, with right, shuffled and null codes.

    Args:
        title: Title of the figure.
        values: "explained_change_t0.97" and so on, and "explained_change_decoder", as vw2-probe-latents writes them.
        ids: Prefix of ids in the SVG; must be unique within a page.
    """
    figure, axes = _axes()
    legend = []
    for number, (codes, label) in enumerate(EXPLAINED.items(), 1):
        prefix = f"explained_change{codes}_t"
        points = {float(key[len(prefix) :]): value for key, value in values.items() if key.startswith(prefix)}
        known = {t: value for t, value in sorted(points.items()) if value is not None}
        axes.plot(list(known), list(known.values()), color=LINES[number - 1], linewidth=1.8, marker="o", markersize=4)
        last = known.get(max(points))
        legend.append((number, f"{label} {'–' if last is None else format(last, '.2f')}"))
    decoder = values["explained_change_decoder"]
    if decoder is not None:
        axes.axhline(decoder, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        _note(axes, "decoder", at=(0, decoder), coords=("axes fraction", "data"), shift=(4, 4))
    axes.axhline(0, color=GRID, linewidth=1.5)
    axes.set_xticks(sorted(points))
    axes.set_xlabel("noise level t", color=INK, fontsize=9)
    return Panel(title, _svg(figure, ids=ids), f"numbers at t = {max(points)}", legend)


def scatter_panel(
    title: str, points: Sequence[Sequence[float]], label: Sequence[int], names: Sequence[str], *, ids: str
) -> Panel:
    """Return a scatter plot without axes, since the axes of such maps have no unit.

    Args:
        title: Title of the figure.
        points: Coordinates [n, 2].
        label: Label of each point [n].
        names: Names of the labels, at most six.
        ids: Prefix of ids in the SVG; must be unique within a page.
    """
    figure, axes = _axes(width=3.6, height=3.0)
    xy = np.asarray(points, dtype=np.float64)
    labels = np.asarray(label)
    for number, color in zip(range(len(names)), LINES, strict=False):
        x, y = xy[labels == number].T
        axes.scatter(x, y, s=5, color=color, alpha=0.55, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    legend = [(i, f"{name} ({int((labels == i - 1).sum())})") for i, name in enumerate(names, 1)]
    return Panel(title, _svg(figure, ids=ids), f"{len(xy)} steps with motion", legend)


def _axes(*, width: float = 3.6, height: float = 1.9) -> tuple[Any, Any]:
    """Return an empty figure and its axes. Without pyplot, which would keep every figure in memory."""
    require("matplotlib", extra="report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # Transparent: the page has a light and a dark background.
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=INK, labelsize=9, length=0)
    axes.locator_params(axis="x", nbins=5, integer=True)
    return figure, axes


def _note(axes: Any, text: str, *, at: tuple[float, float], coords: tuple[str, str], shift: tuple[int, int]) -> None:
    """Write a small text; `shift`: from the point `at`, in points."""
    axes.annotate(text, at, xycoords=coords, xytext=shift, textcoords="offset points", color=INK, fontsize=9)


def _svg(figure: Any, *, ids: str) -> str:
    """Return the figure as an inline SVG without fonts or fixed size; colors are CSS variables."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vw2", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    # What matplotlib writes for a file of its own does not belong into a page: header, metadata, styles (which would
    # apply to the whole page), ids of groups, name spaces, fonts and the size.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'font: ([\d.]+px)[^;"]*', r"font-size: \1", re.sub(r'font-family: [^;"]*;? ?', "", svg))
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img" stroke-linejoin="round">', svg, count=1)
    # The ids that are left are referred to. Several figures share a page, so each gets a prefix of its own.
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{ids}-", svg)
    for placeholder, color in PAGE_COLORS.items():
        svg = svg.replace(placeholder, color)
    return svg
