"""Training steps of `model=tiny` on a CPU, beside those of an earlier commit: all stages by their command lines.

`git archive` writes the earlier tree into a temporary folder. Both trees train on the same recordings, and read, cache
and augment them themselves.

1. At the same time, each with one thread. The cost of a step is the CPU time of the program between two lines of its
   log: everything that a step takes, and nothing that other programs do.
2. One after the other with two threads, by wall clock.

    python -m benchmarks.speed --part benchmarks.speed.training_steps
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from .row import Rounds, SpeedRow, not_measured
from .stage_memory import write_data

REPO = Path(__file__).resolve().parents[2]
BEFORE = "19f57af"
"""the last commit before the work on speed"""
WANTED = 1.5
STEPS, LOG_EVERY, WARM_UP = 40, 5, 2
"""of each stage; lines of its log that are not counted"""
PAUSE = 0.01


@dataclass(frozen=True)
class Logged:
    """A stage: its row, its log below the folder of the tree, and which of the lines are its own."""

    name: str
    log: str
    first_line: int = 0


PRETRAIN = (
    Logged("video prior, step", "run/vdm/metrics.jsonl"),
    Logged("phase 1, step", "run/dldm/metrics.jsonl"),
    Logged("phase 2, step", "run/dldm/metrics.jsonl", first_line=STEPS // LOG_EVERY),
    Logged("policy, step", "run/policy/metrics.jsonl"),
)
FINETUNE = (Logged("fine-tuning, step", "tuned/metrics.jsonl"),)


def pretrain_overrides(data: Path, out: Path) -> list[str]:
    """Return the arguments of `pretrain-on-openx`."""
    loop = f"train_steps: {STEPS}, log_every: {LOG_EVERY}, save_every: {STEPS}"
    return [
        "model=tiny",
        f"run_dir={out / 'run'}",
        f"data.path={data / 'calvin'}",
        "data.validation_fraction=0.1",
        "aids.reader=false",  # its step is that of phase 2 without the dLDM's
        f"++train_vdm={{{loop}, batch_size: 8}}",
        f"++train_dldm.phase1={{{loop}, batch_size: 16}}",
        f"++train_dldm.phase2={{{loop}, batch_size: 16}}",
        f"++train_policy.loop={{{loop}, batch_size: 16}}",
        "++train_dldm.validation_clips=2",
        "++hardware.device=cpu",
        "++hardware.threads=1",
    ]


def finetune_overrides(data: Path, out: Path) -> list[str]:
    """Return the arguments of `vw2-finetune`."""
    return [
        f"policy={out / 'run'}",
        f"run_dir={out / 'tuned'}",
        f"data.path={data / 'calvin'}",
        f"++loop={{train_steps: {STEPS}, log_every: {LOG_EVERY}, save_every: {STEPS}, batch_size: 16}}",
        "++hardware.device=cpu",
        "++hardware.threads=1",
    ]


@dataclass
class Program:
    """A running program of one tree, and what its clock showed at each line of its logs."""

    process: subprocess.Popen[bytes]
    out: Path
    printed: Path
    clock: Callable[[int], float]
    """from the number of the process to seconds"""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note_lines(self) -> bool:
        """Note the time of new lines, and return whether the program still runs.

        Raises:
            RuntimeError: it failed.
        """
        running = self.process.poll() is None
        for log in {stage.log for stage in (*PRETRAIN, *FINETUNE)}:
            lines = (self.out / log).read_bytes().count(b"\n") if (self.out / log).exists() else 0
            noted = self.seconds.setdefault(log, [])
            if running and lines > len(noted):
                noted += [self.clock(self.process.pid)] * (lines - len(noted))
        if self.process.returncode:
            raise RuntimeError(f"{self.process.args!r} failed: {self.printed.read_text()[-1500:]}")
        return running


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far."""
    # Counted from behind the name, which may hold blanks: user and system time are fields 14 and 15 of all.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wall_seconds(_: int) -> float:
    """Return the time."""
    return time.perf_counter()


