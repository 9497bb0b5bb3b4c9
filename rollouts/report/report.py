"""Program `vw2-report`: write one page about rollouts and training runs.

    vw2-report runs=[runs/first,runs/random] out=runs/report

`report.html` is self-contained: styles, figures, images and videos are inside, it fetches nothing, follows the
reader's light or dark setting and fits a phone. `table.md` and `table.tex` hold the same numbers. Runs are found
anywhere below the given folders: a training run alone, a rollout alone, or several of both. A rollout writes its own
page with `write_report`. Computation is in `results`, `failures` and `compare`, plotting in `curves` and `strips`,
values for the page in `bars`, `side_by_side` and `gallery`, layout in templates/.
"""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot import __version__
from vw2_robot.command_line import entry_points
from vw2_robot.errors import require
from vw2_robot.limits import Unbounded
from vw2_robot.storage.files import write_text
from vw2_robot.storage.locks import lock_folder
from vw2_robot.storage.normal_ranges import MAIN_METRICS, main_metric

from ..results import five_lines, percent
from .bars import length_bars, longest, never_reached, position_groups, standing, success_groups, task_table
from .craft_section import CraftReports, craft_section, read_craft_reports
from .curves import Panel, code_usage_panel, training_panels
from .gallery import expected_sheets, video_cards
from .inline_files import data_uri
from .latent_section import LatentReport, latent_section, read_latent_reports
from .run_folders import Rollout, Stage, discover
from .side_by_side import comparisons, provenance_table, rollout_facts
from .standing import against_what, how_sure
from .tables import PAPER_ROWS, latex, length_cell, markdown, number, rate_cells, signed

MAX_QUANTITIES = 4  # of a training stage in the summary; each one has a panel below
RECONSTRUCTION_COLUMNS = ["first frame", "target", "coarse reconstruction", "VDM rendering"]
VIDEO_MEGABYTES = 12.0  # leaves room below 20 MB for everything else


@dataclass(frozen=True)
class ReportConfig:
    """The root of `vw2-report`."""

    runs: list[str]
    """folders of rollouts or training runs; everything below them is found"""
    out: str
    """folder for report.html, table.md and table.tex"""
    title: str | None = None
    """title of the page; none: chosen from the number of runs"""
    video_megabytes: Unbounded = VIDEO_MEGABYTES
    """megabytes of the page that videos and action strips may take; the other videos are named"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if self.video_megabytes < 0:
            raise ValueError(f"video_megabytes={self.video_megabytes}, expected at least 0")


def write_report(
    runs: Sequence[str | Path], out: str | Path, *, title: str | None = None, video_megabytes: float = VIDEO_MEGABYTES
) -> Path:
    """Write report.html, table.md and table.tex.

    Args:
        runs: Folders of rollouts and training runs.
        out: Folder to write to.
        title: Title of the page; None: chosen from the number of runs.
        video_megabytes: Megabytes of the page that videos and action strips may take.

    Returns:
        The path of the page.

    Raises:
        InputError: A folder holds no run, or a file in it cannot be read.
    """
    stages, rollouts = discover(runs)
    if not title:
        several = f"{len(rollouts)} rollouts compared"
        title = "Training report" if not rollouts else "Rollout report" if len(rollouts) == 1 else several
    folder = Path(out)
    page = render(
        stages,
        rollouts,
        read_latent_reports(runs),
        read_craft_reports(runs),
        title=title,
        video_megabytes=video_megabytes,
    )
    # The page is complete before anything is written: an error leaves no folder and no old page beside new tables.
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown(rollouts, stages))
    write_text(folder / "table.tex", latex(rollouts))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render(
    stages: Sequence[Stage],
    rollouts: Sequence[Rollout],
    latents: Sequence[LatentReport] = (),
    craft: CraftReports | None = None,
    *,
    title: str,
    video_megabytes: float,
) -> str:
    """Return the page as HTML.

    Args:
        stages: Training stages.
        rollouts: Rollouts; the first is the base of comparisons.
        latents: Reports of `vw2-probe-latents`.
        craft: Tables of `vw2-judge` and comparisons of `vw2-compare-codes`.
        title: Title of the page.
        video_megabytes: Megabytes of the page that videos and action strips may take.
    """
    environment = _environment()
    stage_cards = [_stage_card(stage, ids=f"figure-{i}") for i, stage in enumerate(stages)]
    cards, left_out = video_cards(rollouts, budget=int(video_megabytes * 1e6))
    page: str = environment.get_template("report.html.jinja").render(
        title=title,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        summaries=[_summary_card(r) for r in rollouts],
        stage_lines=[card["line"] for card in stage_cards],
        rollouts=[rollout_facts(i, r) for i, r in enumerate(rollouts)],
        chain_length=longest(rollouts),
        success=success_groups(rollouts),
        tasks=task_table(rollouts, cards),
        standing=standing(rollouts),
        never=never_reached(rollouts),
        positions=position_groups(rollouts),
        lengths=length_bars(rollouts),
        comparison=comparisons(rollouts),
        provenance=provenance_table(rollouts),
        cards=cards,
        expected=expected_sheets(rollouts),
        left_out=left_out,
        stages=stage_cards,
        latents=latent_section(latents, environment),
        craft="" if craft is None else craft_section(craft, environment),
        paper=PAPER_ROWS,
    )
    return page


def _environment() -> Any:
    """Return jinja2's environment over the folder templates/, which is package data."""
    # Imported here: a rollout without the extra should fail with its name, not at import.
    jinja2 = require("jinja2", extra="report")
    folder = importlib.resources.files("vw2_robot.rollouts.report").joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,  # names come from run folders, which may be anybody's
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name in a template is an error and not an empty place.
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"pct": percent, "number": number, "signed": signed}
    return environment


