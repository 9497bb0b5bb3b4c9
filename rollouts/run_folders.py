"""Find and read what runs left on disk: training stages and rollouts, anywhere below the given folders.

A folder with metrics.jsonl is a training stage; one with results.jsonl or summary.json is a rollout. Nothing but files
is read: no checkpoint is loaded, no simulator started.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vw2_robot.errors import InputError
from vw2_robot.runs import read_mark

from .evaluate import Row
from .results import read_rows, read_seconds, summarize
from .video import FilmPaths, film_paths

STAGE_ORDER = ("vdm", "dldm", "latents", "policy", "finetune")
SKIPPED = {"checkpoints", "tensorboard", "videos"}


@dataclass(frozen=True)
class Stage:
    """One training stage. records: metrics by key as (steps, values), in file order."""

    name: str
    path: Path
    records: dict[str, tuple[list[int], list[float]]]
    config: str
    codes: dict[str, Any] | None
    reconstructions: Path | None

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 for an empty log."""
        return max((steps[-1] for steps, _ in self.records.values()), default=0)


@dataclass(frozen=True)
class Rollout:
    """One evaluation. rows may be empty where only summary.json was kept."""

    name: str
    path: Path
    summary: dict[str, Any]
    rows: list[Row]
    origin: dict[str, Any]
    config: str
    asked: int
    """chains asked for; more than the summary counts while the rollout is under way"""

    def films(self) -> list[tuple[Row, FilmPaths]]:
        """The chains that were filmed, most solved first; `answers` may be missing on disk."""
        found = [(row, film_paths(self.path / "videos", row["sequence"])) for row in self.rows]
        there = [entry for entry in found if entry[1].video.is_file() and entry[1].poster.is_file()]
        return sorted(there, key=lambda entry: (-entry[0]["solved"], entry[0]["sequence"]))


def discover(runs: Sequence[str | Path]) -> tuple[list[Stage], list[Rollout]]:
    """All stages and rollouts below the given folders, in the order of the flow.

    Raises:
        InputError: a folder is missing or holds neither, or a file in it cannot be read.
    """
    roots = [Path(run) for run in runs]
    if not roots:
        raise InputError("runs is empty; give the folders of rollouts or training runs: runs=[DIR,...]")
    stages: dict[Path, Stage] = {}
    rollouts: dict[Path, Rollout] = {}
    for root, label in zip(roots, labels(roots), strict=True):
        if not root.is_dir():
            raise InputError(f"runs: {root} is no folder; give the run_dir of a rollout or a training run")
        found = [(folder, _kinds(folder)) for folder in _folders(root)]
        if not any(kinds for _, kinds in found):
            raise InputError(
                f"runs: {root} holds no run: no metrics.jsonl (training), results.jsonl or summary.json (rollout), "
                f"latent_report.json (probe) in it or below it; found {sorted(p.name for p in root.iterdir())[:10]}"
            )
        for folder, kinds in found:
            known, name = folder.resolve(), (Path(label) / folder.relative_to(root)).as_posix()
            if "stage" in kinds and known not in stages:
                stages[known] = _read_stage(name, folder)
            if "rollout" in kinds and known not in rollouts:
                rollouts[known] = _read_rollout(name, folder)
    return sorted(stages.values(), key=_flow), list(rollouts.values())


def _kinds(folder: Path) -> set[str]:
    marks = {
        "metrics.jsonl": "stage",
        "results.jsonl": "rollout",
        "summary.json": "rollout",
        "latent_report.json": "latents",
    }
    return {kind for name, kind in marks.items() if (folder / name).is_file()}


def _flow(stage: Stage) -> tuple[int, str]:
    kind = stage.path.resolve().name
    return STAGE_ORDER.index(kind) if kind in STAGE_ORDER else len(STAGE_ORDER), stage.name


def _folders(root: Path) -> list[Path]:
    found = []
    for folder, below, _ in os.walk(root):
        below[:] = sorted(name for name in below if name not in SKIPPED and not name.startswith("."))
        found.append(Path(folder))
    return found


def labels(roots: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell different folders apart."""
    paths = [root.resolve() for root in roots]
    found = [path.name for path in paths]
    depth = 1
    while len(set(found)) < len(set(paths)):
        depth += 1
        found = ["/".join(path.parts[-depth:]) for path in paths]
    return found


def _read_stage(name: str, folder: Path) -> Stage:
    picture = folder / "reconstructions.png"
    return Stage(
        name=name,
        path=folder,
        records=read_metrics(folder / "metrics.jsonl"),
        config=_text(folder / "config.yaml"),
        codes=_read_codes(folder / "codes.json"),
        reconstructions=picture if picture.is_file() else None,
    )


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Metric key -> (steps, values). A torn last line is ignored; NaN and infinities are left out.

    Raises:
        InputError: a whole line is not an object with "step" and numbers.
    """
    records: dict[str, tuple[list[int], list[float]]] = {}
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
            values = {str(key): float(value) for key, value in entry.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number} is no metrics line ({error}); expected an object like "
                '{"step": 1, "stage/quantity_unit": 0.5}'
            ) from error
        for key, value in values.items():
            if math.isfinite(value):
                steps, series = records.setdefault(key, ([], []))
                steps.append(step)
                series.append(value)
    return records


def _read_codes(path: Path) -> dict[str, Any] | None:
    codes = _json(path)
    if codes is None:
        return None
    histogram = codes.get("histogram")
    if not isinstance(histogram, list) or not histogram or not all(isinstance(n, int | float) for n in histogram):
        raise InputError(f'{path}: "histogram" must be the counts of all codes, found {str(histogram)[:80]}')
    return codes


def _read_rollout(name: str, folder: Path) -> Rollout:
    rows = read_rows(folder / "results.jsonl")
    origin = _json(folder / "provenance.json") or {}
    summary = _json(folder / "summary.json")
    if rows and (summary is None or summary.get("num_sequences") != len(rows)):
        seconds = sum(read_seconds(folder / "timing.jsonl").values())
        summary = summarize(rows, origin, seconds=seconds)
    if summary is None:
        raise InputError(f"{folder}/results.jsonl holds no finished chain yet; wait for the first one")
    missing = {
        "success_rates",
        "success_intervals95",
        "average_length",
        "average_length_ci95",
        "per_task",
    } - summary.keys()
    if missing:
        raise InputError(
            f"{folder}/summary.json lacks {sorted(missing)}; run vw2-rollout again in that folder to rewrite it"
        )
    race = _json(folder / "comparison.json") or {}
    is_decided = race.get("decided_after") == summary["num_sequences"]  # then the other chains are not missing
    asked = int(summary["num_sequences"] if is_decided else origin.get("num_sequences", summary["num_sequences"]))
    return Rollout(name, folder, summary, rows, origin, _text(folder / "config.yaml"), asked)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_mark(path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error


def _text(path: Path) -> str:
    """A configuration as it lies on disk, "" where there is none."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({error})") from error
    return text
