"""Run folders: find and read training stages and rollouts, anywhere below the given folders.

A folder with metrics.jsonl is a training stage; one with results.jsonl or summary.json is a rollout. No checkpoint is
loaded and no simulator started. The folders may come from other people, so contents are checked (schemas.py), links
that lead out of a folder are not followed, and sizes are bounded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import MAX_JSON_BYTES, read_text, read_yaml
from vw2_robot.storage.normal_ranges import NormalRanges, normal_ranges

from ..evaluate import Row
from ..results import RERUN, policy_name, read_results, read_seconds, summarize
from ..video import VideoPaths, video_paths
from .inline_files import lies_in
from .schemas import CODES, COMPARISON, MAX_NUMBER, PROVENANCE, RECONSTRUCTIONS, SUMMARY, read_checked

STAGE_ORDER = ("vdm", "dldm", "latents", "policy", "finetune")
SKIPPED = {"checkpoints", "tensorboard", "videos"}
COPY = "copy the folder again"


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        name: Path below the given folder.
        path: Its folder.
        records: Metrics by key as (train steps, values), in file order.
        config: Content of config.yaml, "" without one.
        settings: The same as nested values.
        codes: Content of codes.json, None without one.
        reconstructions: Image of reconstructed clips, None without one.
        column_errors: Its columns, with their error relative to that of a still image; empty where that is not known.
    """

    name: str
    path: Path
    records: dict[str, tuple[list[int], list[float]]]
    config: str
    settings: dict[str, Any]
    codes: dict[str, Any] | None
    reconstructions: Path | None
    column_errors: dict[str, float]

    def normal_ranges(self) -> NormalRanges | None:
        """Return the normal ranges of this kind of stage; None without a reference run or a configuration."""
        kind = next(iter(self.records), "").split("/")[0]
        return normal_ranges(kind, with_new_keys(self.settings)) if self.settings else None

    @property
    def last_step(self) -> int:
        """Last train step that was logged; 0 for an empty log."""
        return max((steps[-1] for steps, _ in self.records.values()), default=0)


@dataclass(frozen=True)
class Rollout:
    """One evaluation.

    Attributes:
        name: Path below the given folder.
        path: Its folder.
        summary: Content of summary.json, or the same computed from the rows.
        rows: Finished chains; may be empty where only summary.json was kept.
        provenance: Content of provenance.json, empty without one.
        config: Content of config.yaml, "" without one.
        num_requested: Number of chains requested; more than the summary counts while the rollout is running.
        source: What the rollout was given as policy, "" where that is not known.
    """

    name: str
    path: Path
    summary: dict[str, Any]
    rows: list[Row]
    provenance: dict[str, Any]
    config: str
    num_requested: int
    source: str = ""

    @property
    def policy(self) -> str:
        """Name of the policy as the user gave it; all checkpoints have the same one in their metadata."""
        return policy_name(self.source) or str(self.summary["policy"])

    def videos(self) -> list[tuple[Row, VideoPaths]]:
        """Return the chains that have a video, most solved first; the recording may be missing on disk."""
        entries = [(row, video_paths(self.path / "videos", row["sequence"])) for row in self.rows]
        existing = [entry for entry in entries if all(lies_in(self.path, path) for path in entry[1][:2])]
        return sorted(existing, key=lambda entry: (-entry[0]["solved"], entry[0]["sequence"]))


def discover(runs: Sequence[str | Path]) -> tuple[list[Stage], list[Rollout]]:
    """Return all training stages and rollouts below the given folders.

    Args:
        runs: Folders; runs are found anywhere below them.

    Returns:
        Stages in the order of training, and rollouts in the order of `runs`.

    Raises:
        InputError: A folder is missing or holds no run, or a file in it cannot be read.
    """
    roots = [Path(run) for run in runs]
    if not roots:
        raise InputError("runs is empty; give the folders of rollouts or training runs: runs=[DIR,...]")
    stages: dict[Path, Stage] = {}
    rollouts: dict[Path, Rollout] = {}
    for root, label in zip(roots, labels(roots), strict=True):
        if not root.is_dir():
            raise InputError(f"runs: {root} is no folder; give the run_dir of a rollout or a training run")
        found = _find_runs(root)
        if not found:
            raise InputError(
                f"runs: {root} holds no run: no metrics.jsonl (training), results.jsonl or summary.json (rollout), "
                "latent_report.json (probe), craft_table.json or code_comparison.json (craft bench) in it or below it; "
                f"found {sorted(p.name for p in root.iterdir())[:10]}"
            )
        for folder, kinds in found:
            known = folder.resolve()  # a folder that lies below two roots, or that a link leads to, counts once
            name = (Path(label) / folder.relative_to(root)).as_posix()
            if "stage" in kinds and known not in stages:
                stages[known] = _read_stage(name, folder)
            if "rollout" in kinds and known not in rollouts:
                rollouts[known] = _read_rollout(name, folder)

    def training_order(stage: Stage) -> tuple[int, str]:
        kind = stage.path.resolve().name
        return STAGE_ORDER.index(kind) if kind in STAGE_ORDER else len(STAGE_ORDER), stage.name

    return sorted(stages.values(), key=training_order), list(rollouts.values())


