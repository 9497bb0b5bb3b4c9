"""Tables of the report: markdown, LaTeX, and the published rows of the paper.

Every measured number carries its 95 % interval. The paper's rows have no intervals and were measured with other data
and another renderer, so they are in a table of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..results import CHAIN_LENGTH, labels_text, percent
from .run_folders import Rollout, Stage


class PaperRow(NamedTuple):
    """One row of the CALVIN table of VideoWorld 2: success in percent at 1 and 5 tasks, average length."""

    method: str
    pretraining: str
    labels: str
    first: float
    fifth: float
    length: float


# VideoWorld 2, CALVIN table, as far as its rows are known; tasks 2 to 4 are not given there.
PAPER_ROWS = (
    PaperRow("Transformer", "none", "100 % (22k)", 80.9, 24.6, 2.36),
    PaperRow("Transformer", "none", "10 %", 50.5, 0.0, 1.11),
    PaperRow("LAPA", "in-domain latents", "10 %", 74.4, 2.3, 1.49),
    PaperRow("VideoWorld 2", "in-domain latents", "10 %", 75.8, 9.7, 1.87),
    PaperRow("LAPA", "cross-domain (Open-X)", "100 % (22k)", 84.0, 27.0, 2.51),
    PaperRow("VideoWorld 2", "cross-domain (Open-X)", "100 % (22k)", 88.5, 30.9, 2.88),
)


def number(value: float) -> str:
    """Return a number with two digits, a true minus sign and no minus before zero."""
    text = f"{value:.2f}"
    # -0.004 rounds to "-0.00".
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def signed(value: float) -> str:
    """Return a difference with its sign: "+0.50", "−0.50", "0.00"."""
    text = number(value)
    return text if text == "0.00" or value < 0 else f"+{text}"


def markdown(rollouts: Sequence[Rollout], stages: Sequence[Stage]) -> str:
    """Return all rollouts and training stages as markdown."""
    parts = []
    if rollouts:
        head = [
            "run",
            "policy",
            "labels",
            "chains",
            *(f"{i} in a row (%)" for i in range(1, CHAIN_LENGTH + 1)),
            "average length",
        ]
        body = []
        for r in rollouts:
            names = [r.name, r.policy, labels_text(r.summary["label_fraction"])]
            rates = rate_cells(r, columns=CHAIN_LENGTH)
            body.append([*map(_md, names), str(r.summary["num_sequences"]), *rates, length_cell(r)])
        parts.append(
            _pipe_table(head, body)
            + "\nIn brackets: 95 % intervals (Wilson for shares, t over chains for the average length).\n"
        )
    if stages:
        # Last values alone; the page has the curves.
        rows = [
            [_md(stage.name), str(stage.last_step), f"`{_md(key)}`", f"{values[-1]:.4g}"]
            for stage in stages
            for key, (_, values) in stage.records.items()
        ]
        parts.append(_pipe_table(["training stage", "steps", "quantity", "last value"], rows))
    return "\n".join(parts)


def _pipe_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _md(text: str) -> str:
    """Return text as a table cell. Names come from run folders: no markup, no HTML, no second line."""
    # Backslashes for markdown, entities for HTML: most markdown renderers pass HTML through.
    html = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return "".join(html.get(c, f"\\{c}" if c in "\\|`*[]" else c) for c in _one_line(text))


def _one_line(text: str) -> str:
    """Return text in one line, without control characters."""
    # `split` alone leaves characters such as U+2028, which some renderers take as the end of a line.
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def rate_cells(rollout: Rollout, *, columns: int = 0) -> list[str]:
    """Return success at 1 to 5 with intervals, in percent.

    Args:
        rollout: The rollout.
        columns: Fill up with dashes to this number of cells where chains are shorter (single tasks).
    """
    pairs = zip(rollout.summary["success_rates"], rollout.summary["success_intervals95"], strict=True)
    cells = [f"{percent(rate)} [{percent(low)}, {percent(high)}]" for rate, (low, high) in pairs]
    return cells + ["–"] * (columns - len(cells))


def length_cell(rollout: Rollout) -> str:
    """Return the average length with its interval."""
    low, high = rollout.summary["average_length_ci95"]
    return f"{rollout.summary['average_length']:.2f} [{low:.2f}, {high:.2f}]"


def latex(rollouts: Sequence[Rollout]) -> str:
    """Return the rollouts as a LaTeX table (package booktabs)."""
    columns = " & ".join(str(i) for i in range(1, CHAIN_LENGTH + 1))
    lines = [
        "% Success (%) at 1 to 5 tasks in a row, average length; small: 95 % intervals. Needs the package booktabs.",
        "\\begin{tabular}{llr" + "c" * (CHAIN_LENGTH + 1) + "}",
        "\\toprule",
        f"Run & Labels & Chains & {columns} & Avg.\\ len. \\\\",
        "\\midrule",
    ]
    for r in rollouts:
        cells = [_tex(r.name), _tex(labels_text(r.summary["label_fraction"])), str(r.summary["num_sequences"])]
        for cell in [*rate_cells(r, columns=CHAIN_LENGTH), length_cell(r)]:
            value, _, interval = cell.partition(" ")
            cells.append(f"{value} {{\\scriptsize {interval}}}" if interval else value)
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    # A backslash or a brace in a name could otherwise run a command of LaTeX, such as \input.
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in _one_line(text))
