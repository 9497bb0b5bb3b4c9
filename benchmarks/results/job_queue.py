"""A queue of commands with dependencies: run the missing jobs, several at a time, and write a note of each.

A finished job leaves `jobs/NAME.json` with its arguments, the commit of the checkout, and the seconds and CPU seconds
of all attempts together. A finished job with the same arguments is skipped; with other arguments it is refused, as the
command itself would refuse its folder. A job that fails is noted with the last line of its log; jobs that need it are
skipped, all others go on. Every command of the package resumes by itself, so a queue can be killed and started again.

`pause` stops the running jobs (SIGTERM) and returns when their processes are gone, so that something can be timed;
after `resume` they continue where they were. Each job holds a shared lock of `jobs/.running`, which ends with its
process: neither a pause nor a second queue takes a machine for free on which a job of a killed queue still runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vw2_robot.storage.files import write_text
from vw2_robot.storage.locks import lock_folder

REPO = Path(__file__).resolve().parents[2]
NICE = 15
"""jobs give way to whatever else runs"""
POLL_SECONDS = 0.1
KILL_SECONDS = 120.0
"""after SIGTERM; programs end by themselves much earlier"""
REASON_CHARACTERS = 300


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

    @property
    def kind(self) -> str:
        """What the job does, whatever its seed: jobs of one kind take about the same time."""
        return self.name.split("/seed_")[0]


SHOWN = 3
"""kinds of jobs without a known time that are named"""


class Left(NamedTuple):
    """What is left of a queue.

    jobs: how many. hours: of the machine. unknown: kinds of which no job, nor a similar one, was ever finished; they
    are not in `hours`.
    """

    jobs: int
    hours: float
    unknown: list[str]

    def __str__(self) -> str:
        names = ", ".join(self.unknown[:SHOWN]) + (", ..." if len(self.unknown) > SHOWN else "")
        unknown = f", without {len(self.unknown)} kinds that were never run ({names})" if self.unknown else ""
        return f"{self.jobs} jobs and {self.hours:.1f} hours left{unknown}"


class Attempt:
    """A running process of a job. It holds the lock of running jobs as long as it lives."""

    def __init__(self, job: Job, log_file: Path, lock: int) -> None:
        self.job = job
        self.commit = commit_of(REPO)
        self.begin = time.monotonic()
        self.cpu_seconds = 0.0
        log_file.parent.mkdir(parents=True, exist_ok=True)
        # Waiting threads must not spin on the core of the job that runs beside this one.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        command = ["nice", "-n", str(NICE), sys.executable, "-m", job.program, *job.arguments]
        # Append: the log keeps earlier attempts. In a session of its own, since Ctrl-C is for the queue alone.
        with log_file.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, cwd=REPO, env=environment, stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True
            )

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        # `wait4` and not `Popen.poll`, for the CPU time of the process and of its workers.
        process, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if process == 0:
            return None
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def terminate(self) -> None:
        """Ask the process to end."""
        os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and its workers at once."""
        os.killpg(self._process.pid, signal.SIGKILL)