def _find_runs(root: Path) -> list[tuple[Path, set[str]]]:
    """Return the folders at and below `root` that hold a run, and what kinds of run."""
    kind_of_file = {
        "metrics.jsonl": "stage",
        "results.jsonl": "rollout",
        "summary.json": "rollout",
        "latent_report.json": "latents",
        "craft_table.json": "craft",
        "code_comparison.json": "craft",
    }
    found = []
    for name, below, _ in os.walk(root):
        # Changing the list in place tells os.walk where to go; sorted, so that the order is the same on every disk.
        below[:] = sorted(child for child in below if child not in SKIPPED and not child.startswith("."))
        folder = Path(name)
        if kinds := {kind for file, kind in kind_of_file.items() if lies_in(folder, folder / file)}:
            found.append((folder, kinds))
    return found


def labels(roots: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as are needed to distinguish the folders."""
    # Resolved: "." and "runs/a/../b" have no name to show.
    paths = [root.resolve() for root in roots]
    found = [path.name for path in paths]
    depth = 1
    while len(set(found)) < len(set(paths)):
        depth += 1
        found = ["/".join(path.parts[-depth:]) for path in paths]
    return found


def _read_stage(name: str, folder: Path) -> Stage:
    image = folder / "reconstructions.png"
    config, settings = _config(folder / "config.yaml")
    errors = read_checked(folder / "reconstructions.json", RECONSTRUCTIONS, cure="train this stage again, or delete it")
    return Stage(
        name=name,
        path=folder,
        records=read_metrics(folder / "metrics.jsonl"),
        config=config,
        settings=settings,
        codes=read_checked(folder / "codes.json", CODES, cure="train this stage again, or delete the file"),
        reconstructions=image if lies_in(folder, image) else None,
        column_errors=(errors or {}).get("error_to_still", {}),
    )


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return metric key -> (train steps, values).

    An incomplete last line is ignored; NaN and infinities are left out.

    Args:
        path: metrics.jsonl.

    Raises:
        InputError: A complete line is not an object with "step" and numbers.
    """
    records: dict[str, tuple[list[int], list[float]]] = {}
    # A size limit: the file is read into memory as a whole.
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MAX_JSON_BYTES}; take it out of the folder")
    # A training that was killed can leave half a line at the end.
    complete = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
            values = {str(key): float(value) for key, value in entry.items()}
            if not 0 <= step < MAX_NUMBER:
                raise ValueError(f"step {step}")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is no metrics line ({str(error)[:200]}); expected an object like "
                '{"step": 1, "stage/quantity_unit": 0.5}'
            ) from error
        for key, value in values.items():
            # matplotlib leaves gaps for NaN, but one infinity would stretch the axis over all else.
            if math.isfinite(value):
                steps, series = records.setdefault(key, ([], []))
                steps.append(step)
                series.append(value)
    return records


def _read_rollout(name: str, folder: Path) -> Rollout:
    rows = read_results(folder) if lies_in(folder, folder / "results.jsonl") else []
    provenance = read_checked(folder / "provenance.json", PROVENANCE, cure=RERUN) or {}
    # Older folders may have lost one of the two: rows alone or a summary alone are enough for most of the page.
    summary = read_checked(folder / "summary.json", SUMMARY, cure=RERUN)
    # While a rollout runs there is no summary, or an old one; the rows are newer.
    if rows and (summary is None or summary["num_sequences"] != len(rows)):
        timing = folder / "timing.jsonl"
        seconds = sum(read_seconds(timing).values()) if lies_in(folder, timing) else 0.0
        summary = summarize(rows, provenance, seconds=seconds)
    if summary is None:
        raise InputError(f"{folder}/results.jsonl holds no finished chain yet; wait for the first one")
    if len(summary["success_rates"]) != len(summary["success_intervals95"]):
        raise InputError(f"{folder}/summary.json has not as many intervals as success rates; {RERUN}")
    comparison = read_checked(folder / "comparison.json", COMPARISON, cure=RERUN) or {}
    # A rollout that was stopped early by its comparison is finished, although not all chains have run.
    is_decided = comparison.get("decided_after") == summary["num_sequences"]
    num_sequences = int(summary["num_sequences"])
    num_requested = num_sequences if is_decided else int(provenance.get("num_sequences", num_sequences))
    config, settings = _config(folder / "config.yaml")
    source = settings.get("policy")
    return Rollout(
        name, folder, summary, rows, provenance, config, num_requested, source if isinstance(source, str) else ""
    )


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a configuration as text and as nested values, both empty where there is none."""
    if not lies_in(path.parent, path):
        return "", {}
    return read_text(path, cure=COPY), read_yaml(path, cure=COPY)