@dataclass
class Trees:
    """The two trees, their data, and the folder of each."""

    folder: Path
    roots: dict[str, Path]

    def start(self, name: str, module: str, overrides: list[str], clock: Callable[[int], float]) -> Program:
        """Start a program of one tree, which ends within `run`.

        Args:
            name: of the tree.
            module: of the program.
            overrides: its arguments.
            clock: of its log.
        """
        printed = self.folder / name / f"{module}.txt"
        printed.parent.mkdir(exist_ok=True)
        with printed.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", f"vw2_robot.{module}", *overrides],
                cwd=self.roots[name],
                env={**os.environ, "PYTHONPATH": str(self.roots[name])},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Program(process, self.folder / name, printed, clock)

    def together(self, module: str, overrides: Callable[[Path, Path], list[str]]) -> dict[str, Program]:
        """Run a program in both trees at the same time, one thread each, and note their CPU time.

        Args:
            module: of the program.
            overrides: its arguments, from the folder of the data and that of the tree.
        """
        return run(
            {
                name: self.start(name, module, overrides(self.folder, self.folder / name), cpu_seconds)
                for name in self.roots
            }
        )

    def one_by_one(self, module: str, overrides: Callable[[Path, Path], list[str]]) -> dict[str, Program]:
        """Run a program in one tree after the other with two threads, and note the time.

        Args:
            module: of the program.
            overrides: its arguments, from the folder of the data and that of the tree.
        """
        found = {}
        for name in self.roots:
            out = self.folder / name / "two_threads"
            arguments = [*overrides(self.folder, out), "++hardware.threads=2"]
            program = self.start(name, module, arguments, wall_seconds)
            program.out = out
            found |= run({name: program})
        return found


def run(programs: dict[str, Program]) -> dict[str, Program]:
    """Wait for the end of programs."""
    try:
        while sum(program.note_lines() for program in programs.values()):
            time.sleep(PAUSE)
    finally:
        for program in programs.values():
            program.process.kill()
            program.process.wait()
    return programs


def rounds_of(stage: Logged, programs: dict[str, Program]) -> Rounds:
    """Return the milliseconds of a step in each tree, line by line of the log."""
    first = stage.first_line + WARM_UP
    costs = {}
    for name, program in programs.items():
        seconds = program.seconds[stage.log][first : stage.first_line + STEPS // LOG_EVERY]
        costs[name] = [1000 * (b - a) / LOG_EVERY for a, b in pairwise(seconds)]
    count = min(map(len, costs.values()))
    return Rounds({name: values[:count] for name, values in costs.items()})


def rows_of(stages: Sequence[Logged], programs: dict[str, Program], *, kind: str = "") -> list[SpeedRow]:
    """Return a row for each stage.

    Args:
        stages: those of the program.
        programs: of both trees.
        kind: of the rows, for their names.
    """
    against = f"commit {BEFORE}, {'wall clock' if kind else 'CPU time'}"
    return [
        rounds_of(stage, programs).row(
            stage.name + kind, ours="ours", other="before", against=against, unit="ms/step", wanted=WANTED
        )
        for stage in stages
    ]


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return the rows; `seconds` is not used: the runs are as short as they can be."""
    found = subprocess.run(["git", "archive", BEFORE], cwd=REPO, capture_output=True, check=False)
    if found.returncode:
        why = f"commit {BEFORE} is not in this checkout: git fetch --unshallow"
        return [
            not_measured(stage.name, unit="ms/step", against=f"commit {BEFORE}", wanted=WANTED, why=why)
            for stage in (*PRETRAIN, *FINETUNE)
        ]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_data(folder)
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(folder / "tree", filter="data")
        trees = Trees(folder, {"ours": REPO, "before": folder / "tree"})
        pretrain, finetune = "pretrain.pretrain_on_openx", "finetune.train_head"
        rows = rows_of(PRETRAIN, trees.together(pretrain, pretrain_overrides))
        rows += rows_of(FINETUNE, trees.together(finetune, finetune_overrides))
        rows += rows_of(PRETRAIN, trees.one_by_one(pretrain, pretrain_overrides), kind=", two threads")
        rows += rows_of(FINETUNE, trees.one_by_one(finetune, finetune_overrides), kind=", two threads")
    return rows
