"""Program `vw2-report`: rollouts and training runs become one page that explains itself.

    vw2-report runs=[runs/first,runs/random] out=runs/report

`report.html` is self-contained: styles, figures, pictures and films are inside, it fetches nothing, follows the
reader's light or dark setting and fits a phone. `table.md` and `table.tex` hold the same numbers. Runs are found
anywhere below the given folders; a training run alone, a rollout alone and several of both are all reports. Arithmetic
lives in `results`, drawing in `curves`; here facts are put in order for the template.
"""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot import __version__
from vw2_robot.checkpoint import write_text
from vw2_robot.cli import program
from vw2_robot.errors import require

from .curves import code_usage_panel, training_panels
from .evaluate import Row
from .inline_files import data_uri
from .latent_section import LatentReport, latent_section, read_latent_reports
from .results import CHAIN_LENGTH, five_lines, labels_text, paired_difference, percent
from .run_folders import Rollout, Stage, discover
from .statistics import wilson_interval
from .tables import PAPER_ROWS, latex, length_cell, markdown, rate_cells

SERIES = 6  # colours of the page


@dataclass(frozen=True)
class ReportConfig:
    """The root of `vw2-report`."""

    runs: list[str]
    """folders of rollouts or training runs; everything below them is found"""
    out: str
    title: str | None = None
    video_megabytes: float = 5.0
    """films beyond this size are named instead of shown"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if self.video_megabytes < 0:
            raise ValueError(f"video_megabytes={self.video_megabytes}, expected at least 0")


def write_report(
    runs: Sequence[str | Path], out: str | Path, *, title: str | None = None, video_megabytes: float = 5.0
) -> Path:
    """Write report.html, table.md and table.tex to `out`; returns the path of the page.

    Raises:
        InputError: a folder holds no run, or a file in it cannot be read.
    """
    stages, rollouts = discover(runs)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(
        stages,
        rollouts,
        read_latent_reports(runs),
        title=title or _title(stages, rollouts),
        video_megabytes=video_megabytes,
    )
    write_text(folder / "table.md", markdown(rollouts, stages))
    write_text(folder / "table.tex", latex(rollouts))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render(
    stages: Sequence[Stage],
    rollouts: Sequence[Rollout],
    latents: Sequence[LatentReport] = (),
    *,
    title: str,
    video_megabytes: float,
) -> str:
    """The page as text."""
    jinja2 = require("jinja2", extra="report")
    source = importlib.resources.files("vw2_robot.rollouts").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["pct"] = percent
    cards, left_out = film_cards(rollouts, budget=int(video_megabytes * 1e6))
    page: str = environment.from_string(source).render(
        title=title,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        summaries=[_header(r) for r in rollouts],
        stage_lines=[_stage_line(stage) for stage in stages],
        rollouts=[rollout_facts(r, rollouts[0]) for r in rollouts],
        chain_length=CHAIN_LENGTH,
        success=success_groups(rollouts),
        tasks=task_groups(rollouts),
        never=never_reached(rollouts),
        cards=cards,
        left_out=left_out,
        stages=[_stage(stage, ids=f"figure-{i}") for i, stage in enumerate(stages)],
        latents=latent_section(latents, environment),
        paper=PAPER_ROWS,
    )
    return page


def _title(stages: Sequence[Stage], rollouts: Sequence[Rollout]) -> str:
    if not rollouts:
        return "Training report"
    return "Rollout report" if len(rollouts) == 1 else f"{len(rollouts)} rollouts compared"


def _header(rollout: Rollout) -> dict[str, Any]:
    lines = five_lines(rollout.summary)
    return {
        "name": rollout.name,
        "length": length_cell(rollout).split(" ", 1),
        "rates": [cell.split(" ", 1) for cell in rate_cells(rollout)],
        "lines": [line for line in lines if line[0] not in ("average length", "success %")],
    }


def _stage_line(stage: Stage) -> tuple[str, str]:
    last = {key.split("/", 1)[-1].replace("_", " "): values[-1] for key, (_, values) in stage.records.items()}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in last.items() if name not in ("phase", "grad norm"))
    return stage.name, f"{stage.last_step:,} steps; at the end {shown}" if shown else "nothing logged yet"


def rollout_facts(rollout: Rollout, first: Rollout) -> dict[str, Any]:
    """What the comparison and the provenance sections say about one rollout."""
    summary, origin = rollout.summary, rollout.origin
    difference = None
    if rollout is not first:
        difference = paired_difference(rollout.rows, first.rows)
    facts = {
        "policy": summary["policy"],
        "policy hash": summary["policy_hash"] or "none (no weights)",
        "action labels": labels_text(summary["label_fraction"]),
        "chains": f"{summary['num_sequences']} of {rollout.asked} asked for",
        "steps per look": summary.get("replan_every"),
        "step limit per subtask": origin.get("max_steps"),
        "seed": summary.get("seed"),
        **{f"world: {key}": _words(value) for key, value in summary["env"].items()},
        "versions": _words(summary.get("versions", {})),
    }
    return {
        "name": rollout.name,
        "chains": summary["num_sequences"],
        "unfinished": rollout.asked - summary["num_sequences"],
        "labels": labels_text(summary["label_fraction"]),
        "rates": rate_cells(rollout, columns=CHAIN_LENGTH),
        "length": length_cell(rollout),
        "histogram": summary.get("solved_histogram"),
        "difference": difference,
        "facts": {key: value for key, value in facts.items() if value is not None},
        "config": rollout.config,
    }


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _bar(rollout: Rollout, index: int, *, count: int, total: int) -> dict[str, Any]:
    low, high = wilson_interval(count, total)
    return {
        "run": rollout.name,
        "colour": index % SERIES + 1,
        "count": count,
        "total": total,
        "share": count / total if total else 0.0,
        "low": low,
        "high": high,
    }


def success_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Bars of success at 1 to 5 in a row, one for each rollout."""
    groups = []
    for i in range(CHAIN_LENGTH):
        bars = []
        for index, r in enumerate(rollouts):
            if i >= len(r.summary["success_rates"]):
                continue  # single tasks: nothing comes after the first
            total = r.summary["num_sequences"]
            bars.append(_bar(r, index, count=round(r.summary["success_rates"][i] * total), total=total))
        groups.append({"name": f"{i + 1} in a row" if i else "1 task", "words": "", "bars": bars})
    return groups


