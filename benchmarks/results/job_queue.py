"""A queue of commands with dependencies: run the missing jobs, several at a time, and write a note of each.

A finished job leaves `jobs/NAME.json` with its arguments, the commit of the checkout and the seconds of all attempts
together. A finished job with the same arguments is skipped; with other arguments it is refused, as the command itself
would refuse its folder. Every command of the package resumes by itself, so a queue can be killed and started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One command, `python -m program arguments...`."""

    name: str
    program: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """names of the jobs that must be finished before"""
    exclusive: bool = False
    """it uses all cores: it waits for the running jobs, and no later job starts before it"""


class Queue:
    """A queue that runs at most `parallel` jobs at a time; notes and logs go to `out`/jobs."""

    def __init__(self, out: Path, *, parallel: int) -> None:
        self._out = out
        self._parallel = parallel

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the unfinished jobs, each after those it needs, otherwise in the order given.

        Raises:
            SystemExit: a job failed (the running jobs are waited for), was done before with other arguments, or needs
                a job that is neither in `jobs` nor done.
        """
        left = {job.name: job for job in jobs if not self.is_done(job)}
        here = {job.name for job in jobs}
        for job in jobs:
            for name in job.needs:
                note = read_note(self._out, name)
                if name not in here and (note is None or not note["done"]):
                    raise SystemExit(f"{job.name} needs {name}, which is not done; run the stage before")
        print(f"{len(jobs) - len(left)} of {len(jobs)} jobs are already done", flush=True)
        failed = ""
        # A thread per running job: it only waits for the process of the job.
        with ThreadPoolExecutor(self._parallel) as pool:
            running: dict[Future[int], Job] = {}
            while (left and not failed) or running:
                if not failed:
                    for job in self._startable(left.values(), running.values(), jobs):
                        running[pool.submit(self._work, left.pop(job.name))] = job
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    failed = job.name if future.result() else failed
        if failed:
            raise SystemExit(f"{failed} failed; see {self._file(failed, '.log')}, then start again")

    def is_done(self, job: Job) -> bool:
        """Return whether the job is finished.

        Raises:
            SystemExit: it is, with other arguments.
        """
        note = read_note(self._out, job.name)
        if note is None or not note["done"]:
            return False
        if note["arguments"] != list(job.arguments):
            other = " ".join(sorted(set(note["arguments"]) ^ set(job.arguments)))
            raise SystemExit(
                f"{job.name} was done with other arguments ({other}); use another --out, or delete what it made"
            )
        return True

    def _startable(self, left: Iterable[Job], running: Iterable[Job], jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that may start now, in order, at most as many as there are free places."""
        busy = list(running)
        undone = {job.name for job in jobs if not self.is_done(job)}
        chosen: list[Job] = []
        for job in left:
            others = busy + chosen
            # Stop at the first exclusive job, so that later jobs do not delay it for ever.
            if len(others) >= self._parallel or any(other.exclusive for other in others):
                break
            if undone & set(job.needs):
                continue
            if job.exclusive and others:
                break
            chosen.append(job)
        return chosen

    def _work(self, job: Job) -> int:
        print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
        log_file = self._file(job.name, ".log")
        log_file.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        # Append: the log keeps earlier attempts.
        with log_file.open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", job.program, *job.arguments]
            # Waiting threads must not spin on the core of the job that runs beside this one.
            environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
            code = subprocess.run(command, cwd=REPO, env=environment, stdout=log, stderr=log, check=False).returncode
        before = read_note(self._out, job.name)
        # "-dirty" where files of the checkout differ from the commit.
        describe = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--match", ""]
        git = subprocess.run(describe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, text=True)
        # All attempts together: a job that was interrupted has cost the time before, too.
        seconds = time.monotonic() - begin + (0.0 if before is None else before["seconds"])
        note = {
            "program": job.program,
            "arguments": list(job.arguments),
            "commit": git.stdout.strip() if git.returncode == 0 else "unknown",
            "seconds": round(seconds, 1),
            "done": code == 0,
        }
        # Renamed when complete, so that a kill leaves no partial note.
        temporary = self._file(job.name, ".tmp")
        temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._file(job.name, ".json"))
        ended = "done" if code == 0 else f"FAILED with status {code}"
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {ended}, {seconds:.0f} s", flush=True)
        return code

    def _file(self, name: str, suffix: str) -> Path:
        return _note_file(self._out, name).with_suffix(suffix)


def read_note(out: Path, name: str) -> dict[str, Any] | None:
    """Return the note of a job: program, arguments, commit, seconds, done; None before its first attempt ended."""
    file = _note_file(out, name)
    if not file.is_file():
        return None
    note: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "words" in note:  # the key in older folders
        note["arguments"] = note.pop("words")
    return note


def _note_file(out: Path, name: str) -> Path:
    return out / "jobs" / (name.replace("/", "__") + ".json")
