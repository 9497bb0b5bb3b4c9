"""The archive of finished experiments: outcomes of all rollouts, probe reports and notes of all jobs, in seven files.

    jobs.jsonl      a job a line: program, arguments, settings, commit, seconds
    single.csv      a rollout of a single task a row: job, sequence, seed, subtasks solved, env steps of each attempt
    chains.csv      the same for chains of five tasks
    starts.jsonl    initial state and subtasks of every `sequence` number, by protocol
    tasks.json      the instruction of every task
    probes.jsonl    a report of vw2-probe-latents a line
    failed.jsonl    a job that failed a line, with the reason

docs/results.md is written from it. Checkpoints and recordings stay where they were made. Runs of several machines add
up: `keep` adds finished jobs to those that are there.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vw2_robot.aliases import with_new_keys
from vw2_robot.rollouts.evaluate import Row
from vw2_robot.rollouts.results import read_rows
from vw2_robot.storage.files import write_text

from .job_queue import REPO, read_note
from .settings import PROGRAMS, flat, nested

OUT = "RESULTS"
"""stands for the folder of the runs in arguments, settings and reports"""
PROTOCOLS = ("single", "chains")
COLUMNS = ("job", "sequence", "seed", "solved", "env_steps")

Note: TypeAlias = dict[str, Any]


@dataclass
class Archive:
    """Finished jobs by name, and what they left."""

    jobs: dict[str, Note] = field(default_factory=dict)
    rollouts: dict[str, list[Row]] = field(default_factory=dict)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, Note] = field(default_factory=dict)

    def rows(self, job: str) -> list[Row]:
        """Return the rollouts of a job; none where it is not finished."""
        return self.rollouts.get(job, [])


def finished_jobs(out: Path) -> Archive:
    """Return what the finished and failed jobs in a folder of runs left, with `OUT` for the folder itself."""
    found = Archive()
    for file in sorted((out / "jobs").glob("*.json")):
        name = file.stem.replace("__", "/")
        note = read_note(out, name)
        if note is None or not (note["done"] or "reason" in note):
            continue
        # The archive names no folder of the machine that the jobs ran on.
        arguments = [argument.replace(str(out), OUT) for argument in note["arguments"]]
        kept = {key: value for key, value in note.items() if key != "done"} | {"arguments": arguments}
        if not note["done"]:
            found.failed[name] = kept | {"reason": note["reason"].replace(str(out), OUT)}
            continue
        found.jobs[name] = kept
        if rows := read_rows(out / name / "results.jsonl"):
            found.rollouts[name] = sorted(rows, key=lambda row: row["sequence"])
        report = out / name / "latent_report.json"
        if report.is_file():
            found.probes[name] = json.loads(report.read_text(encoding="utf-8").replace(str(out), OUT))
    return found


def keep(out: Path, folder: Path) -> None:
    """Add the finished jobs of a folder of runs to an archive. Its other jobs stay.

    Raises:
        SystemExit: no job is finished, or a start or an instruction differs from that of the archive.
    """
    found = finished_jobs(out)
    if not found.jobs:
        raise SystemExit(f"none of the jobs in {out} is done; nothing is kept")
    archive = read_archive(folder)
    archive.jobs |= found.jobs
    archive.failed |= found.failed
    archive.failed = {name: note for name, note in archive.failed.items() if name not in archive.jobs}
    archive.rollouts |= found.rollouts
    archive.probes |= found.probes
    add_settings(archive)
    write_archive(archive, folder)
    print(f"kept: {len(found.jobs)} jobs in {folder}", flush=True)


def read_archive(folder: Path) -> Archive:
    """Return an archive from its files; an empty one where there are none. Keys of settings are those of today."""
    archive = Archive()
    for note in _read_lines(folder / "jobs.jsonl"):
        if "settings" in note:
            note["settings"] = flat(with_new_keys(nested(note["settings"])))
        archive.jobs[note.pop("job")] = note
    for line in _read_lines(folder / "probes.jsonl"):
        archive.probes[line["job"]] = line["report"]
    for note in _read_lines(folder / "failed.jsonl"):
        archive.failed[note.pop("job")] = note
    # Rows refer to starts by number, so that 340 starts are stored once and not for every job.
    starts = {(line["protocol"], line["sequence"]): line for line in _read_lines(folder / "starts.jsonl")}
    tasks = folder / "tasks.json"
    instructions = json.loads(tasks.read_text(encoding="utf-8")) if tasks.is_file() else {}
    for protocol in PROTOCOLS:
        file = folder / f"{protocol}.csv"
        with io.StringIO(file.read_text(encoding="utf-8") if file.is_file() else "") as text:
            for cells in csv.DictReader(text):
                start = starts[protocol, int(cells["sequence"])]
                env_steps = [int(count) for count in cells["env_steps"].split()]
                row = Row(
                    sequence=start["sequence"],
                    initial_state=start["initial_state"],
                    subtasks=start["subtasks"],
                    solved=int(cells["solved"]),
                    env_steps=env_steps,
                    seed=int(cells["seed"]),
                    # Only attempted subtasks were given an instruction.
                    instructions=[instructions[task] for task in start["subtasks"][: len(env_steps)]],
                )
                archive.rollouts.setdefault(cells["job"], []).append(row)
    return archive


def write_archive(archive: Archive, folder: Path) -> None:
    """Write the files of an archive, sorted by job.

    Starts and instructions are written once, since they are the same in all jobs of a protocol.

    Raises:
        SystemExit: two rollouts of one protocol and number begin differently, or a task has two instructions.
    """
    starts: dict[tuple[str, int], dict[str, Any]] = {}
    instructions: dict[str, str] = {}
    tables: dict[str, list[tuple[Any, ...]]] = {protocol: [] for protocol in PROTOCOLS}
    for job, rows in sorted(archive.rollouts.items()):
        for row in rows:
            # A single task is a chain of one.
            protocol = PROTOCOLS[len(row["subtasks"]) > 1]
            number = row["sequence"]
            begin = {"initial_state": row["initial_state"], "subtasks": row["subtasks"]}
            start = {"protocol": protocol, "sequence": number, **begin}
            if starts.setdefault((protocol, number), start) != start:
                raise SystemExit(f"{job}: {protocol} {number} begins otherwise than in other jobs; keep it elsewhere")
            # A chain that ended early has fewer instructions than subtasks.
            for task, instruction in zip(row["subtasks"], row["instructions"], strict=False):
                if instructions.setdefault(task, instruction) != instruction:
                    raise SystemExit(f"{job}: {task} has another instruction than in other jobs; keep it elsewhere")
            steps = " ".join(map(str, row["env_steps"]))
            tables[protocol].append((job, number, row["seed"], row["solved"], steps))
    folder.mkdir(parents=True, exist_ok=True)
    for file, notes in (("jobs.jsonl", archive.jobs), ("failed.jsonl", archive.failed)):
        _write_lines(folder / file, ({"job": name, **note} for name, note in sorted(notes.items())))
    probes = sorted(archive.probes.items())
    _write_lines(folder / "probes.jsonl", ({"job": name, "report": report} for name, report in probes))
    _write_lines(folder / "starts.jsonl", (starts[key] for key in sorted(starts)))
    write_text(folder / "tasks.json", json.dumps(instructions, indent=1, sort_keys=True) + "\n")
    for protocol, table in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *table])
        write_text(folder / f"{protocol}.csv", text.getvalue())


def add_settings(archive: Archive) -> None:
    """Add the settings of every job that lacks them, composed from its arguments by the code of its commit.

    Raises:
        SystemExit: that commit is not in this repository.
    """
    # One process per commit: unpacking it and importing its package take seconds.
    by_commit: dict[str, list[Note]] = {}
    for note in archive.jobs.values():
        if "settings" not in note and note["program"] in PROGRAMS:
            by_commit.setdefault(note["commit"], []).append(note)
    for commit, notes in by_commit.items():
        for note, settings in zip(notes, settings_at(commit, notes), strict=True):
            note["settings"] = settings


def settings_at(commit: str, notes: list[Note]) -> list[dict[str, Any]]:
    """Return the settings of jobs of one commit, composed by its code; by this checkout where it was not clean.

    Raises:
        SystemExit: the commit is not in this repository.
    """
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
        jobs = json.dumps([[note["program"], note["arguments"]] for note in notes])
        # The script of today with the package of that commit: older commits have no such script.
        command = [sys.executable, str(Path(__file__).with_name("settings.py"))]
        environment = {**os.environ, "PYTHONPATH": str(code)}
        done = subprocess.run(
            command, input=jobs, cwd=code, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
    settings: list[dict[str, Any]] = json.loads(done.stdout)
    return settings


def _read_lines(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def _write_lines(file: Path, values: Iterable[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(value) + "\n" for value in values))