def task_groups(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    """Bars of each task, by name; one for each rollout that attempted it."""
    tasks = sorted({task for r in rollouts for task in r.summary["per_task"]})
    groups = []
    for task in tasks:
        bars = [
            _bar(r, index, count=entry["solved"], total=entry["attempted"])
            for index, r in enumerate(rollouts)
            if (entry := r.summary["per_task"].get(task))
        ]
        words = next((r.origin["instructions"][task] for r in rollouts if task in r.origin.get("instructions", {})), "")
        groups.append({"name": task.replace("_", " "), "words": words, "bars": bars})
    return groups


def never_reached(rollouts: Sequence[Rollout]) -> list[str]:
    """Tasks that the chains asked for, but that no rollout got to."""
    asked = {task for r in rollouts for row in r.rows for task in row["subtasks"]}
    return sorted(task.replace("_", " ") for task in asked - {t for r in rollouts for t in r.summary["per_task"]})


def film_cards(rollouts: Sequence[Rollout], *, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Films to show, taking turns among the rollouts until `budget` bytes are spent; and the files left out."""
    queues = [[(i, r, *film) for film in _spread(r.films())] for i, r in enumerate(rollouts)]
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    cards: list[dict[str, Any]] = []
    left_out = []
    for index, rollout, row, film, poster in turns:
        size = film.stat().st_size + poster.stat().st_size
        if size > budget:
            left_out.append(f"{rollout.name}/videos/{film.name}")
            continue
        budget -= size
        cards.append(_card(index, rollout, row, film, poster))
    order = {r.name: i for i, r in enumerate(rollouts)}
    return sorted(cards, key=lambda card: (order[card["run"]], -card["solved"], card["number"])), left_out


def _spread(films: list[tuple[Row, Path, Path]]) -> list[tuple[Row, Path, Path]]:
    """Best, worst, second best, ...: whatever the budget cuts off, both kinds are shown."""
    spread = []
    while films:
        spread.append(films.pop(0))
        films.reverse()
    return spread


def _card(index: int, rollout: Rollout, row: Row, film: Path, poster: Path) -> dict[str, Any]:
    words = rollout.origin.get("instructions", {})
    subtasks = []
    for i, task in enumerate(row["subtasks"]):
        state = "solved" if i < row["solved"] else "failed" if i == row["solved"] else "open"
        steps = row["steps"][i] if i < len(row["steps"]) else None
        subtasks.append(
            {"task": task, "words": words.get(task, task.replace("_", " ")), "state": state, "steps": steps}
        )
    return {
        "run": rollout.name,
        "colour": index % SERIES + 1,
        "number": row["sequence"],
        "solved": row["solved"],
        "subtasks": subtasks,
        "film": data_uri(film, "video/mp4"),
        "poster": data_uri(poster, "image/jpeg"),
    }


def _stage(stage: Stage, *, ids: str) -> dict[str, Any]:
    return {
        "name": stage.name,
        "steps": stage.last_step,
        "panels": training_panels(stage.records, ids=ids),
        "codes": code_usage_panel(stage.codes, ids=f"{ids}-codes") if stage.codes else None,
        "pictures": data_uri(stage.reconstructions, "image/png") if stage.reconstructions else None,
        "config": stage.config,
    }


@program(ReportConfig, config_name="report")
def main(config: ReportConfig) -> None:
    """Console script `vw2-report`."""
    page = write_report(config.runs, config.out, title=config.title, video_megabytes=config.video_megabytes)
    print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
