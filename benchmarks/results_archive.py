"""The light part of finished runs: outcomes of all rollouts, probes, words, settings and seconds of every job.

docs/results.md is written from this archive, docs/results/, so that everyone can write it again and look at each
rollout behind it; checkpoints and recordings stay where they were made. Runs of several machines add up: whoever keeps
a seed adds it to those that are there.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from vw2_robot.storage.files import write_text

from .job_queue import REPO, read_note
from .settings import PROGRAMS

OUT = "RESULTS"
"""stands for the folder of the runs in the words of their jobs"""
KEPT = {
    "reference/single", "reference/chains", "package/single", "package/chains", "few/single", "few/chains", "single",
    "chains", "probe",
}  # fmt: skip
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
        _write_note(archive / "jobs" / file.name, {**note, "words": words})
        count += 1
        if name in KEPT or name.split("/")[0] in KEPT:
            _copy(out / name, archive / name, out)
    if not count:
        raise SystemExit(f"none of the jobs in {out} is done; nothing is kept")
    add_settings(archive)
    print(f"kept: {count} jobs in {archive}", flush=True)


def add_settings(archive: Path) -> None:
    """Give every note that lacks them the settings that its words meant, composed by the code of its commit.

    Raises:
        SystemExit: that commit is not in this repository.
    """
    by_commit: dict[str, list[Path]] = {}
    for file in sorted((archive / "jobs").glob("*.json")):
        note = json.loads(file.read_text(encoding="utf-8"))
        if "settings" not in note and note["program"] in PROGRAMS:
            by_commit.setdefault(note["commit"], []).append(file)
    for commit, files in by_commit.items():
        notes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        for file, note, settings in zip(files, notes, _composed_at(commit, notes), strict=True):
            _write_note(file, {**note, "settings": settings})


def _composed_at(commit: str, notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of notes of one commit; of this checkout where the commit was not clean."""
    with tempfile.TemporaryDirectory() as folder:
        code = REPO
        if not commit.endswith("-dirty") and commit != "unknown":
            code = Path(folder)
            packed = subprocess.run(["git", "-C", str(REPO), "archive", commit], stdout=subprocess.PIPE, check=False)
            if packed.returncode:
                raise SystemExit(
                    f"commit {commit}, at which jobs were run, is not in {REPO}; fetch it, then keep again"
                )
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
                tar.extractall(code, filter="data")
        jobs = json.dumps([[note["program"], note["words"]] for note in notes])
        command = [sys.executable, str(REPO / "benchmarks" / "settings.py")]
        environment = {**os.environ, "PYTHONPATH": str(code)}
        done = subprocess.run(
            command, input=jobs, cwd=code, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
    settings: list[dict[str, Any]] = json.loads(done.stdout)
    return settings


def _write_note(file: Path, note: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(note, indent=1) + "\n")


def _copy(source: Path, target: Path, out: Path) -> None:
    for name in FILES:
        if (source / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            write_text(target / name, (source / name).read_text(encoding="utf-8").replace(str(out), OUT))