class Queue:
    """A queue that runs at most `parallel` jobs at a time; notes and logs go to `out`/jobs."""

    def __init__(self, out: Path, *, parallel: int) -> None:
        self._out = out
        self._parallel = parallel
        self._running: dict[str, Attempt] = {}
        self._is_stopping = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the unfinished jobs, each after those it needs, otherwise in the order given.

        Raises:
            SystemExit: at the end, if a job failed; or if the queue was stopped, a job was done before with other
                arguments, or one needs a job that is neither in `jobs` nor done.
            InputError: another queue works in this folder.
        """
        with lock_folder(self._out / "jobs", what="a queue"), self._signals():
            refuse_running(self._out)
            left = {job.name: job for job in jobs if not is_done(self._out, job)}
            check_needs(self._out, jobs)
            print(f"{len(jobs) - len(left)} of {len(jobs)} jobs are already done", flush=True)
            print(hours_left(self._out, jobs, parallel=self._parallel), flush=True)
            if is_paused(self._out):
                print("the queue is paused; it begins after `resume`", flush=True)
            lost: dict[str, str] = {}
            try:
                while (left or self._running) and not self._is_stopping:
                    if is_paused(self._out):
                        left = self._stop() | left
                    else:
                        self._start(left)
                    time.sleep(POLL_SECONDS)
                    for name, done in self._ended():
                        if not done:
                            lost[name] = f"FAILED, see {note_file(self._out, name, '.log')}"
                        print(hours_left(self._out, jobs, parallel=self._parallel), flush=True)
                    skip(left, lost)
            finally:
                self._stop()
        if self._is_stopping:
            raise SystemExit("the queue was stopped; start it again, and its jobs continue")
        if lost:
            lines = "\n".join(f"    {name}: {why}" for name, why in lost.items())
            raise SystemExit(f"{len(lost)} jobs are not done; they are tried again when the queue is started:\n{lines}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside the `with`, let SIGTERM and Ctrl-C end the queue between two looks at its jobs."""

        def stop(*_: object) -> None:
            self._is_stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, left: dict[str, Job]) -> None:
        """Start the jobs that may start now, in order, and take them out of `left`."""
        for job in startable(left, [attempt.job for attempt in self._running.values()], self._parallel):
            # Locked before the pause is read: either this job sees the pause, or the pause sees this job.
            lock = os.open(lock_file(self._out), os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if not is_paused(self._out):
                    print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
                    log = note_file(self._out, job.name, ".log")
                    self._running[job.name] = Attempt(left.pop(job.name), log, lock)
            except BlockingIOError:  # something is being timed
                return
            finally:
                os.close(lock)

    def _ended(self) -> list[tuple[str, bool]]:
        """Write the notes of the jobs that have ended; return their names and whether they are done."""
        ended = []
        for name, attempt in list(self._running.items()):
            if (status := attempt.poll()) is not None:
                del self._running[name]
                note = self._write_note(attempt, status, failed=status != 0)
                result = "done" if status == 0 else f"FAILED with status {status}: {note['reason']}"
                print(f"{time.strftime('%H:%M:%S')} {name}: {result}, {note['seconds']:.0f} s", flush=True)
                ended.append((name, status == 0))
        return ended

    def _stop(self) -> dict[str, Job]:
        """Stop the running jobs and wait for their end; return those that are not finished."""
        for attempt in self._running.values():
            attempt.terminate()
        unfinished = {}
        deadline = time.monotonic() + KILL_SECONDS
        while self._running:
            for name, attempt in list(self._running.items()):
                if (status := attempt.poll()) is None:
                    continue
                del self._running[name]
                # It may have ended by itself in this moment.
                if not self._write_note(attempt, status, failed=False)["done"]:
                    unfinished[name] = attempt.job
                print(f"{time.strftime('%H:%M:%S')} {name}: {'stopped' if status else 'done'}", flush=True)
            if time.monotonic() > deadline:
                for attempt in self._running.values():
                    attempt.kill()
            time.sleep(POLL_SECONDS)
        return unfinished

    def _write_note(self, attempt: Attempt, status: int, *, failed: bool) -> dict[str, Any]:
        """Write and return the note of an attempt that ended; it has a reason where the job failed by itself."""
        job = attempt.job
        before = read_note(self._out, job.name) or {}
        # All attempts together: a job that was interrupted has cost the time before, too.
        seconds = time.monotonic() - attempt.begin + before.get("seconds", 0.0)
        cpu_seconds = attempt.cpu_seconds + before.get("cpu_seconds", 0.0)
        note: dict[str, Any] = {
            "program": job.program,
            "arguments": list(job.arguments),
            "commit": attempt.commit,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "done": status == 0,
        }
        if earlier := {before.get("commit", attempt.commit), *before.get("earlier_commits", [])} - {attempt.commit}:
            note["earlier_commits"] = sorted(earlier)
        if failed:
            note |= {"status": status, "reason": last_line(note_file(self._out, job.name, ".log"))}
        write_text(note_file(self._out, job.name, ".json"), json.dumps(note, indent=1) + "\n")
        return note


def startable(left: Mapping[str, Job], running: Sequence[Job], parallel: int) -> list[Job]:
    """Return the jobs that may start now, in order, at most as many as there are free places.

    Args:
        left: jobs that wait.
        running: jobs that run.
        parallel: number of places.
    """
    undone = {*left, *(job.name for job in running)}
    chosen: list[Job] = []
    for job in left.values():
        others = [*running, *chosen]
        # Stop at the first exclusive job, so that later jobs do not delay it for ever.
        if len(others) >= parallel or any(other.exclusive for other in others):
            break
        if undone & set(job.needs):
            continue
        if job.exclusive and others:
            break
        chosen.append(job)
    return chosen


def skip(left: dict[str, Job], lost: dict[str, str]) -> None:
    """Take the jobs that need a lost one out of `left`, and add them to `lost` (name -> why)."""
    while found := [(job, name) for job in left.values() for name in job.needs if name in lost]:
        for job, name in found:
            left.pop(job.name, None)
            lost.setdefault(job.name, f"skipped, since it needs {name}")


def check_needs(out: Path, jobs: Sequence[Job]) -> None:
    """Refuse jobs that need one that is neither among them nor done.

    Raises:
        SystemExit: there is such a job.
    """
    here = {job.name for job in jobs}
    for job in jobs:
        for name in job.needs:
            note = read_note(out, name)
            if name not in here and (note is None or not note["done"]):
                raise SystemExit(f"{job.name} needs {name}, which is not done; run the stage before")


def is_done(out: Path, job: Job) -> bool:
    """Return whether the job is finished.

    Raises:
        SystemExit: it is, with other arguments.
    """
    note = read_note(out, job.name)
    if note is None or not note["done"]:
        return False
    if note["arguments"] != list(job.arguments):
        other = " ".join(sorted(set(note["arguments"]) ^ set(job.arguments)))
        raise SystemExit(
            f"{job.name} was done with other arguments ({other}); use another --out, or delete what it made"
        )
    return True


def hours_left(out: Path, jobs: Sequence[Job], *, parallel: int) -> Left:
    """Return what is left of the jobs, by the time that finished jobs of the same kind have taken.

    A kind without a finished job takes the mean of similar ones, whose names begin alike (finetune/...).

    Args:
        out: folder of the queue.
        jobs: all jobs.
        parallel: how many run at a time; an exclusive job takes all places.
    """
    notes = {job.name: note for job in jobs if (note := read_note(out, job.name)) is not None}
    done = [job for job in jobs if notes.get(job.name, {}).get("done")]
    waiting = [job for job in jobs if not notes.get(job.name, {}).get("done")]

    def mean_seconds(key: Callable[[Job], str]) -> dict[str, float]:
        kinds: dict[str, list[float]] = {}
        for job in done:
            kinds.setdefault(key(job), []).append(notes[job.name]["seconds"])
        return {kind: statistics.mean(seconds) for kind, seconds in kinds.items()}

    of_kind, of_similar = mean_seconds(lambda job: job.kind), mean_seconds(first_part)
    seconds = 0.0
    unknown: dict[str, None] = {}
    for job in waiting:
        known = of_kind.get(job.kind, of_similar.get(first_part(job)))
        if known is None:
            unknown[job.kind] = None
        else:
            # What an interrupted job has already done need not be done again.
            rest = max(0.0, known - notes.get(job.name, {}).get("seconds", 0.0))
            seconds += rest * (parallel if job.exclusive else 1)
    return Left(len(waiting), seconds / parallel / 3600, list(unknown))


def first_part(job: Job) -> str:
    """Return the first part of the name of a job, such as finetune."""
    return job.name.split("/")[0]


def core_minutes_by_kind(out: Path, jobs: Iterable[Job]) -> dict[str, float]:
    """Return the mean CPU minutes of the finished jobs of each kind."""
    kinds: dict[str, list[float]] = {}
    for job in jobs:
        note = read_note(out, job.name)
        if note is not None and note["done"] and "cpu_seconds" in note:
            kinds.setdefault(job.kind, []).append(note["cpu_seconds"] / 60)
    return {kind: statistics.mean(minutes) for kind, minutes in kinds.items()}


def pause(out: Path) -> bool:
    """Pause the queue of a folder: return when no process of its jobs is left; whether it was paused before.

    Raises:
        SystemExit: no queue ever ran there.
    """
    if not (out / "jobs").is_dir():
        raise SystemExit(f"{out} is no folder of a queue")
    before = is_paused(out)
    pause_file(out).touch()
    # Granted when the last job has ended; nothing starts while the file is there.
    with lock_file(out).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    return before


def resume(out: Path) -> None:
    """Let the queue of a folder go on."""
    pause_file(out).unlink(missing_ok=True)


def run_alone(out: Path, command: Sequence[str]) -> int:
    """Run a command while the queue of a folder is paused; return its exit status. A queue paused before stays so."""
    before = pause(out)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        if not before:
            resume(out)


def is_paused(out: Path) -> bool:
    """Return whether the queue of a folder is paused."""
    return pause_file(out).exists()


def refuse_running(out: Path) -> None:
    """Refuse to start beside jobs of a queue that was killed.

    Raises:
        SystemExit: there are such jobs.
    """
    with lock_file(out).open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"jobs of an earlier queue in {out} still run (or a pause); wait for them") from None


