"""Find and read what runs left on disk: training stages and rollouts, anywhere below the given folders.

A folder with metrics.jsonl is a training stage; one with results.jsonl or summary.json is a rollout. Nothing but files
is read: no checkpoint is loaded, no simulator started. The folders may come from strangers: what a file should hold is
checked here, links out of a folder are not followed, and sizes are bounded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import MAX_JSON_BYTES, read_json, read_text, read_yaml

from ..evaluate import Row
from ..results import RERUN, read_results, read_seconds, summarize
from ..video import VideoPaths, video_paths
from .inline_files import lies_in

STAGE_ORDER = ("vdm", "dldm", "latents", "policy", "finetune")
SKIPPED = {"checkpoints", "tensorboard", "videos"}
MAX_DEPTH = 20
"""levels of a JSON file of a run; ours have four"""
MAX_STEP = 2**53
COPY = "copy the folder again"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_STEP


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_STEP


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_pair(value: Any) -> bool:
    return _is_list(value, _is_number) and len(value) == 2


def _is_list(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(check, value))


def _is_table(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(check, value.values()))


def _is_task(value: Any) -> bool:
    if not (isinstance(value, dict) and _is_count(value.get("solved")) and _is_count(value.get("attempted"))):
        return False
    return bool(value["solved"] <= value["attempted"])


# What the page reads of each file; True: it has to be there.
SUMMARY: dict[str, tuple[bool, Callable[[Any], bool]]] = {
    "num_sequences": (True, lambda value: _is_count(value) and value > 0),
    "success_rates": (True, lambda value: _is_list(value, _is_number) and 1 <= len(value) <= 100),
    "success_intervals95": (True, lambda value: _is_list(value, _is_pair)),
    "average_length": (True, _is_number),
    "average_length_ci95": (True, _is_pair),
    "per_task": (True, lambda value: _is_table(value, _is_task)),
    "solved_histogram": (False, lambda value: _is_list(value, _is_count)),
    "policy": (True, lambda value: isinstance(value, str)),
    "policy_hash": (True, lambda value: isinstance(value, str | None)),
    "label_fraction": (True, lambda value: value is None or _is_number(value)),
    "env": (True, lambda value: isinstance(value, dict)),
    "n_action_steps": (False, lambda value: value is None or (_is_count(value) and value > 0)),
    "seconds": (True, _is_number),
    "env_steps": (True, _is_count),
}
ORIGIN: dict[str, tuple[bool, Callable[[Any], bool]]] = {
    "policy": (False, lambda value: isinstance(value, dict)),
    "instructions": (False, lambda value: _is_table(value, lambda text: isinstance(text, str))),
    "max_steps": (False, lambda value: value is None or _is_count(value)),
    "num_sequences": (False, _is_count),
}
CODES: dict[str, tuple[bool, Callable[[Any], bool]]] = {
    "histogram": (True, lambda value: _is_list(value, _is_amount) and len(value) > 0),
    "by_slot": (False, lambda value: value is None or _is_list(value, lambda slot: _is_list(slot, _is_amount))),
    "used": (False, _is_count),
    "perplexity": (False, _is_number),
}


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

    def videos(self) -> list[tuple[Row, VideoPaths]]:
        """The chains that were recorded, most solved first; `answers` may be missing on disk."""
        found = [(row, video_paths(self.path / "videos", row["sequence"])) for row in self.rows]
        there = [entry for entry in found if all(lies_in(self.path, path) for path in entry[1][:2])]
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
    return {kind for name, kind in marks.items() if lies_in(folder, folder / name)}


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
    image = folder / "reconstructions.png"
    return Stage(
        name=name,
        path=folder,
        records=read_metrics(folder / "metrics.jsonl"),
        config=_text(folder / "config.yaml"),
        codes=_json(folder / "codes.json", CODES, cure="train this stage again, or delete the file"),
        reconstructions=image if lies_in(folder, image) else None,
    )


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Metric key -> (steps, values). A torn last line is ignored; NaN and infinities are left out.

    Raises:
        InputError: a whole line is not an object with "step" and numbers.
    """
    records: dict[str, tuple[list[int], list[float]]] = {}
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise InputError(f"{path} has {size} bytes, expected at most {MAX_JSON_BYTES}; take it out of the folder")
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
            values = {str(key): float(value) for key, value in entry.items()}
            if not 0 <= step < MAX_STEP:
                raise ValueError(f"step {step}")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is no metrics line ({str(error)[:200]}); expected an object like "
                '{"step": 1, "stage/quantity_unit": 0.5}'
            ) from error
        for key, value in values.items():
            if math.isfinite(value):
                steps, series = records.setdefault(key, ([], []))
                steps.append(step)
                series.append(value)
    return records


def _read_rollout(name: str, folder: Path) -> Rollout:
    rows = read_results(folder) if lies_in(folder, folder / "results.jsonl") else []
    origin = _json(folder / "provenance.json", ORIGIN, cure=RERUN) or {}
    summary = _json(folder / "summary.json", SUMMARY, cure=RERUN)
    if rows and (summary is None or summary["num_sequences"] != len(rows)):
        timing = folder / "timing.jsonl"
        seconds = sum(read_seconds(timing).values()) if lies_in(folder, timing) else 0.0
        summary = summarize(rows, origin, seconds=seconds)
    if summary is None:
        raise InputError(f"{folder}/results.jsonl holds no finished chain yet; wait for the first one")
    if len(summary["success_rates"]) != len(summary["success_intervals95"]):
        raise InputError(f"{folder}/summary.json has not as many intervals as success rates; {RERUN}")
    race = _json(folder / "comparison.json", {}, cure=RERUN) or {}
    is_decided = race.get("decided_after") == summary["num_sequences"]  # then the other chains are not missing
    asked = int(summary["num_sequences"] if is_decided else origin.get("num_sequences", summary["num_sequences"]))
    return Rollout(name, folder, summary, rows, origin, _text(folder / "config.yaml"), asked)


def _json(path: Path, wanted: dict[str, tuple[bool, Callable[[Any], bool]]], *, cure: str) -> dict[str, Any] | None:
    """The content of a file whose values are as `wanted`; None where there is no such file."""
    if not lies_in(path.parent, path):
        return None
    content = with_new_keys(read_json(path, cure=cure))
    if missing := [key for key, (is_needed, _) in wanted.items() if is_needed and key not in content]:
        raise InputError(f"{path} lacks {missing}; {cure}")
    for key, (_, is_right) in wanted.items():
        if key in content and not is_right(content[key]):
            raise InputError(f"{path} is damaged: {key} is {str(content[key])[:80]!r}; {cure}")
    if not _is_shallow(content):
        raise InputError(f"{path} is nested deeper than {MAX_DEPTH} levels; {cure}")
    return content


def _is_shallow(content: Any) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in level if isinstance(item, dict | list)]
    return not level


def _text(path: Path) -> str:
    """A configuration as it lies on disk, "" where there is none."""
    if not lies_in(path.parent, path):
        return ""
    read_yaml(path, cure=COPY)
    return read_text(path, cure=COPY)
