"""The light part of finished runs: outcomes of all rollouts, probes, words and seconds of every job.

docs/results.md is written from this archive, docs/results/, so that everyone can write it again and look at each
rollout behind it; checkpoints and recordings stay where they were made. Runs of several machines add up: whoever keeps
a seed adds it to those that are there.
"""

from __future__ import annotations

import json
from pathlib import Path

from vw2_robot.storage import write_text

from .job_queue import read_note

OUT = "RESULTS"
"""stands for the folder of the runs in the words of their jobs"""
KEPT = {"reference/single", "reference/chains", "few/single", "few/chains", "single", "chains", "probe"}
FILES = ("results.jsonl", "latent_report.json")


def keep(out: Path, archive: Path) -> None:
    """Copy what finished jobs left, and their notes. What the archive holds of other jobs stays.

    Raises:
        SystemExit: no job is done.
    """
    count = 0
    for file in sorted((out / "jobs").glob("*.json")):
        name = file.stem.replace("__", "/")
        note = read_note(out, name)
        if note is None or not note["done"]:
            continue
        words = [word.replace(str(out), OUT) for word in note["words"]]
        text = json.dumps({**note, "words": words}, indent=1) + "\n"
        (archive / "jobs").mkdir(parents=True, exist_ok=True)
        write_text(archive / "jobs" / file.name, text)
        count += 1
        if name in KEPT or name.split("/")[0] in KEPT:
            _copy(out / name, archive / name, out)
    if not count:
        raise SystemExit(f"none of the jobs in {out} is done; nothing is kept")
    print(f"kept: {count} jobs in {archive}", flush=True)


def _copy(source: Path, target: Path, out: Path) -> None:
    for name in FILES:
        if (source / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            write_text(target / name, (source / name).read_text(encoding="utf-8").replace(str(out), OUT))