def commit_of(repo: Path) -> str:
    """Return the commit of a checkout, with "-dirty" where its files differ from it; "unknown" without git."""
    describe = ["git", "-C", str(repo), "describe", "--always", "--dirty", "--match", ""]
    git = subprocess.run(describe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, text=True)
    return git.stdout.strip() if git.returncode == 0 else "unknown"


def last_line(log_file: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = [line.strip() for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[-REASON_CHARACTERS:] for line in reversed(lines) if line), "")


def read_note(out: Path, name: str) -> dict[str, Any] | None:
    """Return the note of a job: program, arguments, commit, seconds, done; None before its first attempt ended."""
    file = note_file(out, name, ".json")
    if not file.is_file():
        return None
    note: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "words" in note:  # the key in older folders
        note["arguments"] = note.pop("words")
    return note


def note_file(out: Path, name: str, suffix: str) -> Path:
    """Return the place of the note (.json) or the log (.log) of a job."""
    return out / "jobs" / (name.replace("/", "__") + suffix)


def pause_file(out: Path) -> Path:
    """Return the file that is there while the queue is paused."""
    return out / "jobs" / ".paused"


def lock_file(out: Path) -> Path:
    """Return the file whose lock running jobs share, made if it is missing."""
    file = out / "jobs" / ".running"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file
