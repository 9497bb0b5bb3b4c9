"""A figure of rows with every seed as a dot, as SVG text: a function of the numbers alone, so a page stays the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL_WIDTH, ROW_HEIGHT, MARGIN, AXIS_HEIGHT = 840, 330, 30, 12, 40
DOT, APART = 3.5, 6.0
"""radius, and how far apart vertically dots lie that would cover one another"""
MISSING = "not run"


class Dots(NamedTuple):
    """A row: its label, the value of each seed, and the interval of their mean (None: fewer than two seeds)."""

    label: str
    values: Sequence[float]
    interval: tuple[float, float] | None


def seed_figure(rows: Sequence[Dots], *, axis: str) -> str:
    """Return the figure as SVG.

    Args:
        rows: from top to bottom; one without values says so.
        axis: what the values are, with their unit.
    """
    shown = [value for row in rows for value in (*row.values, *(row.interval or ()))]
    ticks = axis_ticks(min(shown, default=0.0), max(shown, default=1.0))
    left, right = LABEL_WIDTH, WIDTH - MARGIN - 10

    def x(value: float) -> float:
        return left + (right - left) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    bottom = MARGIN + ROW_HEIGHT * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + AXIS_HEIGHT}" '
        f'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{bottom + AXIS_HEIGHT}" fill="white"/>',
    ]
    for tick in ticks:
        lines.append(f'<path d="M{x(tick):.1f} {MARGIN}V{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{tick:g}</text>')
    lines.append(
        f'<text x="{(left + right) / 2:.1f}" y="{bottom + 34}" text-anchor="middle" fill="#555">{escape(axis)}</text>'
    )
    for number, row in enumerate(rows):
        y = MARGIN + ROW_HEIGHT * (number + 0.5)
        lines.append(f'<text x="{left - 12}" y="{y + 4.5:.1f}" text-anchor="end">{escape(row.label)}</text>')
        if not row.values:
            lines.append(f'<text x="{left + 6}" y="{y + 4.5:.1f}" fill="#999">{MISSING}</text>')
            continue
        if row.interval is not None:
            low, high = (x(value) for value in row.interval)
            lines.append(f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="#888" stroke-width="2"/>')
        mean = x(sum(row.values) / len(row.values))
        lines.append(f'<path d="M{mean:.1f} {y - 9:.1f}v18" stroke="black" stroke-width="2"/>')
        for place, level in stacked([x(value) for value in row.values]):
            lines.append(f'<circle cx="{place:.1f}" cy="{y + level:.1f}" r="{DOT}" fill="#1f5fa8" fill-opacity="0.8"/>')
    return "\n".join([*lines, "</svg>", ""])


def stacked(places: Sequence[float]) -> list[tuple[float, float]]:
    """Return (place, vertical shift) of dots from left to right, so that none is hidden by another."""
    found: list[tuple[float, float]] = []
    for place in sorted(places):
        # 0, then alternately above and below.
        near = [shift for other, shift in found if place - other < 2 * DOT]
        free = (sign * APART * step for step in range(len(near) + 1) for sign in ((1, -1) if step else (1,)))
        found.append((place, next(shift for shift in free if shift not in near)))
    return found


def axis_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, three to nine of them."""
    if low == high:
        low, high = low - 1, high + 1
    # The first of 1, 2, 5, 10, 20... times a power of ten with which at most seven steps lie between the two.
    power = 10.0 ** math.floor(math.log10((high - low) / 7))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * power) <= 7)
    # Rounded, since 3 * 0.1 is no round number.
    return [round(number * step, 10) for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
