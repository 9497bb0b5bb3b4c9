"""The report's section on the craft bench: tables of `vw2-judge`, and comparisons of codes by `vw2-compare-codes`.

The paper's table stands beside ours and apart from it: other videos, another judge, models of billions of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vw2_robot.errors import InputError

from ..results import percent
from .curves import scatter_panel
from .inline_files import data_uri, lies_in
from .latent_section import LatentReport, read_reports
from .tables import number

TABLE = "craft_table.json"
COMPARISON = "code_comparison.json"
METRICS = {"ssim": "SSIM", "psnr_db": "PSNR (dB)", "vmaf": "VMAF", "lpips": "LPIPS"}


class PaperCraftRow(NamedTuple):
    """One row of the paper's table on Video-CraftBench: key steps 1, 4, 7 of folding and blocks in percent."""

    method: str
    data: str
    first: float
    fourth: float
    seventh: float
    blocks: float
    ssim: float
    lpips: float


PAPER_ROWS = (
    PaperCraftRow("Wan2.2 14B", "Craft, text", 81.2, 10.6, 0.0, 42.6, 0.719, 0.237),
    PaperCraftRow("VideoWorld", "Craft", 70.3, 21.3, 0.0, 33.9, 0.680, 0.351),
    PaperCraftRow("VideoWorld 2", "Craft", 97.2, 83.3, 68.8, 81.5, 0.770, 0.205),
    PaperCraftRow("CoLA", "Open-X and Craft", 83.5, 64.8, 40.2, 52.4, 0.668, 0.289),
    PaperCraftRow("VideoWorld", "Open-X and Craft", 91.7, 63.1, 31.9, 52.7, 0.601, 0.389),
    PaperCraftRow("VideoWorld 2", "Open-X and Craft", 98.2, 86.7, 72.3, 83.0, 0.774, 0.193),
)


class CraftReports(NamedTuple):
    """What was found below the given folders."""

    tables: list[LatentReport]
    comparisons: list[LatentReport]


def read_craft_reports(runs: Sequence[str | Path]) -> CraftReports:
    """Return the tables and comparisons below the given folders.

    Raises:
        InputError: One cannot be read, or another release wrote it.
    """
    return CraftReports(
        read_reports(runs, TABLE, program="vw2-judge"), read_reports(runs, COMPARISON, program="vw2-compare-codes")
    )


def craft_section(reports: CraftReports, environment: Any) -> str:
    """Return the section as HTML, "" without a report.

    Args:
        reports: What was found.
        environment: jinja2's environment over templates/.

    Raises:
        InputError: A report lacks something, or holds a value of another type.
    """
    if not any(reports):
        return ""
    facts: dict[str, list[dict[str, Any]]] = {"tables": [], "comparisons": []}
    for report in reports.tables:
        facts["tables"].append(_checked(report, TABLE, "vw2-judge", _table, ids=""))
    for i, report in enumerate(reports.comparisons):
        facts["comparisons"].append(_checked(report, COMPARISON, "vw2-compare-codes", _comparison, ids=f"craft-{i}"))
    page: str = environment.get_template("craft.html.jinja").render(paper=PAPER_ROWS, **facts)
    return page


def _checked(report: LatentReport, file: str, program: str, facts: Any, *, ids: str) -> dict[str, Any]:
    """Return `facts` of a report; any error of reading a key is taken as damage of its file."""
    try:
        found: dict[str, Any] = facts(report, ids)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{report.path}/{file} holds something else than {program} writes "
            f"({type(error).__name__}: {str(error)[:200]}); run {program} again"
        ) from error
    return found


def _table(report: LatentReport, ids: str) -> dict[str, Any]:
    content = report.content
    held_out = content["judge"]["held_out"]
    low, high = held_out["interval95"]
    measured = [name for name in METRICS if any(name in row["metrics"] for row in content["rows"])]
    return {
        "name": report.name,
        "judge": f"{content['judge']['features']}; balanced accuracy {percent(held_out['balanced_accuracy'])} "
        f"[{percent(low)}, {percent(high)}] on {held_out['frames']} frames of {held_out['videos']} held-out videos",
        "head": [*map(str, range(1, 1 + len(content["rows"][0]["key_steps"]))), content["tower"]]
        + [METRICS[name] for name in measured],
        "rows": [
            [
                row["title"],
                f"{row['seeds']} × {row['videos'][0]}",
                *map(_share, [*row["key_steps"], row["tower"]]),
                *(_metric(row["metrics"].get(name)) for name in measured),
            ]
            for row in content["rows"]
        ],
        "over": sorted({cell["over"] for row in content["rows"] for cell in row["key_steps"] if cell}),
        "not_measured": list(content["not_measured"].values()),
    }


def _share(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    low, high = cell["interval95"]
    return f"{100 * cell['mean']:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _metric(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    interval = cell.get("interval95")
    return f"{cell['mean']:.3g}" + ("" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]")


def _comparison(report: LatentReport, ids: str) -> dict[str, Any]:
    sets = list(report.content["sets"])
    cards = []
    for place, (name, found) in enumerate(report.content["dldms"].items()):
        points = found["map"]["points"]
        projection = "umap" if "umap" in points else "pca"
        image = report.path / f"neighbors_{name}.png"
        overlap = found["domains"]["overlap"]["codes_one_hot"]
        named = percent(found["domains"]["accuracy"]["codes_one_hot"]["ratio"])
        cards.append(
            {
                "name": name,
                "use": [
                    [key, str(use["used"]), number(use["perplexity"])] for key, use in found["codes"]["sets"].items()
                ],
                "domain_accuracy": f"{named} (chance {percent(found['domains']['chance'])})",
                "sets": sets,
                "overlap": [[label, *(number(row[other]) for other in sets)] for label, row in overlap.items()],
                "transfer": [
                    [label, *(_r2(row[other]["both"]) for other in sets)] for label, row in found["transfer"].items()
                ],
                "neighbors": [
                    [label, *(_r2(row[other]["accuracy"], key="ratio") for other in sets)]
                    for label, row in found["map"]["neighbors"]["code"].items()
                ],
                "panels": [
                    scatter_panel(
                        f"{projection.upper()}, by {label}",
                        points[projection],
                        points[label],
                        found["map"]["directions"] if label == "direction" else found["map"]["sources"],
                        ids=f"{ids}-{place}-{label}",
                    )
                    for label in ("direction", "source")
                ],
                "image": data_uri(image, "image/png") if lies_in(report.path, image) else None,
            }
        )
    return {"name": report.name, "cards": cards}


def _r2(entry: Mapping[str, Any], *, key: str = "r2") -> str:
    if entry[key] is None:
        return "–"
    low, high = entry["ci95"]
    return f"{number(entry[key])} [{number(low)}, {number(high)}]"