def _summary_card(rollout: Rollout) -> dict[str, Any]:
    """Return the card at the top of the page."""
    lines = dict(five_lines(rollout.summary, policy=rollout.source))
    return {
        "name": rollout.name,
        "sure": how_sure(rollout),
        "against": against_what(rollout),
        "length": length_cell(rollout).split(" ", 1),
        "chain_length": len(rollout.summary["success_rates"]),
        "rates": [cell.split(" ", 1) for cell in rate_cells(rollout)],
        # Average length and success are shown large above these lines.
        "lines": [lines[name] for name in ("policy", "world", "chains")],
    }


def _stage_card(stage: Stage, *, ids: str) -> dict[str, Any]:
    """Return what the page needs of one stage; `ids`: prefix of ids in its figures."""
    ranges = stage.normal_ranges()
    panels = training_panels(stage.records, ids=ids, ranges=ranges)
    compared = [panel for panel in panels if panel.state]
    return {
        "line": (stage.name, _stage_line(stage, panels)),
        "name": stage.name,
        "train_steps": stage.last_step,
        "panels": panels,
        "ranges": ranges,
        "compared": len(compared),
        "unusual": [panel for panel in compared if panel.state != "normal"],
        "codes": code_usage_panel(stage.codes, ids=f"{ids}-codes") if stage.codes else None,
        "images": data_uri(stage.reconstructions, "image/png") if stage.reconstructions else None,
        "columns": list(stage.column_errors) or RECONSTRUCTION_COLUMNS,
        "rendering": _rendering_note(stage),
        "config": stage.config,
    }


def _stage_line(stage: Stage, panels: Sequence[Panel]) -> str:
    """Return the numbers of a stage for the first screen: the one that matters, with its normal range if known."""
    if not stage.records:
        return "nothing logged yet"
    if (key := main_metric(stage.records)) is not None:
        shown = [f"{MAIN_METRICS[key]} {stage.records[key][1][-1]:.3g}"]
    else:
        # The number of the phase and the gradient norm say little about how well the training went.
        last = {key.split("/", 1)[-1].replace("_", " "): values[-1] for key, (_, values) in stage.records.items()}
        texts = [f"{name} {value:.3g}" for name, value in last.items() if name not in ("phase", "grad norm")]
        shown = texts[:MAX_QUANTITIES]
    if compared := [panel.state for panel in panels if panel.state]:
        shown.append(f"{compared.count('normal')} of {len(compared)} quantities normal at the end")
    return f"{stage.last_step:,} steps; {', '.join(shown)}"


def _rendering_note(stage: Stage) -> str:
    """Return how far the columns of the reconstructions are from their targets; "" where that is not known."""
    known = {name: error for name, error in stage.column_errors.items() if name not in ("first frame", "target")}
    if not known:
        return ""
    text = "Error to the target, a still image being 1: " + ", ".join(f"{k} {v:.2f}" for k, v in known.items()) + "."
    if worse := [name for name, error in known.items() if error > 1]:
        text += f" Above 1 ({' and '.join(worse)}) nothing but noise need be seen: trained too briefly, or not at all."
    return text


def main(config: ReportConfig) -> None:
    """Console script `vw2-report`."""
    with lock_folder(Path(config.out), what="a report"):
        page = write_report(config.runs, config.out, title=config.title, video_megabytes=config.video_megabytes)
    print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    entry_points.report.main()
